"""What features answer to: where each is strongest, how often it is active, and which labels it goes with; neurons are looked at in the same way.

A basis says what is looked at: the features of a dictionary, or the coordinates of a site, each of which gives two units, one for either sign.
Shape letters: R rows of a data set, B rows of a batch, N vectors, U units (features or signed neurons), K kept examples, C labels, P permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from knowhow.data.batch import Rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary
from knowhow.explain.features.splice import batches, clusters, counted, place, values
from knowhow.maths.running import TopK
from knowhow.maths.statistics import bootstrap, paired_bootstrap
from knowhow.model.loaded import Loaded
from knowhow.model.sites import body
from knowhow.protocols import Progress
from knowhow.types import Interval

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """Vectors of `site`, ND → NU, none below 0; the first `skip` positions of a row do not count."""

    name: str
    site: str
    units: Callable[[Tensor], Tensor]
    skip: int = 0


def features_of(dictionary: Dictionary) -> Basis:
    dictionary.eval()
    return Basis(dictionary.form.name, dictionary.form.reads, dictionary.encode, dictionary.form.skip)


def neurons_of(loaded: Loaded, site: str, *, skip: int = 0) -> Basis:
    """Units 2D of a site: each coordinate's positive part, then each one's negative part. Raises UsageError for a site without a vector per position."""
    place(loaded, site)
    return Basis(f"{site} neurons", site, lambda values_ND: torch.cat([values_ND.clamp_min(0), (-values_ND).clamp_min(0)], 1), skip)


def neurons_beside(loaded: Loaded, dictionary: Dictionary) -> Basis:
    """The MLP neurons of the layer that a dictionary reads (of the first for the embedding, the last behind all)."""
    site = place(loaded, dictionary.form.reads)
    layer = site.layer if site.layer is not None else 0 if site.name == "embed" else body(loaded.model).depth - 1
    return neurons_of(loaded, f"layers.{layer}.mlp.act", skip=dictionary.form.skip)


@dataclass(frozen=True, slots=True)
class Part:
    """A batch's rows by unit: which rows, the largest value of each and the sum over their counted positions, the number of positions where it is active
    (all BU), and how many positions there are (B)."""

    chosen_B: np.ndarray
    peak_BU: Tensor
    sum_BU: Tensor
    active_BU: Tensor
    count_B: Tensor


@torch.no_grad()
def by_row(loaded: Loaded, basis: Basis, rows: Rows, *, batch_tokens: int = 8192, progress: Progress | None = None) -> Iterator[Part]:
    """Every row once, short ones first. Raises UsageError for no rows or too long ones."""
    done = 0
    for chosen, batch in batches(loaded, rows, batch_tokens):
        real_BT = counted(batch, basis.skip)
        units_NU = basis.units(values(loaded, [basis.site], batch)[basis.site][real_BT].float())
        # right padding and skipped first positions leave each row's counted positions side by side
        parts = units_NU.split(real_BT.sum(1).tolist())
        peaks = [part.amax(0) if len(part) else part.new_zeros(part.shape[1]) for part in parts]
        yield Part(
            chosen, torch.stack(peaks), torch.stack([part.sum(0) for part in parts]), torch.stack([(part > 0).sum(0) for part in parts]), real_BT.sum(1)
        )  # fmt: skip
        done += len(chosen)
        if progress is not None:
            progress(f"rows of {basis.name}", done, len(rows))


@dataclass(frozen=True, slots=True)
class Survey:
    """Of each unit: the K rows (K × U) where it is largest, with the values; the share of positions where it is active, its mean where it is active
    (NaN when never), both U. `peak_RU`: its largest value in each row, when asked for; `tokens`: positions looked at."""

    name: str
    rows_KU: Tensor
    values_KU: Tensor
    density_U: Tensor
    mean_U: Tensor
    tokens: int
    peak_RU: np.ndarray | None = None


def survey(loaded: Loaded, basis: Basis, rows: Rows, *, k: int = 10, peaks: bool = False, progress: Progress | None = None) -> Survey:
    """One pass in which nothing is held but the K best rows of each unit; `peaks` holds R × U numbers as well (for `associate`)."""
    best, order = TopK(k), []
    held: list[np.ndarray] = []
    total_U: Tensor = torch.zeros(0)
    active_U, tokens = torch.zeros(0), 0
    for part in by_row(loaded, basis, rows, progress=progress):
        best.update(part.peak_BU)
        order.append(part.chosen_B)
        sums = part.sum_BU.double().sum(0).cpu(), part.active_BU.double().sum(0).cpu()
        total_U, active_U = (sums[0], sums[1]) if not tokens else (total_U + sums[0], active_U + sums[1])
        tokens += int(part.count_B.sum())
        if peaks:
            held.append(part.peak_BU.float().cpu().numpy())
    numbers_R = torch.from_numpy(np.concatenate(order))
    peak_RU = None
    if peaks:
        peak_RU = np.empty((len(rows), len(total_U)), np.float32)
        peak_RU[numbers_R.numpy()] = np.concatenate(held)
    mean_U = torch.where(active_U > 0, total_U / active_U, torch.nan)
    return Survey(basis.name, numbers_R[best.index], best.values, active_U / max(1, tokens), mean_U, tokens, peak_RU)


@dataclass(frozen=True, slots=True)
class Shown:
    """One example: row, position of the largest value, its value, and the tokens round it with the unit's value at each (0 at skipped ones)."""

    row: int
    position: int
    value: float
    tokens: tuple[int, ...]
    values: tuple[float, ...]


@torch.no_grad()
def examples(loaded: Loaded, basis: Basis, rows: Rows, found: Survey, units: Sequence[int], *, window: int = 8) -> dict[int, tuple[Shown, ...]]:
    """The best rows of `units`, strongest first, with up to `window` tokens on either side; rows where a unit is never active are left out.

    Raises UsageError for units that there are not."""
    beyond = [unit for unit in units if not 0 <= unit < found.values_KU.shape[1]]
    if beyond:
        raise UsageError(f"unit {beyond[0]}", allowed=f"0 to {found.values_KU.shape[1] - 1}")
    wanted = sorted({int(row) for unit in units for row in found.rows_KU[:, unit]})
    codes: dict[int, Tensor] = {}
    sub = _selected(rows, wanted)
    for chosen, batch in batches(loaded, sub, 8192):
        seen_BTD, real_BT = values(loaded, [basis.site], batch)[basis.site], counted(batch, basis.skip)
        for at, row in enumerate(chosen):
            units_TU = basis.units(seen_BTD[at][real_BT[at]].float())[:, list(units)]
            codes[wanted[row]] = torch.cat([units_TU.new_zeros(basis.skip, len(units)), units_TU])
    shown: dict[int, tuple[Shown, ...]] = {}
    for column, unit in enumerate(units):
        made = []
        for row, value in zip(found.rows_KU[:, unit].tolist(), found.values_KU[:, unit].tolist()):
            if value <= 0:
                continue
            line_T = codes[row][:, column]
            at = int(line_T.argmax())
            start, end = max(0, at - window), min(len(line_T), at + window + 1)
            tokens = rows.tokens[rows.offsets[row] + start : rows.offsets[row] + end].tolist()
            made.append(Shown(row, at, float(line_T[at]), tuple(tokens), tuple(line_T[start:end].tolist())))
        shown[unit] = tuple(made)
    return shown


@dataclass(frozen=True, slots=True)
class Association:
    """The unit that goes best with a label, and the best neuron. Both are chosen on one half of the rows and measured on the other: `auc`, `neuron_auc`
    (.5 chance; below it the unit is absent where the label holds), `lead`: the feature's distance from .5 minus the neuron's, rows paired.

    `p_value`: how often the best of all units is as far from .5 with labels permuted (all rows; unit and neuron alike had to be found among many)."""

    label: str
    unit: int
    auc: Interval
    neuron: int
    neuron_auc: Interval
    lead: Interval
    p_value: float
    neuron_p_value: float


def associate(
    features_RU: np.ndarray, neurons_RU: np.ndarray, labels_RC: np.ndarray, names: Sequence[str], rows: Rows, *, permutations: int = 200, seed: int = 0
) -> tuple[Association, ...]:
    """For each label the AUC of each unit's largest value in a row (`Survey.peak_RU`), the best feature beside the best neuron.

    `labels_RC`: 1 where the label holds. Halves and permutations keep groups of rows together. Labels that hold for none or all rows of a half are left out.
    Raises UsageError for tables that do not fit together."""
    if not len(features_RU) == len(neurons_RU) == len(labels_RC) == len(rows) or labels_RC.shape[1:] != (len(names),):
        got = f"features {features_RU.shape}, neurons {neurons_RU.shape}, labels {labels_RC.shape} of {len(rows)} rows, {len(names)} names"
        raise UsageError(got, allowed="one row of each table for each row, one column for each name")
    random, cluster_R = np.random.Generator(np.random.PCG64(seed)), clusters(rows)
    first_R = (random.permutation(cluster_R.max() + 1) % 2 == 0)[cluster_R]
    held_R = (labels_RC > 0.5).astype(np.float64)
    shuffled = np.stack([held_R[random.permutation(len(rows))] for _ in range(permutations)])
    tables = (features_RU, neurons_RU)
    ranks = [rankdata(table, axis=0) for table in tables]
    first = [rankdata(table[first_R], axis=0) for table in tables]
    found = []
    for column, name in enumerate(names):
        if any(len(np.unique(held_R[half, column])) < 2 for half in (first_R, ~first_R)):
            continue
        best = [int(np.abs(auc(rank, held_R[first_R, column]) - 0.5).argmax()) for rank in first]
        p_values = []
        for rank in ranks:
            observed = np.abs(auc(rank, held_R[:, column]) - 0.5).max()
            by_chance_P = np.abs(auc(rank, shuffled[:, :, column].T) - 0.5).max(0)
            p_values.append(float(((by_chance_P >= observed - 1e-12).sum() + 1) / (permutations + 1)))
        one, other = (_weighted(table[~first_R, unit], held_R[~first_R, column]) for table, unit in zip(tables, best))
        units_R = cluster_R[~first_R]
        lead = paired_bootstrap(lambda w: abs(one(w) - 0.5), lambda w: abs(other(w) - 0.5), units_R, draws=500, seed=seed)  # noqa: B023
        intervals = [bootstrap(statistic, units_R, draws=500, seed=seed) for statistic in (one, other)]
        found.append(Association(name, best[0], intervals[0], best[1], intervals[1], lead, *p_values))
    return tuple(found)


def auc(ranks_RU: np.ndarray, held_R: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each unit from its ranks (ties in the middle): U, or UP for several labellings RP (Mann & Whitney 1947)."""
    positive, negative = held_R.sum(0), len(held_R) - held_R.sum(0)
    return (ranks_RU.T @ held_R - positive * (positive + 1) / 2) / (positive * negative)


def _weighted(values_R: np.ndarray, held_R: np.ndarray) -> Callable[[np.ndarray], float]:
    """AUC as a function of row weights; NaN without a row of either kind."""
    levels, level_R = np.unique(values_R, return_inverse=True)

    def statistic(weights_R: np.ndarray) -> float:
        positive = np.bincount(level_R, weights_R * held_R, len(levels))
        negative = np.bincount(level_R, weights_R * (1 - held_R), len(levels))
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum())) if positive.sum() and negative.sum() else float("nan")

    return statistic


def _selected(rows: Rows, wanted: Sequence[int]) -> Rows:
    pieces = [rows.tokens[rows.offsets[row] : rows.offsets[row + 1]] for row in wanted]
    return Rows(np.concatenate(pieces), np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]), [str(row) for row in wanted])
