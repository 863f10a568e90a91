"""Whether features do anything, and what training changed in them.

A feature is ablated by taking its own part, value × direction, out of the site that its dictionary writes; everything else, what the dictionary cannot
explain included, stays. Two models are compared feature by feature through one dictionary. Intervals are cluster bootstraps over rows.
Shape letters: R rows, B rows of a batch, N vectors, F features, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import norm

from knowhow.data.batch import Rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary
from knowhow.explain.features.examples import by_row, features_of
from knowhow.explain.features.fidelity import check_width
from knowhow.explain.features.splice import Metric, batches, clusters, counted, run, splice, values
from knowhow.maths.statistics import Statistic, bootstrap, percentile, ratio, resample, weighted_mean
from knowhow.model.loaded import Loaded
from knowhow.protocols import Progress
from knowhow.types import Interval

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Effect:
    """Of taking one feature out: `change` of the metric (mean over all rows; exactly 0 where it is not active) and its size, `strength` (mean of |change|).

    `controls`: other features of like density; `beyond`: strength minus the controls' mean strength, rows paired; `rank`: share of the controls that are at
    least as strong, the feature itself counted with them. `active`: share of rows where the feature is active."""

    feature: int
    change: Interval
    strength: Interval
    beyond: Interval
    rank: float
    active: float
    controls: tuple[int, ...]


@torch.no_grad()
def ablate(
    loaded: Loaded,
    dictionary: Dictionary,
    rows: Rows,
    features: Sequence[int],
    metric: Metric,
    *,
    controls: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Effect, ...]:
    """Ablate each of `features`, and for each `controls` random ones of the like density that were not asked for.

    Only rows where a feature is active are run. Raises UsageError for features that there are not, and fewer other active features than controls."""
    check_width(loaded, dictionary, rows)
    parts = list(by_row(loaded, features_of(dictionary), rows))
    active_RF = np.zeros((len(rows), dictionary.form.features), bool)
    density_F = torch.zeros(dictionary.form.features, dtype=torch.float64)
    for part in parts:
        active_RF[part.chosen_B] = (part.active_BU > 0).cpu().numpy()
        density_F += part.active_BU.double().sum(0).cpu()
    drawn = {feature: _alike(density_F.numpy(), feature, features, controls, seed) for feature in features}
    wanted = list(dict.fromkeys([*features, *(control for some in drawn.values() for control in some)]))
    changes, cluster_R = _changes(loaded, dictionary, rows, wanted, metric, active_RF, progress), clusters(rows)
    found = []
    for feature in features:
        own_R, sizes = changes[feature], [np.abs(changes[control]) for control in drawn[feature]]
        means = [float(np.abs(own_R).mean()), *(float(size.mean()) for size in sizes)]
        stronger = sum(mean >= means[0] for mean in means) / len(means)
        intervals = [
            bootstrap(weighted_mean(column_R), cluster_R, seed=seed, vectorised=True) for column_R in (own_R, np.abs(own_R), np.abs(own_R) - np.mean(sizes, 0))
        ]
        found.append(Effect(feature, *intervals, stronger, float(active_RF[:, feature].mean()), drawn[feature]))
    return tuple(found)


def _alike(density_F: np.ndarray, feature: int, asked: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """`count` features at random among the 4 × `count` nearest in log density."""
    if not 0 <= feature < len(density_F):
        raise UsageError(f"feature {feature}", allowed=f"0 to {len(density_F) - 1}")
    others = np.array([other for other in np.flatnonzero(density_F) if other not in set(asked)])
    if len(others) < count or count < 1:
        raise UsageError(f"{count} controls", allowed=f"1 to {len(others)}, the other features that are ever active here")
    far = np.abs(np.log(density_F[others]) - np.log(max(density_F[feature], 1.0)))
    near = others[np.argsort(far, kind="stable")[: 4 * count]]
    return tuple(int(one) for one in np.random.Generator(np.random.PCG64([seed, feature])).choice(near, count, replace=False))


def _changes(
    loaded: Loaded, dictionary: Dictionary, rows: Rows, wanted: Sequence[int], metric: Metric, active_RF: np.ndarray, progress: Progress | None
) -> dict[int, np.ndarray]:
    """Feature → change of the metric per row, R."""
    form, done = dictionary.form, 0
    found = {feature: np.zeros(len(rows)) for feature in wanted}
    for chosen, batch in batches(loaded, rows, 8192):
        clean_B, real_BT = metric(run(loaded, batch)[0], batch)[0], counted(batch, form.skip)
        read_BTD = values(loaded, [form.reads], batch)[form.reads]
        codes_NF = dictionary.encode(read_BTD[real_BT])[:, list(wanted)]
        for column, feature in enumerate(wanted):
            if not active_RF[chosen, feature].any():
                continue
            part_NE = codes_NF[:, column, None] * dictionary.direction(feature)
            # at an autoencoder's site, what is there less the feature's part; a transcoder writes elsewhere than it reads
            edits = splice(form.writes, form.writes, partial(torch.sub, other=part_NE), real_BT)
            change_B = metric(run(loaded, batch, edits)[0], batch)[0] - clean_B
            hit_B = active_RF[chosen, feature]
            found[feature][chosen[hit_B]] = change_B.double().cpu().numpy()[hit_B]
        done += len(chosen)
        if progress is not None:
            progress(f"ablate {len(wanted)} features", done, len(rows))
    return found


@dataclass(frozen=True, slots=True)
class Shift:
    """One number of each feature, F, in the first and the second model, and second minus first with its 95% limits (each feature by itself)."""

    first: np.ndarray
    second: np.ndarray
    change: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models through one dictionary. `density`: share of positions where a feature is active; `mean`: its mean over all positions.

    `changed`: features whose density differs at a false discovery rate of 5% over all features (Benjamini & Hochberg 1995, normal approximation), the
    largest change first; `gained`: those of them that the first model uses a tenth as often or less. `unexplained`: Σ|x − x̂|² / Σ|x − mean|² of the
    first, of the second, and second minus first."""

    density: Shift
    mean: Shift
    changed: tuple[int, ...]
    gained: tuple[int, ...]
    unexplained: tuple[Interval, Interval, Interval]


@dataclass(frozen=True, slots=True)
class _Side:
    """Sums per row of one model."""

    sum_RF: np.ndarray
    active_RF: np.ndarray
    count_R: np.ndarray
    error_R: np.ndarray
    spread_R: np.ndarray

    def density(self, weights_DR: np.ndarray) -> np.ndarray:
        return ratio(weights_DR @ self.active_RF, (weights_DR @ self.count_R)[:, None])

    def mean(self, weights_DR: np.ndarray) -> np.ndarray:
        return ratio(weights_DR @ self.sum_RF, (weights_DR @ self.count_R)[:, None])

    def unexplained(self, weights_DR: np.ndarray) -> np.ndarray:
        return ratio(weights_DR @ self.error_R, weights_DR @ self.spread_R)


def compare(
    first: Loaded, second: Loaded, dictionary: Dictionary, rows: Rows | tuple[Rows, Rows], *,
    draws: int = 500, seed: int = 0, progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """First (say, the base) and second (the specialist) on the same texts; `rows` are given for each where the tokenizers differ.

    Holds four tables R × F and two D × F of 8 bytes. Raises UsageError for models of another width and different numbers of rows."""
    pair = (rows, rows) if isinstance(rows, Rows) else rows
    if len(pair[0]) != len(pair[1]):
        raise UsageError(f"{len(pair[0])} and {len(pair[1])} rows", allowed="the same texts in the same order for both models")
    for loaded, own in zip((first, second), pair):
        check_width(loaded, dictionary, own)
    one, other = (_side(loaded, dictionary, own, progress) for loaded, own in zip((first, second), pair))
    weights_DR = np.concatenate(list(resample(clusters(pair[0]), draws=draws, seed=seed)))
    density, error_F = _shift(one.density, other.density, weights_DR)
    mean, _ = _shift(one.mean, other.mean, weights_DR)
    changed, n = _discovered(density.change, error_F), len(np.unique(clusters(pair[0])))
    gained = tuple(feature for feature in changed if density.first[feature] <= 0.1 * density.second[feature])
    whole = np.ones((1, len(pair[0])))
    lost = [(float(side.unexplained(whole)[0]), side.unexplained(weights_DR)) for side in (one, other)]
    lost.append((lost[1][0] - lost[0][0], lost[1][1] - lost[0][1]))
    intervals = [percentile(value, values_D, n) for value, values_D in lost]
    return Comparison(density, mean, changed, gained, (intervals[0], intervals[1], intervals[2]))


def _shift(first: Statistic, second: Statistic, weights_DR: np.ndarray) -> tuple[Shift, np.ndarray]:
    """The shift, and the standard error of the change F."""
    whole = np.ones((1, weights_DR.shape[1]))
    a_F, b_F, change_DF = first(whole)[0], second(whole)[0], second(weights_DR) - first(weights_DR)
    low_F, high_F = np.nanquantile(change_DF, [0.025, 0.975], axis=0)
    return Shift(a_F, b_F, b_F - a_F, low_F, high_F), np.nanstd(change_DF, axis=0)


def _discovered(change_F: np.ndarray, error_F: np.ndarray, rate: float = 0.05) -> tuple[int, ...]:
    """Features whose change is no chance (Benjamini & Hochberg 1995), largest change first. A change without any spread counts when it is not 0."""
    size_F = np.divide(np.abs(change_F), error_F, out=np.where(change_F != 0, np.inf, 0.0), where=error_F > 0)
    p_F = 2 * norm.sf(size_F)
    order = np.argsort(p_F, kind="stable")
    passed = np.flatnonzero(p_F[order] <= rate * np.arange(1, len(p_F) + 1) / len(p_F))
    kept = order[: passed[-1] + 1] if len(passed) else order[:0]
    return tuple(int(feature) for feature in kept[np.argsort(-np.abs(change_F[kept]), kind="stable")])


@torch.no_grad()
def _side(loaded: Loaded, dictionary: Dictionary, rows: Rows, progress: Progress | None) -> _Side:
    R, F = len(rows), dictionary.form.features
    side = _Side(np.zeros((R, F)), np.zeros((R, F)), np.zeros(R), np.zeros(R), np.zeros(R))
    for part in by_row(loaded, features_of(dictionary), rows, progress=progress):
        side.sum_RF[part.chosen_B] = part.sum_BU.double().cpu().numpy()
        side.active_RF[part.chosen_B] = part.active_BU.double().cpu().numpy()
        side.count_R[part.chosen_B] = part.count_B.double().cpu().numpy()
    form = dictionary.form
    names, total_E = list(dict.fromkeys((form.reads, form.writes))), torch.zeros(form.outputs, dtype=torch.float64)
    for _, batch in batches(loaded, rows, 8192):
        total_E += values(loaded, names, batch)[form.writes][counted(batch, form.skip)].double().sum(0).cpu()
    mean_E = total_E / side.count_R.sum()
    for chosen, batch in batches(loaded, rows, 8192):
        seen, real_BT = values(loaded, names, batch), counted(batch, form.skip)
        target_NE = seen[form.writes][real_BT].double()
        error_N = (target_NE - dictionary(seen[form.reads][real_BT]).double()).square().sum(1)
        spread_N = (target_NE - mean_E.to(target_NE.device)).square().sum(1)
        row_N = np.repeat(chosen, real_BT.sum(1).cpu().numpy())
        side.error_R[:] += np.bincount(row_N, error_N.cpu().numpy(), R)
        side.spread_R[:] += np.bincount(row_N, spread_N.cpu().numpy(), R)
    return side
