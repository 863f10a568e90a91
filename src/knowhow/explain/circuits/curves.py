"""How much of a model's answer its circuits keep: faithfulness by size, the areas of its curve, random circuits beside it, and each edge's own share.

Faithfulness of a circuit C is (m(C) − m(∅)) / (m(M) − m(∅)), m being the mean of a metric over the pairs, M the model, ∅ no edges at all: 1 the
circuit does what the model does, 0 no more than nothing; beyond both where it overshoots. Sizes and areas as in MIB (Mueller et al. 2025, arXiv
2504.13151). Shape letters: C circuits, N pairs, D draws, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.graph import Circuit, Graph, alive, mask_of
from knowhow.explain.circuits.run import Runs
from knowhow.explain.sweep import Metric
from knowhow.maths.statistics import Statistic, percentile, ratio, replicates
from knowhow.protocols import Progress
from knowhow.types import Interval

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's sizes: shares of the model's edges."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The metric of C circuits on N pairs: `values` CN, of the model and of no edges N; `clusters` N: pairs of one cluster are drawn together."""

    values: np.ndarray
    model: np.ndarray
    nothing: np.ndarray
    clusters: np.ndarray

    def part(self, rows: slice) -> Measured:
        return Measured(self.values[rows], self.model, self.nothing, self.clusters)

    def statistic(self) -> Statistic:
        """Weights DN → faithfulness CD."""
        gained_CN, whole_N = self.values - self.nothing, self.model - self.nothing
        return lambda weights_DN: ratio(gained_CN @ weights_DN.T, (weights_DN @ whole_N)[None])

    @property
    def faithfulness(self) -> np.ndarray:
        """Of each circuit, C: NaN where model and nothing do not differ."""
        return self.statistic()(np.ones((1, self.values.shape[1])))[:, 0]

    def intervals(self, statistic: Statistic, *, draws: int = 1000, seed: int = 0) -> list[Interval]:
        """One for each value of a statistic, from pairs drawn with replacement."""
        values_C = statistic(np.ones((1, self.values.shape[1])))[:, 0]
        drawn_CD = replicates([statistic], self.clusters, draws=draws, seed=seed)
        count = len(np.unique(self.clusters))
        return [percentile(value, drawn_D, count) for value, drawn_D in zip(values_C, drawn_CD, strict=True)]


def measure(runs: Runs, masks_CSR: torch.Tensor, metric: Metric, clusters: Sequence[str | int] | None = None, progress: Progress | None = None) -> Measured:
    """The metric of circuits, of the model and of nothing. Raises UsageError for clusters that are not one per pair, and where `Runs.values` does."""
    ends = torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)])
    values = runs.values(torch.cat([masks_CSR, ends]), metric, progress).numpy()
    names = np.arange(values.shape[1]) if clusters is None else np.asarray(clusters)
    if len(names) != values.shape[1]:
        raise UsageError(f"{len(names)} clusters", allowed=f"one for each of {values.shape[1]} pairs")
    return Measured(values[:-2], values[-2], values[-1], names)


@dataclass(frozen=True, slots=True)
class Curve:
    """Circuits of growing size: `shares` of the model's edges asked for, `edges` left of these (those on a way from embedding to logits), faithfulness.

    `cpr`: area under the curve (higher is better), `cmd`: area between the curve and 1 (lower is better), over the shares from the first to the last."""

    shares: tuple[float, ...]
    edges: tuple[int, ...]
    faithfulness: tuple[Interval, ...]
    cpr: Interval
    cmd: Interval

    def row(self) -> dict[str, Any]:
        """A record of plain numbers."""
        points = [{"share": s, "edges": n, **_plain(f)} for s, n, f in zip(self.shares, self.edges, self.faithfulness, strict=True)]
        return {"points": points, "cpr": _plain(self.cpr), "cmd": _plain(self.cmd)}


def curve(shares: Sequence[float], edges: Sequence[int], measured: Measured, *, seed: int = 0) -> Curve:
    """The curve of circuits measured in the order of their sizes, with percentile intervals from pairs drawn with replacement (1000 draws)."""
    inner = measured.statistic()

    def all_of(weights_DN: np.ndarray) -> np.ndarray:
        found_CD = inner(weights_DN)
        return np.vstack([found_CD, *areas(shares, found_CD)])

    *points, cpr, cmd = measured.intervals(all_of, seed=seed)
    return Curve(tuple(shares), tuple(edges), tuple(points), cpr, cmd)


def areas(shares: Sequence[float], faithfulness_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(CPR D, CMD D) by the trapezoid rule, as MIB has them: CMD from |1 − faithfulness|, so what overshoots on one side does not pay for the other."""
    return np.trapezoid(faithfulness_CD, shares, axis=0), np.trapezoid(np.abs(1 - faithfulness_CD), shares, axis=0)


@dataclass(frozen=True, slots=True)
class Control:
    """Circuits of the same sizes from the same scores dealt out at random: mean, smallest and largest faithfulness by size, over `curves` of them.

    `p`: how often one of the chosen size, of `draws`, comes as near to 1 as the circuit itself, which is counted in."""

    shares: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    curves: int
    p: float
    draws: int

    def row(self) -> dict[str, Any]:
        points = [{"share": s, "mean": m, "low": a, "high": b} for s, m, a, b in zip(self.shares, self.mean, self.low, self.high, strict=True)]
        return {"points": points, "curves": self.curves, "p": self.p, "draws": self.draws}


def control(shares: Sequence[float], curves_DC: np.ndarray, own: float, drawn_D: np.ndarray) -> Control:
    """From faithfulness of random circuits of all sizes DC, and of the chosen circuit and random ones of its size, D."""
    mean, low, high = (tuple(column_C.tolist()) for column_C in (curves_DC.mean(0), curves_DC.min(0), curves_DC.max(0)))
    return Control(tuple(shares), mean, low, high, len(curves_DC), chance(np.abs(1 - drawn_D) <= abs(1 - own)), len(drawn_D))


def chance(as_good_D: np.ndarray) -> float:
    """p-value of a permutation test: the observed value is one of the draws (Phipson & Smyth 2010)."""
    return float((as_good_D.sum() + 1) / (len(as_good_D) + 1))


@dataclass(frozen=True, slots=True)
class Minimality:
    """How far faithfulness falls when one edge alone is taken out of a circuit: `edges`, `falls` (with intervals over pairs) and `p` of each.

    `random`: the same for edges of the model that the circuit does not have, each added to it and taken out again; `p`: how often such an edge's fall is as
    large in size. `needed`: share of the edges whose fall is larger in size than 95% of the random ones."""

    edges: tuple[tuple[str, str], ...]
    falls: tuple[Interval, ...]
    p: tuple[float, ...]
    random: tuple[float, ...]
    needed: float

    def row(self) -> dict[str, Any]:
        rows = [{"sender": s, "reader": r, "p": p, **_plain(fall)} for (s, r), fall, p in zip(self.edges, self.falls, self.p, strict=True)]
        return {"edges": rows, "random": list(self.random), "needed": self.needed}


def minimality(
    runs: Runs, metric: Metric, circuit: Circuit, *, most: int = 100, draws: int = 100, seed: int = 0,
    clusters: Sequence[str | int] | None = None, progress: Progress | None = None,
) -> Minimality:  # fmt: skip
    """Tests up to `most` edges of a circuit (drawn at random) against up to `draws` random ones (Wang et al. 2023, arXiv 2211.00593, with the random
    edges of Shi et al. 2024, arXiv 2410.13032; these run between parts of the circuit, for others could do nothing).

    An edge whose fall is 0 may still be one of two that stand in for each other. Cost: one circuit per edge, from its reader's layer on.
    Raises UsageError for a circuit without edges."""
    if not circuit.edges or most < 1 or draws < 1:
        raise UsageError(f"a circuit of {len(circuit.edges)} edges, {most} tested against {draws}", allowed="at least 1 of each")
    mask_SR, random = mask_of(circuit.edges, runs.graph), torch.Generator().manual_seed(seed)
    own, others = _drawn(mask_SR.nonzero(), most, random), _drawn(_absent(mask_SR, runs.graph).nonzero(), draws, random)
    masks = mask_SR.repeat(1 + len(own) + len(others), 1, 1)
    for mask, (s, r) in zip(masks[1:], [*own.tolist(), *others.tolist()], strict=True):
        mask[s, r] = ~mask[s, r]
    measured = measure(runs, masks, metric, clusters, progress)
    inner, count = measured.statistic(), len(own)

    def fallen(weights_DN: np.ndarray) -> np.ndarray:
        whole_CD = inner(weights_DN)
        return np.vstack([whole_CD[:1] - whole_CD[1 : 1 + count], whole_CD[1 + count :] - whole_CD[:1]])

    found = measured.intervals(fallen, seed=seed)
    falls, by_chance = found[:count], np.array([fall.value for fall in found[count:]])
    floor = np.quantile(np.abs(by_chance), 0.95) if len(by_chance) else 0.0
    edges = tuple((runs.graph.senders[s], runs.graph.readers[r]) for s, r in own.tolist())
    p = tuple(chance(np.abs(by_chance) >= abs(fall.value)) for fall in falls)
    return Minimality(edges, tuple(falls), p, tuple(by_chance.tolist()), float(np.mean([abs(fall.value) > floor for fall in falls])))


def _absent(mask_SR: torch.Tensor, whole: Graph) -> torch.Tensor:
    """Edges SR that a circuit does not have, between parts that it has."""
    fed_1S, used_1R = alive(mask_SR[None], whole)
    return whole.possible & ~mask_SR & fed_1S[0][:, None] & used_1R[0]


def _drawn(edges_E2: torch.Tensor, most: int, random: torch.Generator) -> torch.Tensor:
    return edges_E2[torch.randperm(len(edges_E2), generator=random)[:most].sort().values]


def _plain(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
