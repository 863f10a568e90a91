"""Metrics of an order: how well scores put positives before negatives, for all bootstrap draws at once.

Shape letters: N rows, C classes, D draws (weight vectors), P rows that are positive, best score first.
Every metric here needs only what lies at or above each positive row, so one cumulative sum over the sorted rows serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from knowhow.maths.statistics import Statistic, ratio
from knowhow.types import Predictions


@dataclass(frozen=True, slots=True)
class Ranked:
    """Weights seen from each positive row: its own, and of positives and negatives scored above it (strictly) or at least as high. Draws last."""

    weight_PD: np.ndarray
    positives_PD: np.ndarray
    negatives_PD: np.ndarray
    negatives_above_PD: np.ndarray
    all_positives_D: np.ndarray
    all_negatives_D: np.ndarray


Curve = Callable[[Ranked], np.ndarray]


def macro_over_classes(curve: Curve) -> Callable[[np.ndarray, Predictions], Statistic]:
    """A ranking metric, mean over classes.

    Two classes (one label): of the second label, which is the positive one. More, or many labels: each against the rest, mean over
    those that have positives and negatives in the rows counted."""

    def prepare(gold: np.ndarray, predictions: Predictions) -> Statistic:
        several = together((curve,), gold, predictions)
        return lambda weights_DN: several(weights_DN)[0]

    return prepare


def together(curves: tuple[Curve, ...], gold: np.ndarray, predictions: Predictions) -> Callable[[np.ndarray], np.ndarray]:
    """Several ranking metrics from one sort per class: weights DN → MD, one row per curve. NaN where no class has positives and negatives."""
    probs_NC = predictions.probs_NC
    classes = [1] if gold.ndim == 1 and probs_NC.shape[1] == 2 else list(range(probs_NC.shape[1]))
    rankings = []
    for which in classes:
        is_positive_N = (gold == which) if gold.ndim == 1 else gold[:, which] == 1
        if is_positive_N.any() and not is_positive_N.all():
            rankings.append(ranked_by(probs_NC[:, which], is_positive_N))

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        total_MD, known_MD = np.zeros((2, len(curves), len(weights_DN)))
        for ranking in rankings:
            ranked = ranking(weights_DN)
            for row, curve in enumerate(curves):
                value_D = curve(ranked)
                known_MD[row] += np.isfinite(value_D)
                total_MD[row] += np.nan_to_num(value_D)
        return ratio(total_MD, known_MD)

    return statistic


def area_under_roc(ranked: Ranked) -> np.ndarray:
    """P(a positive scores above a negative), ties count half (Hanley & McNeil 1982)."""
    below_PD = ranked.all_negatives_D - (ranked.negatives_PD + ranked.negatives_above_PD) / 2
    return ratio((ranked.weight_PD * below_PD).sum(0), ranked.all_positives_D * ranked.all_negatives_D)


def average_precision(ranked: Ranked) -> np.ndarray:
    """Σ precision · gain in recall, without interpolation."""
    precision_PD = ratio(ranked.positives_PD, ranked.positives_PD + ranked.negatives_PD)
    return ratio((ranked.weight_PD * np.nan_to_num(precision_PD)).sum(0), np.where(ranked.all_negatives_D > 0, ranked.all_positives_D, 0.0))


def tpr_at(fpr: float) -> Curve:
    """The largest true positive rate of a threshold whose false positive rate is at most `fpr` (no interpolation)."""

    def curve(ranked: Ranked) -> np.ndarray:
        allowed_D = (ranked.negatives_PD <= (fpr + 1e-12) * ranked.all_negatives_D).sum(0)
        best_D = np.where(allowed_D > 0, ranked.positives_PD[allowed_D - 1, np.arange(len(allowed_D))], 0.0)
        return ratio(best_D, np.where(ranked.all_negatives_D > 0, ranked.all_positives_D, 0.0))

    return curve


def ranked_by(scores_N: np.ndarray, is_positive_N: np.ndarray) -> Callable[[np.ndarray], Ranked]:
    """Sort the rows once by falling score: weights DN → what each positive row has above it. There must be a positive row."""
    order_N = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    positive_P = np.flatnonzero(is_positive_N[order_N])
    starts_P = np.searchsorted(-sorted_N, -sorted_N[positive_P], side="left")
    ends_P = np.searchsorted(-sorted_N, -sorted_N[positive_P], side="right")
    counts_N = np.r_[0, np.cumsum(is_positive_N[order_N])]

    def ranked(weights_DN: np.ndarray) -> Ranked:
        weights_ND = weights_DN.T.take(order_N, axis=0)
        weight_PD = weights_ND[positive_P]
        positives_PD = _cumulative(weight_PD)
        total_ND = _cumulative(weights_ND)
        found_PD, above_PD = positives_PD[counts_N[ends_P]], positives_PD[counts_N[starts_P]]
        negatives_PD, negatives_above_PD = total_ND[ends_P] - found_PD, total_ND[starts_P] - above_PD
        return Ranked(weight_PD, found_PD, negatives_PD, negatives_above_PD, positives_PD[-1], total_ND[-1] - positives_PD[-1])

    return ranked


def _cumulative(values_ND: np.ndarray) -> np.ndarray:
    """Row n holds the sum of the first n rows: (N + 1) × D."""
    out_ND = np.zeros((len(values_ND) + 1, values_ND.shape[1]))
    np.cumsum(values_ND, axis=0, out=out_ND[1:])
    return out_ND
