"""Attribution held against what it claims: models are trained again on parts of the training rows.

The linear datamodelling score (LDS; Ilyas et al. 2022, arXiv 2202.00622; Park et al. 2023, arXiv 2303.14186, sec. 2): over random subsets, the rank
correlation between a test row's measured outcome and the sum of the scores of the rows that were kept. Shape letters: N training rows, M test rows,
S subsets, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from knowhow.errors import UsageError
from knowhow.maths.statistics import bootstrap, percentile, weighted_mean
from knowhow.protocols import Progress
from knowhow.types import Finding, Interval

Retrain = Callable[[np.ndarray, int], np.ndarray]
"""(which training rows N, bool; seed) → the outcome of each test row, M: higher is better (minus its loss, or its margin)."""
PERMUTATIONS = 200
BLOCK = 50
"""Draws whose ranks are found at once."""


@dataclass(frozen=True, slots=True)
class Lds:
    """`mean`: over test rows, interval by drawing those anew, as papers give it (too narrow: test rows share the chance of the subsets, so that scores at
    random may seem to differ from 0); `wide`: the same with subsets drawn anew too, which is what another set of retrainings would say; `null`: the same
    scores given to training rows at random (mean and its range); `each` M (NaN where an outcome or a prediction never changes)."""

    mean: Interval
    wide: Interval
    null: Interval
    each: np.ndarray


@dataclass(frozen=True, slots=True)
class Driver:
    """A training row (its number) and its score for the worked example."""

    row: int
    score: float


@dataclass(frozen=True, slots=True)
class Drivers:
    """The rows that helped a worked example most and those that hurt it most, best first; `findings`: what retraining without them showed (empty where
    nobody asked)."""

    helpful: tuple[Driver, ...]
    harmful: tuple[Driver, ...]
    findings: tuple[Finding, ...] = ()


def subsets(rows: int, count: int, *, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """`count` random parts of the training rows, SN bool, each of round(share × N) rows. Subset i hangs on (seed, i) alone.

    Raises UsageError for a share that leaves nothing in or out."""
    size = round(share * rows)
    if not 0 < size < rows or count < 1:
        raise UsageError(f"{count} parts of {size} of {rows} rows", allowed="at least one part that is neither empty nor everything")
    masks_SN = np.zeros((count, rows), bool)
    for at in range(count):
        masks_SN[at, np.random.default_rng([seed, at]).choice(rows, size, replace=False)] = True
    return masks_SN


def outcomes(masks_SN: np.ndarray, retrain: Retrain, *, seeds: Sequence[int] = (0,), progress: Progress | None = None) -> np.ndarray:
    """What came of training on each subset, SM, the mean over `seeds` of training (several where training is noisy). Raises UsageError for no seeds."""
    if not seeds:
        raise UsageError("no seeds", allowed="at least one")
    found = []
    for at, mask_N in enumerate(masks_SN):
        if progress is not None:
            progress("retraining on parts", at, len(masks_SN))
        found.append(np.mean([retrain(mask_N, seed) for seed in seeds], 0))
    return np.stack(found)


def lds(scores_NM: np.ndarray, masks_SN: np.ndarray, outcomes_SM: np.ndarray, *, draws: int = 500, seed: int = 0, confidence: float = 0.95) -> Lds:
    """Spearman's correlation over subsets of Σ scores of the kept rows with the outcome, the mean over test rows: 1 for a perfect linear datamodel, 0 for none.

    Scores are of what helps, outcomes higher when better. Raises UsageError for shapes that do not fit and fewer than three subsets."""
    _fitting(scores_NM, masks_SN, outcomes_SM)
    kept_SN = masks_SN.astype(np.float64)
    each_M = spearman(kept_SN @ scores_NM, outcomes_SM)
    known = np.flatnonzero(np.isfinite(each_M))
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    if not len(known):
        return Lds(nothing, nothing, nothing, each_M)
    over_tests = bootstrap(weighted_mean(each_M[known]), known, draws=draws, seed=seed, confidence=confidence, vectorised=True)
    wide_D = _redrawn(scores_NM, masks_SN, outcomes_SM, known, draws, seed)
    drawn = np.random.default_rng([seed, 2])
    orders = [drawn.permutation(len(scores_NM)) for _ in range(PERMUTATIONS)]
    shuffled_D = _means([(kept_SN @ scores_NM[order], outcomes_SM) for order in orders])
    wide = percentile(over_tests.value, wide_D, len(masks_SN), confidence)
    return Lds(over_tests, wide, percentile(float(np.nanmean(shuffled_D)), shuffled_D, PERMUTATIONS, confidence), each_M)


def lds_difference(
    a_NM: np.ndarray, b_NM: np.ndarray, masks_SN: np.ndarray, outcomes_SM: np.ndarray, *, draws: int = 500, seed: int = 0, confidence: float = 0.95
) -> Interval:  # fmt: skip
    """LDS of a minus LDS of b, both on the same draws of test rows and subsets: whether one attribution foretells retraining better than another.

    Raises UsageError where `lds` does."""
    for scores_NM in (a_NM, b_NM):
        _fitting(scores_NM, masks_SN, outcomes_SM)
    apart_M = np.subtract(*(spearman(masks_SN.astype(np.float64) @ scores_NM, outcomes_SM) for scores_NM in (a_NM, b_NM)))
    known = np.flatnonzero(np.isfinite(apart_M))
    if not len(known):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    apart_D = np.subtract(*(_redrawn(scores_NM, masks_SN, outcomes_SM, known, draws, seed) for scores_NM in (a_NM, b_NM)))
    return percentile(float(apart_M[known].mean()), apart_D, min(len(masks_SN), len(known)), confidence)


def spearman(a_SM: np.ndarray, b_SM: np.ndarray) -> np.ndarray:
    """Rank correlation of each column, M; NaN where a column does not change."""
    ranks = [stats.rankdata(side, axis=0) for side in (a_SM, b_SM)]
    a_SM, b_SM = (side - side.mean(0) for side in ranks)
    below_M = np.sqrt((a_SM**2).sum(0) * (b_SM**2).sum(0))
    found: np.ndarray = np.divide((a_SM * b_SM).sum(0), below_M, out=np.full(a_SM.shape[1], np.nan), where=below_M > 0)
    return found


def drivers(
    scores_N: np.ndarray, *, k: int = 5, retrain: Retrain | None = None, test: int = 0, seeds: Sequence[int] = tuple(range(8)),
    confidence: float = 0.95, progress: Progress | None = None,
) -> Drivers:  # fmt: skip
    """The k rows with the highest scores for one worked example and the k with the lowest; only such as help (above 0) or hurt (below).

    With `retrain`, each claim is put to the test: for every seed the model is trained on all rows, without the k, and without as many random others.
    effect = outcome with them − outcome without them; control = the same for the random rows; interval: effect − control, paired by seed, seeds drawn
    anew. Helpful rows must lose more than random ones (interval above 0), harmful ones less (below 0). Four trainings a seed.
    `test`: the worked example's place in what `retrain` gives. Raises UsageError for k that leaves no others to compare with, and fewer than two seeds."""
    order = np.argsort(-scores_N, kind="stable")
    helpful, harmful = ([int(row) for row in rows if sign * scores_N[row] > 0] for rows, sign in ((order[:k], 1), (order[::-1][:k], -1)))
    named = [tuple(Driver(row, float(scores_N[row])) for row in rows) for rows in (helpful, harmful)]
    if k < 1 or (retrain is not None and (3 * k > len(scores_N) or len(seeds) < 2)):
        raise UsageError(f"the top {k} of {len(scores_N)} rows, {len(seeds)} seeds", allowed="k from 1, at most a third of the rows, at least two seeds")
    if retrain is None:
        return Drivers(named[0], named[1])
    sides = [("helped", helpful, 1), ("hurt", harmful, -1)]
    whole: list[float] = []
    without: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    others: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for done, seed in enumerate(seeds):
        if progress is not None:
            progress("retraining without drivers", done, len(seeds))
        whole.append(float(retrain(np.ones(len(scores_N), bool), seed)[test]))
        random = np.random.default_rng([seed, k]).choice(np.setdiff1d(np.arange(len(scores_N)), helpful + harmful), k, replace=False)
        by_count = {len(rows): float(retrain(_left(len(scores_N), random[: len(rows)]), seed)[test]) for _, rows, _ in sides if rows}
        for name, rows, _ in sides:
            if rows:
                without[name].append(float(retrain(_left(len(scores_N), rows), seed)[test]))
                others[name].append(by_count[len(rows)])
    checked = [_finding(name, rows, sign, (whole, without[name], others[name]), confidence) for name, rows, sign in sides if rows]
    return Drivers(named[0], named[1], tuple(checked))


def _finding(name: str, rows: Sequence[int], sign: int, measured: tuple[list[float], list[float], list[float]], confidence: float) -> Finding:
    whole, without, others = (np.array(values) for values in measured)
    interval = bootstrap(weighted_mean(others - without), np.arange(len(whole)), confidence=confidence, vectorised=True)
    above, below = (interval.low > 0, interval.high < 0) if sign > 0 else (interval.high < 0, interval.low > 0)
    claim = f"The {len(rows)} training rows {', '.join(map(str, rows))} {name} this answer more than as many random ones"
    verdict: Literal["supported", "refuted", "undecided"] = "supported" if above else "refuted" if below else "undecided"
    return Finding(claim, "retraining without them", float((whole - without).mean()), interval, float((whole - others).mean()), verdict)


def _left(count: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    mask_N = np.ones(count, bool)
    mask_N[list(rows)] = False
    return mask_N


def _redrawn(scores_NM: np.ndarray, masks_SN: np.ndarray, outcomes_SM: np.ndarray, known: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The score with test rows (of `known`) and subsets drawn anew, D: the same draws for whatever scores."""
    drawn, kept_SN = np.random.default_rng([seed, 1]), masks_SN.astype(np.float64)
    picks = [(drawn.integers(len(masks_SN), size=len(masks_SN)), drawn.choice(known, len(known))) for _ in range(draws)]
    return _means([(kept_SN[rows] @ scores_NM[:, columns], outcomes_SM[rows][:, columns]) for rows, columns in picks])


def _fitting(scores_NM: np.ndarray, masks_SN: np.ndarray, outcomes_SM: np.ndarray) -> None:
    if masks_SN.shape[1] != len(scores_NM) or outcomes_SM.shape != (len(masks_SN), scores_NM.shape[1]) or len(masks_SN) < 3:
        got = f"scores {scores_NM.shape}, subsets {masks_SN.shape}, outcomes {outcomes_SM.shape}"
        raise UsageError(got, allowed="(N, M), (S, N) and (S, M), at least three subsets")


def _means(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """D: the mean rank correlation of each pair of SM, many ranked at once."""
    found: list[float] = []
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        each_DM = spearman(*(np.concatenate(sides, 1) for sides in zip(*block, strict=True))).reshape(len(block), -1)
        found += [float(each_M[np.isfinite(each_M)].mean()) if np.isfinite(each_M).any() else float("nan") for each_M in each_DM]
    return np.array(found)
