"""Exact activation patching everywhere: what each layer, position and head of one run carries, by swapping it into another.

For each place the value of the source run stands in for that of the base run, and what follows is computed exactly (Vig et al. 2020, arXiv
2004.12265; Meng et al. 2022, arXiv 2202.05262, "causal tracing"). Rows of all layers travel through the blocks together: those patched at layer l
join at layer l, so nothing before a patch is computed again, and in causal models nothing at earlier positions.
Shape letters: B pairs, L layers, P positions, H heads, T tokens, t tokens from the patched one on, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.model.replay import CHANGEABLE, Recording, record
from knowhow.model.sites import Site, find
from knowhow.model.taps import tap
from knowhow.protocols import Progress

Metric = Callable[[torch.Tensor], torch.Tensor]
"""Logits BV at the answer (a classifier's: BC), rows in the order of the inputs → one number per row."""
ROWS = 256
"""The most that run together."""
STREAM = ("resid_pre", "resid_post")


@dataclass(frozen=True, slots=True)
class Sweep:
    """`values`: the metric with each place patched, BLP (BLPH by head); `base` and `source`: unpatched, B; `positions`: P of them."""

    kind: str
    values: torch.Tensor
    base: torch.Tensor
    source: torch.Tensor
    positions: tuple[int, ...]

    @property
    def effect(self) -> torch.Tensor:
        """Share of the way from the base run's metric to the source run's: 0 the patch did nothing, 1 all. NaN where the two runs do not differ."""
        shape = (-1, *[1] * (self.values.ndim - 1))
        base, gap = self.base.view(shape), (self.source - self.base).view(shape)
        return torch.where(gap != 0, (self.values - base) / gap, torch.nan)


@torch.no_grad()
def sweep(
    model: torch.nn.Module,
    base: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    metric: Metric,
    kind: str = "resid_pre",
    positions: Sequence[int] | None = None,
    answer: int = -1,
    progress: Progress | None = None,
) -> Sweep:
    """Patch `source` into `base` at `kind` (resid_pre, resid_post or one of `CHANGEABLE`) of every layer and position.

    `base`, `source`: keyword arguments of the model with input_ids BT of the same shape; `positions`: all unless given; sites that have
    heads: each head alone; `answer`: the position whose logits the metric gets.
    Raises UsageError for inputs of different shapes, a kind without a sweep, positions out of range and values that are not finite."""
    chosen = _positions(base, source, positions)
    if kind not in (*STREAM, *CHANGEABLE):
        raise UsageError(f"a sweep of {kind}", allowed=", ".join((*STREAM, *CHANGEABLE)))
    places = find(model, f"layers.*.{kind}")
    with tap(model, f"layers.*.{kind}") as seen:
        given = model(**source).logits
    recorded = record(model, base)
    heads = places[0].axes.index("heads") if "heads" in places[0].axes else None
    values = [seen[site.name] for site in places]
    count = values[0].shape[heads] if heads is not None else 1
    run = _Wave(recorded, places, values, heads, count, metric, answer)
    found = []
    for done, position in enumerate(chosen):
        if progress is not None:
            progress(f"sweep {kind}", done, len(chosen))
        found.append(run.at(position))
    result = torch.stack(found, 2)
    at = recorded.logits_all if recorded.logits_all.ndim == 2 else recorded.logits_all[:, answer]
    source_at = given if given.ndim == 2 else given[:, answer]
    return Sweep(kind, result if heads is not None else result[..., 0], metric(at), metric(source_at), chosen)


@dataclass(frozen=True)
class _Wave:
    recorded: Recording
    places: Sequence[Site]
    values: Sequence[torch.Tensor]
    heads: int | None
    count: int
    metric: Metric
    answer: int

    def at(self, position: int) -> torch.Tensor:
        """Metric BLH with each layer (and head) patched at one position."""
        recorded, B = self.recorded, self.recorded.stream[0].shape[0]
        start = position if recorded.causal else 0
        depth, together = len(self.places), max(1, ROWS // (B * self.count))
        found = []
        for first in range(0, depth, together):
            layers = range(first, min(first + together, depth))
            wave: torch.Tensor | None = None
            for layer in range(first, depth):
                joined = self._patched_before(layer, position, start) if layer in layers and self.places[0].kind == "resid_pre" else None
                wave = _cat(wave, joined)
                after = recorded.block(layer, wave, start=start) if wave is not None else None
                if layer in layers and self.places[0].kind != "resid_pre":
                    after = _cat(after, self._patched_within(layer, position, start))
                wave = after
            assert wave is not None
            logits = recorded.logits(wave, start=start, position=self.answer)
            found.append(torch.stack([self.metric(part) for part in logits.split(B)]).view(len(layers), self.count, B))
        return torch.cat(found).permute(2, 0, 1)

    def _patched_before(self, layer: int, position: int, start: int) -> torch.Tensor:
        hidden_BtD = self.recorded.stream[layer][:, start:].clone()
        hidden_BtD[:, position - start] = self.values[layer][:, position]
        return hidden_BtD

    def _patched_within(self, layer: int, position: int, start: int) -> torch.Tensor:
        """Rows (heads × B) of the block's output, patched inside or at its end."""
        recorded, site = self.recorded, self.places[layer]
        if site.kind == "resid_post":
            hidden_BtD = recorded.stream[layer + 1][:, start:].clone()
            hidden_BtD[:, position - start] = self.values[layer][:, position]
            return hidden_BtD
        hidden = recorded.stream[layer][:, start:].repeat(self.count, 1, 1)
        change = partial(_swap, self.values[layer], position, start, site.axes.index("positions"), self.heads, self.count)
        return recorded.block(layer, hidden, start=start, changes={site.kind: change})


def _swap(source: torch.Tensor, position: int, start: int, axis: int, heads: int | None, count: int, value: torch.Tensor) -> torch.Tensor:
    """`value` (count × B rows) with one position, in row group h that of head h alone, taken from `source`."""
    B = source.shape[0]
    new = value.clone()
    for head in range(count):
        into, out_of = new[head * B : (head + 1) * B].select(axis, position - start), source.select(axis, position)
        if heads is None:
            into.copy_(out_of)
        else:
            where = heads - (heads > axis)
            into.select(where, head).copy_(out_of.select(where, head))
    return new


def _cat(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    return second if first is None else first if second is None else torch.cat([first, second])


def _positions(base: Mapping[str, Any], source: Mapping[str, Any], positions: Sequence[int] | None) -> tuple[int, ...]:
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (base, source)]
    if shapes[0] != shapes[1]:
        raise UsageError(f"inputs of shapes {shapes[0]} and {shapes[1]}", allowed="a base and a source of the same shape", fix="pair texts of equal length")
    length = shapes[0][1]
    chosen = range(length) if positions is None else positions
    beyond = [position for position in chosen if not -length <= position < length]
    if beyond:
        raise UsageError(f"position {beyond[0]}", allowed=f"{-length} to {length - 1}")
    return tuple(position % length for position in chosen)
