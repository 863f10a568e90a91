"""Heads whose role moved between a base and its specialist, massive activations before and after, and edges of a circuit that grew or shrank.

Shape letters: N rows (of edges: pairs), L layers, H heads, S senders, R readers, E edges that are possible, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats

from knowhow.errors import UsageError
from knowhow.explain.diff.setting import Setting
from knowhow.explain.diff.weights import plain
from knowhow.explain.edge_attribution import EdgeScores
from knowhow.explain.heads import HeadScores, head_scores, kurtosis, massive
from knowhow.maths.statistics import bootstrap, holm, sign_flip
from knowhow.types import Interval

LEAST, ALPHA = 0.05, 0.05


@dataclass(frozen=True, slots=True)
class Moved:
    """One head's score (see heads.head_scores) in both models, means over the rows that have it; `change` with its interval; `p`: sign-flip test over
    clusters; `sure`: p holds at 5% among all heads and scores (Holm 1979) and the change is at least `LEAST`."""

    layer: int
    head: int
    score: str
    before: float
    after: float
    change: Interval
    p: float
    sure: bool


@dataclass(frozen=True, slots=True)
class Roles:
    """`moved`: all heads and scores, the largest change first; `before`, `after`: of each layer and head the role (HeadScores.roles)."""

    moved: tuple[Moved, ...]
    before: tuple[tuple[str, ...], ...]
    after: tuple[tuple[str, ...], ...]

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


@dataclass(frozen=True, slots=True)
class Outliers:
    """By layer: massive activations (heads.massive) of all rows, and the stream's kurtosis (heads.kurtosis), in both models."""

    massive_before: tuple[int, ...]
    massive_after: tuple[int, ...]
    kurtosis_before: tuple[float, ...]
    kurtosis_after: tuple[float, ...]
    kurtosis_change: tuple[Interval, ...]

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


@torch.no_grad()
def roles(known: Setting, *, least: float = LEAST) -> Roles:
    """Scores of every head on the setting's rows in both models. Raises UsageError where `head_scores` does."""
    after = _scores(known)
    with known.as_base():
        before = _scores(known)
    found = []
    for name in after.values:
        old_NLH, new_NLH = (scores.values[name].double().cpu().numpy() for scores in (before, after))
        for layer, head in np.ndindex(old_NLH.shape[1:]):
            old_N, new_N = old_NLH[:, layer, head], new_NLH[:, layer, head]
            there_N = np.isfinite(old_N) & np.isfinite(new_N)
            if there_N.any():
                change_N = np.where(there_N, new_N - old_N, 0.0)
                p = sign_flip(np.bincount(known.clusters, weights=change_N), seed=known.seed)
                change = known.sure(np.where(there_N, new_N - old_N, np.nan))
                found.append(Moved(layer, head, name, float(old_N[there_N].mean()), float(new_N[there_N].mean()), change, p, False))
    holds = holm([one.p for one in found], level=ALPHA)
    marked = [replace(one, sure=held and abs(one.change.value) >= least) for one, held in zip(found, holds, strict=True)]
    return Roles(tuple(sorted(marked, key=lambda one: -abs(one.change.value))), before.roles(), after.roles())


@torch.no_grad()
def outliers(known: Setting) -> Outliers:
    """Massive activations and kurtosis of the streams of both models."""
    counts, tails = [], []
    for passed in (known.base, known.specialist):
        recordings = [
            replace(recorded, stream=streams, inputs={**recorded.inputs, "attention_mask": mask_BT})
            for recorded, streams, mask_BT in zip(known.bench.recordings, passed.streams, known.bench.masks, strict=True)
        ]
        found = [one.layer for recorded in recordings for one in massive(recorded)]
        counts.append(tuple(found.count(layer) for layer in range(known.bench.parts.depth)))
        tails.append(known.bench.in_order([kurtosis(recorded) for recorded in recordings]).double().cpu().numpy())
    change = tuple(known.sure(after_N - before_N) for before_N, after_N in zip(tails[0].T, tails[1].T, strict=True))
    return Outliers(*counts, *(tuple(tail.mean(0).tolist()) for tail in tails), change)


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge: its share of all edges' absolute scores in both models, and the change of that share with its interval over pairs."""

    sender: str
    reader: str
    before: float
    after: float
    change: Interval


@dataclass(frozen=True, slots=True)
class Circuits:
    """How alike two models' edges are. `correlation`: Spearman's over all possible edges' absolute mean scores; `overlap`: Jaccard of the `top` edges;
    `overlap_random`: its mean when edges are shuffled, `p` the share of shuffles that reach it; `ceiling`, `overlap_ceiling`: both numbers between halves
    of the pairs within one model (the mean over both models), which is all that two equal models would reach with half as many pairs."""

    correlation: Interval
    ceiling: float
    top: int
    overlap: Interval
    overlap_ceiling: float
    overlap_random: float
    p: float
    grew: tuple[Edge, ...]
    shrank: tuple[Edge, ...]

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


def circuits(base: EdgeScores, specialist: EdgeScores, *, top: int = 50, most: int = 10, draws: int = 1000, shuffles: int = 1000, seed: int = 0) -> Circuits:
    """Edge scores of both models for the same pairs (edge_attribution; for the base under the specialist's head inside `Setting.as_base`).

    Scores are compared as shares of their sum, so the metric's scale does not matter. `top`: edges of a circuit; `most`: how many of those that grew and
    shrank most are listed. Raises UsageError for scores of different edges or pairs, and for `top` beyond the number of edges."""
    if (base.senders, base.readers) != (specialist.senders, specialist.readers) or base.scores.shape != specialist.scores.shape:
        got = f"edges of {tuple(base.scores.shape)} and {tuple(specialist.scores.shape)}"
        raise UsageError(got, allowed="the same senders, readers and pairs", fix="ask both models about the same pairs")
    where = base.possible.nonzero().tolist()
    if not 1 <= top < len(where):
        raise UsageError(f"the top {top} of {len(where)} edges", allowed=f"1 to {len(where) - 1}")
    both = [scores.scores[base.possible].T.double().cpu().numpy() for scores in (base, specialist)]
    pairs_N = np.arange(len(both[0]))
    # edge scores vary by orders of magnitude: a draw's circuit is found anew each time
    alike = [bootstrap(partial(_alike, both[0], both[1], top, which), pairs_N, draws=min(draws, 200), seed=seed) for which in (0, 1)]
    ceilings = np.array([_halves(one_NE, top, seed) for one_NE in both])
    strong = [np.abs(one_NE.mean(0)) for one_NE in both]
    chosen = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in strong]
    random = np.random.Generator(np.random.PCG64(seed))
    by_chance = np.array([_jaccard(chosen[0], set(random.choice(len(where), top, replace=False).tolist())) for _ in range(shuffles)])
    p = float(((by_chance >= _jaccard(*chosen)).sum() + 1) / (shuffles + 1))
    change_E = strong[1] / max(strong[1].sum(), 1e-300) - strong[0] / max(strong[0].sum(), 1e-300)
    order = np.argsort(change_E, kind="stable")
    names = [(base.senders[sender], base.readers[reader]) for sender, reader in where]
    listed = [[_edge(names[at], both, at, draws, seed) for at in some.tolist()] for some in (order[::-1][:most], order[:most])]
    grew, shrank = (tuple(edge for edge in edges if edge.change.value * sign > 0) for edges, sign in zip(listed, (1, -1)))
    return Circuits(alike[0], float(ceilings[:, 0].mean()), top, alike[1], float(ceilings[:, 1].mean()), float(by_chance.mean()), p, grew, shrank)


def _scores(known: Setting) -> HeadScores:
    made = known.bench
    found = [
        head_scores(made.model, {"input_ids": recorded.inputs["input_ids"], "attention_mask": mask_BT}).values
        for recorded, mask_BT in zip(made.recordings, made.masks, strict=True)
    ]
    return HeadScores({name: made.in_order([values[name] for values in found]) for name in found[0]})


def _jaccard(first: set[int], second: set[int]) -> float:
    return len(first & second) / len(first | second)


def _alike(first_NE: np.ndarray, second_NE: np.ndarray, top: int, which: int, weights_N: np.ndarray) -> float:
    """0: Spearman's correlation of two models' absolute weighted mean scores; 1: Jaccard of their top edges."""
    strong = [np.abs(weights_N @ one_NE) for one_NE in (first_NE, second_NE)]
    if which == 0:
        return float(stats.spearmanr(*strong).statistic)
    return _jaccard(*(set(np.argpartition(-values, top)[:top].tolist()) for values in strong))


def _halves(one_NE: np.ndarray, top: int, seed: int, times: int = 20) -> tuple[float, float]:
    """Both numbers of `_alike` between random halves of the pairs; NaN for fewer than two."""
    if len(one_NE) < 2:
        return float("nan"), float("nan")
    random, found = np.random.Generator(np.random.PCG64(seed)), []
    for _ in range(times):
        mixed_NE, middle = one_NE[random.permutation(len(one_NE))], len(one_NE) // 2
        halves = [part.mean(0, keepdims=True) for part in (mixed_NE[:middle], mixed_NE[middle:])]
        found.append([_alike(*halves, top, which, np.ones(1)) for which in (0, 1)])
    rank, overlap = np.mean(found, 0)
    return float(rank), float(overlap)


def _edge(name: tuple[str, str], both: Sequence[np.ndarray], at: int, draws: int, seed: int) -> Edge:
    totals = [max(float(np.abs(one_NE.mean(0)).sum()), 1e-300) for one_NE in both]

    def change(weights_DN: np.ndarray) -> np.ndarray:
        shares = [np.abs(weights_DN @ one_NE[:, at]) / weights_DN.sum(1) / total for one_NE, total in zip(both, totals, strict=True)]
        return shares[1] - shares[0]

    before, after = (float(abs(one_NE[:, at].mean())) / total for one_NE, total in zip(both, totals, strict=True))
    return Edge(*name, before, after, bootstrap(change, np.arange(len(both[0])), draws=draws, seed=seed, vectorised=True))
