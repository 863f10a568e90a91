"""Parts of a pass run again, with the rest remembered: the way to thousands of interventions on one input.

What a change at layer l and position p can reach is layers from l on and, in a causal model, positions from p on. `record` runs an input once and
remembers what enters each block and each attention product; `Recording.block` runs one block on changed rows from a position on, against the
remembered keys and values before it; `Recording.logits` runs what follows the last block. The arithmetic is the model's own, block by block.
Shape letters: B rows of the input, R rows of a replay (a multiple of B), T positions, t positions from `start` on, D model, J key-value heads, K head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.model.attend import Call, Output, intercepted
from knowhow.model.sites import Body, body
from knowhow.model.taps import tap

_CACHES = ("cache", "past_key_values", "layer_past")
Changes = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""Kind of site of a block (one of `CHANGEABLE`) → what its value (R rows, t positions) becomes."""
CHANGEABLE = ("attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.out", "resid_mid", "mlp.out")


@dataclass(frozen=True, slots=True)
class Recording:
    """One pass of `inputs` (the model's keyword arguments, B rows of T tokens). Values of layer l at index l; `stream` has the last block's output too;
    `middle` is the stream between attention and MLP (where these run side by side: before both)."""

    parts: Body
    model: torch.nn.Module
    inputs: Mapping[str, Any]
    stream: tuple[torch.Tensor, ...]
    middle: tuple[torch.Tensor, ...]
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    arguments: tuple[Mapping[str, Any], ...]
    attending: tuple[Mapping[str, Any], ...]
    logits_all: torch.Tensor
    tupled: bool

    def read(self, layer: int, *, middle: bool) -> torch.Tensor:
        """The stream BTD that attention of a layer reads, or (`middle`) its MLP."""
        return self.middle[layer] if middle else self.stream[layer]

    @property
    def causal(self) -> bool:
        return bool(self.parts.attention(0).is_causal)

    def block(self, layer: int, hidden_RtD: torch.Tensor, *, start: int = 0, changes: Changes | None = None) -> torch.Tensor:
        """Output RtD of block `layer` on rows that differ from the recorded ones from position `start` on, with `changes` inside it."""
        repeats, changes = hidden_RtD.shape[0] // self.stream[0].shape[0], changes or {}
        given = {name: _part(name, value, slice(start, None), repeats) for name, value in self.arguments[layer].items()}
        handler = partial(self._attend, layer, start, repeats, changes)
        with intercepted(self.parts.root, {self.parts.attention(layer): handler}), _changed(self.parts, layer, hidden_RtD, changes):
            out = self.parts.block(layer)(hidden_RtD, **given)
        return out[0] if isinstance(out, tuple) else out

    @property
    def by_position(self) -> bool:
        """A language model that reads forward: its logits at a position need no other position of the last stream."""
        return self.causal and "logits_to_keep" in inspect.signature(self.parts.root.forward).parameters

    def block_at(self, layer: int, hidden_RtD: torch.Tensor, position: int, *, start: int = 0) -> torch.Tensor:
        """Output R1D of a causal block at one position: keys and values of all rows' positions, everything else of that one alone."""
        repeats, kept = hidden_RtD.shape[0] // self.stream[0].shape[0], list[torch.Tensor]()
        attention, anatomy = self.parts.attention(layer), self.parts.anatomy

        def keep(call: Call) -> Output:
            kept.extend((call.key, call.value))
            return torch.zeros_like(call.query.transpose(1, 2)), None

        def use(call: Call) -> Output:
            key, value = (whole[:, :, : position + 1] for whole in self._behind_earlier(layer, start, repeats, *kept))
            return replace(call, key=key, value=value, mask=None if call.mask is None else call.mask[..., : position + 1]).run()

        read = self.parts.block(layer).get_submodule(anatomy.norm)(hidden_RtD) if anatomy.norm else hidden_RtD
        with intercepted(self.parts.root, {attention: keep}):
            attention(read, **{name: _part(name, value, slice(start, None), repeats) for name, value in self.attending[layer].items()})
        only = slice(position, position + 1)
        given = {name: _part(name, value, only, repeats) for name, value in self.arguments[layer].items()}
        with intercepted(self.parts.root, {attention: use}):
            out = self.parts.block(layer)(hidden_RtD[:, position - start : position - start + 1], **given)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, hidden_RtD: torch.Tensor, *, start: int = 0, position: int | None = None) -> torch.Tensor:
        """Logits RTV (a classifier's: RC) after the last block gave `hidden`; with `position` those at it alone, RV. Raises UsageError for one out of range."""
        length = start + hidden_RtD.shape[1]
        if position is not None and not -length <= position < length:
            raise UsageError(f"position {position}", allowed=f"{-length} to {length - 1}")
        if position is not None and position % length >= start and self.by_position:
            return self.logits_at(hidden_RtD[:, position % length - start])
        repeats = hidden_RtD.shape[0] // self.stream[0].shape[0]
        before_RsD = self.stream[-1][:, :start].repeat(repeats, 1, 1)
        inputs = {name: value.repeat(repeats, *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()}
        with _only(self.parts, torch.cat([before_RsD, hidden_RtD], 1), tupled=self.tupled):
            logits = self.model(**inputs).logits
        return logits if position is None or logits.ndim == 2 else logits[:, position]

    def logits_at(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Logits RV of last streams at one position each, for a model that is `by_position`."""
        assert self.by_position
        tokens_R1 = self.inputs["input_ids"][:1, :1].expand(len(hidden_RD), 1)
        with _only(self.parts, hidden_RD[:, None], tupled=self.tupled):
            return self.model(input_ids=tokens_R1, use_cache=False).logits[:, 0]

    def _behind_earlier(self, layer: int, start: int, repeats: int, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values RJSK of the rows' positions from `start` on, the remembered ones of earlier positions before them."""
        pairs = ((self.keys, key), (self.values, value))
        return [torch.cat([kept[layer][:, :, :start].repeat(repeats, 1, 1, 1), now], 2) for kept, now in pairs]

    def _attend(self, layer: int, start: int, repeats: int, changes: Changes, call: Call) -> Output:
        def changed(name: str, value: torch.Tensor) -> torch.Tensor:
            return changes[name](value.transpose(1, 2)).transpose(1, 2) if name in changes else value

        call = replace(call, query=changed("attn.q", call.query), key=changed("attn.k", call.key), value=changed("attn.v", call.value))
        if start:
            key, value = self._behind_earlier(layer, start, repeats, call.key, call.value)
            mask = _causal(call.query.shape[2], start, call.query.device) if call.mask is None else call.mask
            call = replace(call, key=key, value=value, mask=mask)
        if "attn.pattern" in changes:
            pattern = changes["attn.pattern"](call.pattern())
            return call.mixed(pattern), pattern
        z_RtHK, weights = call.run()
        return (changes["attn.z"](z_RtHK) if "attn.z" in changes else z_RtHK), weights


def record(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Recording:
    """Run `model` once on `inputs` (keyword arguments such as input_ids and attention_mask; no cache) and remember it.

    The model must be in eval mode: a replay of dropout would be another draw. Raises UsageError for one in training and for unknown families."""
    if model.training:
        raise UsageError("a model in training", allowed="a model in eval mode", fix="call model.eval() first")
    parts = body(model)
    caught, inside = list[tuple[tuple[Any, ...], dict[str, Any]]](), list[tuple[tuple[Any, ...], dict[str, Any]]]()
    tupled: list[bool] = []
    blocks = [parts.block(layer) for layer in range(parts.depth)]
    attentions = [parts.attention(layer) for layer in range(parts.depth)]
    handles = [block.register_forward_pre_hook(lambda _, args, kwargs: caught.append((args, kwargs)), with_kwargs=True) for block in blocks]
    handles += [module.register_forward_pre_hook(lambda _, args, kwargs: inside.append((args, kwargs)), with_kwargs=True) for module in attentions]
    handles.append(blocks[-1].register_forward_hook(lambda _, __, output: tupled.append(isinstance(output, tuple))))
    given = dict(inputs)
    if "use_cache" in inspect.signature(parts.root.forward).parameters or parts.attention(0).is_causal:
        given["use_cache"] = False
    try:
        between = "resid_mid" if parts.anatomy.mid else "resid_pre"
        with tap(model, "layers.*.attn.k", "layers.*.attn.v", "layers.*.resid_pre", f"layers.*.{between}", f"layers.{parts.depth - 1}.resid_post") as seen:
            logits = model(**given).logits
    finally:
        for handle in handles:
            handle.remove()
    names = [f"layers.{layer}" for layer in range(parts.depth)]
    stream = (*(seen[f"{name}.resid_pre"] for name in names), seen[f"{names[-1]}.resid_post"])
    middle = tuple(seen[f"{name}.{between}"] for name in names)
    keys, values = (tuple(seen[f"{name}.attn.{which}"].transpose(1, 2) for name in names) for which in ("k", "v"))
    arguments = tuple(_named(block, *call) for block, call in zip(blocks, caught, strict=True))
    attending = tuple(_named(module, *call) for module, call in zip(attentions, inside, strict=True))
    return Recording(parts, model, given, stream, middle, keys, values, arguments, attending, logits.detach(), tupled[0])


def _named(block: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A block's arguments by name, its stream and its cache left out."""
    names = list(inspect.signature(block.forward).parameters)
    given = {**dict(zip(names, args)), **kwargs}
    return {name: value for name, value in given.items() if name != names[0] and name not in _CACHES}


def _part(name: str, value: Any, where: slice, repeats: int) -> Any:
    """What an argument of a block is for some positions of `repeats` copies of the rows."""
    if isinstance(value, tuple):
        return tuple(_part(name, part, where, repeats) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    if name == "attention_mask" and value.ndim == 4:
        return _copies(value[:, :, where], repeats)
    return _copies(value[:, where], repeats) if value.ndim > 1 else value[where]


def _copies(value: torch.Tensor, repeats: int) -> torch.Tensor:
    return value if value.shape[0] == 1 or repeats == 1 else value.repeat(repeats, *[1] * (value.ndim - 1))


def _causal(queries: int, start: int, device: torch.device) -> torch.Tensor:
    """Mask 11tT of queries from `start` on."""
    return torch.ones(queries, start + queries, dtype=torch.bool, device=device).tril(start)[None, None]


@contextmanager
def _changed(parts: Body, layer: int, hidden_RtD: torch.Tensor, changes: Changes) -> Iterator[None]:
    """Hooks for the sites of a block that are a module's own output."""
    unknown = [kind for kind in changes if kind not in CHANGEABLE]
    if unknown or ("resid_mid" in changes and parts.anatomy.mid is None):
        fix = "a family whose MLP runs beside attention has no resid_mid"
        raise UsageError(f"a replay changed at {(unknown or ['resid_mid'])[0]}", allowed=", ".join(CHANGEABLE), fix=fix)
    anatomy, block, handles = parts.anatomy, parts.block(layer), []
    middle = anatomy.attn_out if anatomy.added_mid else anatomy.mid
    for kind, port in (("attn.out", anatomy.attn_out), ("resid_mid", middle), ("mlp.out", anatomy.mlp_out)):
        if kind in changes and port is not None:
            completes = kind == "resid_mid" and anatomy.added_mid
            hook = partial(_output, changes[kind], hidden_RtD if completes else None)
            handles.append(block.get_submodule(port.path).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(change: Callable[[torch.Tensor], torch.Tensor], before: torch.Tensor | None, _: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    """A module's output changed; with `before`, the sum of both is what is changed."""
    return change(output) if before is None else change(before + output) - before


@contextmanager
def _only(parts: Body, hidden_RTD: torch.Tensor, *, tupled: bool) -> Iterator[None]:
    """The model with one block in place of all, which gives `hidden` whatever it gets."""
    path, _, name = parts.path(parts.anatomy.layers).rpartition(".")
    holder = parts.root.get_submodule(path)
    blocks = holder.get_submodule(name)
    holder._modules[name] = torch.nn.ModuleList([_Gives(hidden_RTD, tupled, vars(blocks[-1]).get("attention_type"))])
    try:
        yield
    finally:
        holder._modules[name] = blocks


class _Gives(torch.nn.Module):
    def __init__(self, hidden_RTD: torch.Tensor, tupled: bool, attention_type: str | None) -> None:
        super().__init__()
        self.hidden, self.tupled, self.attention_type = hidden_RTD, tupled, attention_type

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self.hidden,) if self.tupled else self.hidden
