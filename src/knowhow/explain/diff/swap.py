"""Another model's parameters in a model's place for a while, adapters included: nothing is copied as a whole or merged, parameters point elsewhere and back.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer

from knowhow.errors import UsageError
from knowhow.explain.diff.parts import Part, plain
from knowhow.model.sites import Body, body

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
"""Parameters by their names below the model without its head, adapters' updates added."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Weights of both models under the same names and of the same shapes. What only the specialist has is its own in both: the last `fresh` rows of the
    embedding, an encoder's pooler."""

    base: Weights
    specialist: Weights
    fresh: int


@dataclass(frozen=True, slots=True)
class _Leaf:
    """Where a weight is kept: a parameter, and the adapter round it that adds to it or trains some of its rows."""

    own: torch.nn.Parameter
    adapter: torch.nn.Module | None = None

    def value(self) -> Tensor:
        value = self.own.detach()
        if isinstance(self.adapter, TrainableTokensLayer):
            return self.adapter.get_merged_weights(self.adapter.active_adapters).detach()
        return value if self.adapter is None else value + self._added()

    def point(self, value: Tensor) -> list[tuple[torch.nn.Parameter, Tensor]]:
        """Make `value` the weight; gives what the parameters pointed to."""
        before, value = [(self.own, self.own.data)], value.detach().to(self.own)
        self.own.data = value - self._added() if isinstance(self.adapter, LoraLayer) else value
        if isinstance(self.adapter, TrainableTokensLayer):
            for name in self.adapter.active_adapters:
                rows = self.adapter.trainable_tokens_delta[name]
                before.append((rows, rows.data))
                rows.data = value[self.adapter.token_indices[name]].to(rows)
        return before

    def _added(self) -> Tensor:
        adapter: LoraLayer = self.adapter
        active = [name for name in adapter.active_adapters if name in {*adapter.lora_A, *adapter.lora_embedding_A}]
        if any(adapter.use_dora.get(name) or adapter.lora_bias.get(name) for name in active):
            raise UsageError("an adapter that is more than a matrix added", allowed="LoRA without DoRA and lora_bias", fix="adapters.merge it first")
        return sum((adapter.get_delta_weight(name).detach() for name in active), torch.zeros((), device=self.own.device))


def pair(base: torch.nn.Module, specialist: torch.nn.Module) -> Pair:
    """Both models' weights (a classification head's and other heads' left out), ready to be compared and exchanged.

    Raises UsageError for models of different architectures and for a vocabulary that shrank: only new rows at its end may come."""
    one, other = body(base), body(specialist)
    _refuse(_kind(one) != _kind(other), f"a base of {_kind(one)} and a specialist of {_kind(other)}")
    before, after, embedding = weights(base), weights(specialist), f"{other.anatomy.embed}.weight"
    held = tuple(f"{path}." for path in (other.anatomy.layers, other.anatomy.embed, other.anatomy.final) if path)
    apart = sorted(name for name in set(before) ^ set(after) if name.startswith(held))
    _refuse(bool(apart), f"{', '.join(apart[:3])} in one model alone")
    for name in set(before) & set(after):
        shapes = [tuple(known[name].shape) for known in (before, after)]
        fits = shapes[0][1:] == shapes[1][1:] and shapes[0] <= shapes[1] if name == embedding else shapes[0] == shapes[1]
        _refuse(not fits, f"{name} of shapes {shapes[0]} and {shapes[1]}")
    same = {name: before.get(name, value).to(value) for name, value in after.items()}
    fresh = len(after[embedding]) - len(same[embedding])
    same[embedding] = torch.cat([same[embedding], after[embedding][len(same[embedding]) :]])
    return Pair(same, after, fresh)


@torch.no_grad()
def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter of a model without its head, adapters' updates added (what no adapter touches is the parameter's own memory).

    Raises UsageError for adapters whose update is no matrix to be added (DoRA, a bias of its own)."""
    return {name: leaf.value() for name, leaf in _leaves(model).items()}


@contextmanager
def swapped(model: torch.nn.Module, new: Weights) -> Iterator[None]:
    """Inside, these weights of `model` are `new`; on any way out every parameter points to the memory that it had. Swaps may be nested.

    Raises UsageError for a weight that the model does not have, or of another shape."""
    leaves = _leaves(model)
    for name, value in new.items():
        if name not in leaves or leaves[name].own.shape != value.shape:
            raise UsageError(f"{name} of shape {tuple(value.shape)}", allowed="weights of this model", fix="take names and shapes from pair()")
    before: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for name, value in new.items():
                before += leaves[name].point(value)
        yield
    finally:
        for parameter, data in reversed(before):
            parameter.data = data


def grafted(onto: Weights, source: Weights, parts: Sequence[Part]) -> dict[str, Tensor]:
    """What to swap so that a model with the weights `onto` has these parts of `source`; weights that are equal already are left out."""
    found: dict[str, Tensor] = {}
    for piece in (piece for part in parts for piece in part.pieces):
        mine, theirs = found.get(piece.tensor, onto[piece.tensor]), source[piece.tensor]
        if not torch.equal(piece.of(mine), piece.of(theirs)):
            found[piece.tensor] = piece.grafted(mine, theirs)
    return found


def signed(known: Pair, part: Part, seed: int) -> dict[str, Tensor]:
    """The control: the specialist's weights moved as far as the base's are away, entry by entry, with signs drawn at random: the same norm in every row
    and column, no direction. Same seed and part, same draw."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{seed} {part.name}".encode()))
    moved = {}
    for name, value in grafted(known.specialist, known.base, [part]).items():
        own = known.specialist[name]
        signs = torch.randint(0, 2, own.shape, generator=draw).to(own) * 2 - 1
        moved[name] = own + signs * (value - own)
    return moved


def _leaves(model: torch.nn.Module) -> dict[str, _Leaf]:
    parts = body(model)
    inner = parts.root.get_submodule(parts.prefix)
    found, modules = dict[str, _Leaf](), dict(inner.named_modules())
    for path, module in modules.items():
        known = plain(path, modules)
        for name, parameter in module.named_parameters(recurse=False) if known is not None else ():
            above, _, last = path.rpartition(".")
            wrapper = modules[above] if name == "weight" and last == "base_layer" else None
            adapted = isinstance(wrapper, LoraLayer | TrainableTokensLayer) and not wrapper.merged and not wrapper.disable_adapters
            found[".".join(filter(None, (known, name)))] = _Leaf(parameter, wrapper if adapted else None)
    return found


def _kind(parts: Body) -> str:
    config = parts.root.config.get_text_config()
    return f"{config.model_type} with {parts.depth} layers of {parts.heads} heads ({parts.groups} groups) and width {config.hidden_size}"


def _refuse(wrong: bool, got: str) -> None:
    if wrong:
        allowed = "two checkpoints of one architecture, the second with the same vocabulary or with new rows at its end"
        raise UsageError(got, allowed=allowed, fix="give the model that the specialist was made of")
