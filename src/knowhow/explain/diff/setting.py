"""A base and its specialist on the same rows, ready to be asked again and again with parts exchanged.

The specialist's own module runs everything: with the base's weights swapped in it is the base under the specialist's head and vocabulary, so a base that
lacks both can be asked the same question. What lies before a changed layer is remembered, not run again.
Shape letters: N rows, B rows of a batch, T tokens, D stream, V vocabulary (a classifier's: its labels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.diff.parts import components
from knowhow.explain.diff.swap import Pair, grafted, pair, swapped
from knowhow.explain.sweep import Metric
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.model.attend import Call, Output, intercepted
from knowhow.model.infer import LOGITS_LIMIT, like_lengths
from knowhow.model.loaded import device_of
from knowhow.model.replay import Recording, record
from knowhow.model.sites import Body, body
from knowhow.model.taps import tap
from knowhow.types import Interval

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """`streams`: by batch and layer what enters each block, and what leaves the last, BTD; `logits` NV at each row's answer, in the order of the rows."""

    streams: tuple[tuple[Tensor, ...], ...]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Patch:
    """Values put in at a site (`kind`) of one block: by batch what comes from elsewhere, and what it becomes with the pass's own: (elsewhere, own) → new."""

    kind: str
    values: tuple[Tensor, ...]
    blend: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Bench:
    """Rows of tokens ready to be asked again and again. `where`: by batch which rows it holds; `ends`: by batch the position of each row's answer, B;
    `short`: the answer needs no other position of the last stream, so the last block need not compute them."""

    model: torch.nn.Module
    parts: Body
    recordings: tuple[Recording, ...]
    where: tuple[tuple[int, ...], ...]
    ends: tuple[Tensor, ...]
    short: bool

    def whole(self, *sites: str) -> tuple[Pass, tuple[dict[str, Tensor], ...]]:
        """A pass through everything with the weights that the model has now, and by batch the values at `sites`."""
        last, found, logits, values = f"layers.{self.parts.depth - 1}.resid_post", [], [], []
        for batch, recorded in enumerate(self.recordings):
            with tap(self.model, "layers.*.resid_pre", last, *sites) as seen:
                whole = self.model(**recorded.inputs).logits
            names = [*(f"layers.{layer}.resid_pre" for layer in range(self.parts.depth)), last]
            found.append(tuple(seen[name] for name in names))
            # the same way to the logits as in every other pass, so that what does nothing differs by nothing
            logits.append(self.answers(batch, self._last(batch, found[-1][-2])) if self.short else whole)
            values.append({name: value for name, value in seen.all().items() if name not in names or name in sites})
        return self._pass(found, logits), tuple(values)

    def onward(self, before: Pass, first: int, patch: Patch | None = None) -> Pass:
        """A pass from block `first` on (-1: everything; the number of blocks: what follows the last), with what `before` has there; `patch` in that block."""
        if first < 0:
            return self.whole()[0]
        found, logits = [], []
        for batch, recorded in enumerate(self.recordings):
            streams = list(before.streams[batch][: first + 1])
            for layer in range(first, self.parts.depth):
                here = patch if layer == first else None
                if self.short and layer == self.parts.depth - 1 and (here is None or here.kind == "attn.z"):
                    streams.append(self._last(batch, streams[-1], here))
                else:
                    inside = {} if here is None else {here.kind: partial(here.blend, here.values[batch])}
                    streams.append(recorded.block(layer, streams[-1], changes=inside))
            found.append(tuple(streams))
            logits.append(self.answers(batch, streams[-1]))
        return self._pass(found, logits)

    def answers(self, batch: int, last_BTD: Tensor) -> Tensor:
        """Logits after the last block: a classifier's BC, a language model's BV or BTV."""
        recorded, ends_B = self.recordings[batch], self.ends[batch]
        if recorded.by_position:
            return recorded.logits_at(last_BTD[torch.arange(len(ends_B), device=ends_B.device), ends_B])
        return recorded.logits(last_BTD)

    @property
    def masks(self) -> list[Tensor]:
        """By batch which tokens are no padding, BT."""
        widths = [recorded.inputs["input_ids"].shape[1] for recorded in self.recordings]
        return [(torch.arange(width, device=ends.device) <= ends[:, None]).long() for width, ends in zip(widths, self.ends, strict=True)]

    def in_order(self, by_batch: Sequence[Tensor]) -> Tensor:
        """Values of the batches' rows, first axis B, in the order of the rows, N."""
        order = torch.tensor([row for rows in self.where for row in rows], device=by_batch[0].device)
        return torch.cat(list(by_batch))[order.argsort()]

    def _last(self, batch: int, hidden_BTD: Tensor, patch: Patch | None = None) -> Tensor:
        """The last block's output where the answers are, zeros elsewhere: keys and values of all positions, everything else of those alone."""
        recorded, ends_B, layer, calls = self.recordings[batch], self.ends[batch], self.parts.depth - 1, list[Call]()
        row_B = torch.arange(len(ends_B), device=ends_B.device)
        attention, block, norm = self.parts.attention(layer), self.parts.block(layer), self.parts.anatomy.norm
        there_B11T = (torch.arange(hidden_BTD.shape[1], device=ends_B.device) <= ends_B[:, None])[:, None, None]

        def keep(call: Call) -> Output:
            calls.append(call)
            return torch.zeros_like(call.query.transpose(1, 2)), None

        def use(call: Call) -> Output:
            mask = there_B11T if call.mask is None else call.mask
            mask = mask & there_B11T if mask.dtype == torch.bool else mask.masked_fill(~there_B11T, torch.finfo(mask.dtype).min)
            z_B1HK, weights = replace(call, key=calls[0].key, value=calls[0].value, mask=mask).run()
            return z_B1HK if patch is None else patch.blend(patch.values[batch][row_B, ends_B][:, None], z_B1HK), weights

        with intercepted(self.parts.root, {attention: keep}):
            attention(block.get_submodule(norm)(hidden_BTD) if norm else hidden_BTD, **recorded.attending[layer])
        given = {name: _at(name, value, row_B, ends_B) for name, value in recorded.arguments[layer].items()}
        with intercepted(self.parts.root, {attention: use}):
            out = block(hidden_BTD[row_B, ends_B][:, None], **given)
        new_BTD = torch.zeros_like(hidden_BTD)
        new_BTD[row_B, ends_B] = (out[0] if isinstance(out, tuple) else out)[:, 0]
        return new_BTD

    def _pass(self, streams: Sequence[tuple[Tensor, ...]], logits: Sequence[Tensor]) -> Pass:
        answered = [value if value.ndim == 2 else value[torch.arange(len(value)), ends] for value, ends in zip(logits, self.ends, strict=True)]
        return Pass(tuple(streams), self.in_order(answered))


def _at(name: str, value: Any, row_B: Tensor, ends_B: Tensor) -> Any:
    """What an argument of a block is for one position of each row alone."""
    if isinstance(value, tuple):
        return tuple(_at(name, part, row_B, ends_B) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim < 2:
        return value[-1:]
    whole = value.expand(len(row_B), *value.shape[1:])
    return whole[row_B, :, ends_B][:, :, None] if name == "attention_mask" and value.ndim == 4 else whole[row_B, ends_B][:, None]


@torch.no_grad()
def bench(model: torch.nn.Module, rows: Sequence[Sequence[int]], *, batch_tokens: int = 2048) -> tuple[Bench, Pass]:
    """Rows of token ids (the answer: a classifier's logits, a language model's at each row's last token) recorded once, like lengths together.

    Raises UsageError for no rows, empty ones, ones longer than the model takes where it says so, and a model in training."""
    if not rows or not all(len(row) for row in rows):
        raise UsageError(f"{len(rows)} rows, the shortest of {min(map(len, rows), default=0)} tokens", allowed="at least one row of at least one token")
    parts, device = body(model), device_of(model)
    pad = parts.root.config.get_text_config().pad_token_id or 0
    room = max(1, min(batch_tokens, LOGITS_LIMIT // parts.root.config.get_text_config().vocab_size))
    recordings, where, ends = [], [], []
    for chosen in like_lengths([len(row) for row in rows], room):
        width = max(len(rows[row]) for row in chosen)
        tokens_BT, mask_BT = torch.full((len(chosen), width), pad), torch.zeros(len(chosen), width, dtype=torch.long)
        for index, row in enumerate(chosen):
            tokens_BT[index, : len(rows[row])], mask_BT[index, : len(rows[row])] = torch.tensor(list(rows[row])), 1
        # a causal model never looks right, so it needs no mask (and attention without one is faster)
        inputs = {"input_ids": tokens_BT.to(device)} | ({} if parts.attention(0).is_causal else {"attention_mask": mask_BT.to(device)})
        recordings.append(record(model, inputs))
        where.append(tuple(chosen.tolist()))
        ends.append(mask_BT.sum(1).to(device) - 1)
    # a decoder's classifier reads the last token that is no padding, so none may look like it
    clear = recordings[0].logits_all.ndim == 2 and all(row[-1] != pad for row in rows)
    short = recordings[0].by_position or (recordings[0].causal and clear)
    made = Bench(model, parts, tuple(recordings), tuple(where), tuple(ends), short)
    ran = made._pass([recorded.stream for recorded in recordings], [recorded.logits_all for recorded in recordings])
    return made, replace(ran, logits=made.onward(ran, parts.depth - 1).logits)


@dataclass(frozen=True, slots=True)
class Setting:
    """Both models on the same rows. `sites`: by batch the base's values at the sites that are transplanted; `clusters` N: which rows belong together."""

    bench: Bench
    known: Pair
    metric: Metric
    specialist: Pass
    base: Pass
    sites: tuple[Mapping[str, Tensor], ...]
    clusters: np.ndarray
    seed: int = 0
    draws: int = 1000

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Inside, the specialist's module is the base with the specialist's head and new rows: any other tool of this folder may be asked about it."""
        with torch.no_grad():
            new = grafted(self.known.specialist, self.known.base, components(self.bench.model))
        with swapped(self.bench.model, new):
            yield

    def score(self, passed: Pass) -> np.ndarray:
        """The metric N. Raises UsageError for one that is not one number per row."""
        found = self.metric(passed.logits)
        if found.shape != (len(self.clusters),):
            raise UsageError(f"a metric of shape {tuple(found.shape)}", allowed=f"one number per row, ({len(self.clusters)},)")
        return found.double().cpu().numpy()

    def sure(self, values_N: np.ndarray) -> Interval:
        """The mean over rows with its bootstrap interval (95%, clusters drawn together)."""
        known_N = np.isfinite(values_N)
        return bootstrap(weighted_mean(values_N[known_N]), self.clusters[known_N], draws=self.draws, seed=self.seed, vectorised=True)


@torch.no_grad()
def setting(
    base: torch.nn.Module, specialist: torch.nn.Module, rows: Sequence[Sequence[int]], metric: Metric, *,
    sites: Sequence[str] = ("attn.z",), clusters: Sequence[Any] | None = None, seed: int = 0,
) -> Setting:  # fmt: skip
    """Both models on rows of token ids of the specialist's vocabulary. `metric`: see `Bench` for the logits; higher is better; `clusters`: rows of one
    cluster (copies, pairs) are drawn together. Raises UsageError where `swap.pair` and `bench` do, and for clusters of another number."""
    if clusters is not None and len(clusters) != len(rows):
        raise UsageError(f"{len(clusters)} clusters for {len(rows)} rows", allowed="one cluster per row")
    known = pair(base, specialist)
    made, passed = bench(specialist, rows)
    groups_N = np.arange(len(rows)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    blank = Setting(made, known, metric, passed, passed, (), groups_N, seed)
    with blank.as_base():
        other, values = made.whole(*(f"layers.*.{kind}" for kind in sites if kind != "resid_post"))
    return replace(blank, base=other, sites=values)
