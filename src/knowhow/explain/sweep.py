"""Exact activation patching everywhere: what each layer, position and head of one run carries, by swapping it into another.

For each place the value of the source run stands in for that of the base run, and what follows is computed exactly (Vig et al. 2020, arXiv
2004.12265; Meng et al. 2022, arXiv 2202.05262, "causal tracing"). Rows of all layers travel through the blocks together: those patched at layer l
join at layer l, so nothing before a patch is computed again, and in causal models nothing at earlier positions.
Shape letters: B pairs, L layers, P positions, H heads, T tokens, t tokens from the patched one on, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
ROWS, ENOUGH, LOGITS = 256, 64, 1 << 22
"""The most rows that run together, the tokens that a wave should have where it begins, and the most logits that are held at a time."""
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
    run = _Wave(recorded, places, values, heads, count, metric, answer % recorded.stream[0].shape[1])
    at = recorded.logits_all if recorded.logits_all.ndim == 2 else recorded.logits_all[:, answer]
    source_at = given if given.ndim == 2 else given[:, answer]
    B, base_B = len(at), metric(at)
    found = base_B[:, None, None, None].repeat(1, len(places), len(chosen), count)
    # in a causal model nothing behind the answer reaches it
    groups = list(run.groups([p for p in chosen if not recorded.by_position or p <= run.answer]))
    ends = []
    for done, group in enumerate(groups):
        if progress is not None:
            progress(f"sweep {kind}", done, len(groups))
        ends.append(run.ends(group))
    values_R = run.answers(torch.cat(ends)) if ends else base_B[:0]
    for group, part in zip(groups, values_R.split([len(end) for end in ends]), strict=True):
        found[:, :, [chosen.index(position) for position in group]] = part.view(len(places), len(group), count, B).permute(3, 0, 1, 2)
    return Sweep(kind, found if heads is not None else found[..., 0], base_B, metric(source_at), chosen)


@dataclass(frozen=True)
class _Wave:
    recorded: Recording
    places: Sequence[Site]
    values: Sequence[torch.Tensor]
    heads: int | None
    count: int
    metric: Metric
    answer: int

    def groups(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """Positions that run together: enough rows for a matrix product to be worth it, few enough that little is computed in vain."""
        left, length = sorted(positions), self.recorded.stream[0].shape[1]
        while left:
            behind = length - left[0] if self.recorded.causal else length
            size = min(-(-ENOUGH // (behind * self.recorded.stream[0].shape[0] * self.count)), max(1, behind // 4))
            yield left[:size]
            left = left[size:]

    def ends(self, positions: list[int]) -> torch.Tensor:
        """Rows (layers × positions × heads × B) at the answer: the last stream RD of a model that is by position, else logits RV."""
        recorded, B = self.recorded, self.recorded.stream[0].shape[0]
        start = positions[0] if recorded.causal else 0
        depth, together = len(self.places), max(1, ROWS // (B * self.count * len(positions)))
        found = []
        for first in range(0, depth, together):
            layers, wave = range(first, min(first + together, depth)), None
            for layer in range(first, depth):
                before = layer in layers and self.places[0].kind == "resid_pre"
                wave = _cat(wave, self._patched(recorded.stream[layer], layer, positions, start)) if before else wave
                after = None if wave is None else self._last(wave, start) if layer == depth - 1 else recorded.block(layer, wave, start=start)
                if layer in layers and not before:
                    within = self._within(layer, positions, start)
                    after = _cat(after, self._end(within, start) if layer == depth - 1 else within)
                wave = after
            assert wave is not None
            found.append(wave)
        return torch.cat(found)

    def _last(self, wave: torch.Tensor, start: int) -> torch.Tensor:
        """What the last block makes of a wave, at the answer."""
        recorded, layer = self.recorded, len(self.places) - 1
        if recorded.by_position:
            return recorded.block_at(layer, wave, self.answer, start=start)[:, 0]
        return self._end(recorded.block(layer, wave, start=start), start)

    def _end(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        if self.recorded.by_position:
            return hidden[:, self.answer - start]
        return self.recorded.logits(hidden, start=start, position=self.answer)

    def answers(self, ends: torch.Tensor) -> torch.Tensor:
        """The metric, one number per row."""
        B = self.recorded.stream[0].shape[0]
        if not self.recorded.by_position:
            return torch.cat([self.metric(part) for part in ends.split(B)])
        room = max(1, LOGITS // self.recorded.logits_all.shape[-1] // B) * B
        return torch.cat([self.metric(part) for some in ends.split(room) for part in self.recorded.logits_at(some).split(B)])

    def _patched(self, stream_BTD: torch.Tensor, layer: int, positions: list[int], start: int) -> torch.Tensor:
        """Rows (positions × B) of a stream, each patched at its own position."""
        rows = stream_BTD[:, start:].repeat(len(positions), 1, 1)
        return _swap(self.values[layer], positions, start, 1, None, 1, rows)

    def _within(self, layer: int, positions: list[int], start: int) -> torch.Tensor:
        """Rows (positions × heads × B) of the block's output, patched inside or at its end."""
        recorded, site = self.recorded, self.places[layer]
        if site.kind == "resid_post":
            return self._patched(recorded.stream[layer + 1], layer, positions, start)
        hidden = recorded.stream[layer][:, start:].repeat(len(positions) * self.count, 1, 1)
        change = partial(_swap, self.values[layer], positions, start, site.axes.index("positions"), self.heads, self.count)
        return recorded.block(layer, hidden, start=start, changes={site.kind: change})


def _swap(source: torch.Tensor, positions: list[int], start: int, axis: int, heads: int | None, count: int, value: torch.Tensor) -> torch.Tensor:
    """`value` (positions × count × B rows) with, in each group of rows, its position (of its head alone) taken from `source`."""
    B = source.shape[0]
    new = value.clone()
    for group, rows in enumerate(new.split(B)):
        at, head = positions[group // count], group % count
        into, out_of = rows.select(axis, at - start), source.select(axis, at)
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
    return tuple(dict.fromkeys(position % length for position in chosen))
