"""Metrics of an order: how well scores put positives before negatives, for all bootstrap draws at once.

Shape letters: N rows, C classes, D draws (weight vectors), G groups of tied scores (best first).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knowhow.maths.statistics import Statistic, ratio
from knowhow.types import Predictions


def macro_over_classes(curve: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Predictions], Statistic]:
    """A ranking metric from positives DG and negatives DG in falling order of score.

    Two classes (one label): of the second label, which is the positive one. More, or many labels: each against the rest, mean over
    those that have positives and negatives in the rows counted."""

    def prepare(gold: np.ndarray, predictions: Predictions) -> Statistic:
        probs_NC = predictions.probs_NC
        classes = [1] if gold.ndim == 1 and probs_NC.shape[1] == 2 else list(range(probs_NC.shape[1]))
        ranked = []
        for which in classes:
            is_positive_N = (gold == which) if gold.ndim == 1 else gold[:, which] == 1
            if is_positive_N.any() and not is_positive_N.all():
                ranked.append(_ranked(probs_NC[:, which], is_positive_N))

        def statistic(weights_DN: np.ndarray) -> np.ndarray:
            if not ranked:
                return np.full(len(weights_DN), np.nan)
            values_CD = np.stack([curve(*groups(weights_DN)) for groups in ranked])
            known_CD = np.isfinite(values_CD)
            return ratio(np.where(known_CD, values_CD, 0.0).sum(0), known_CD.sum(0))

        return statistic

    return prepare


def area_under_roc(positive_DG: np.ndarray, negative_DG: np.ndarray) -> np.ndarray:
    """P(a positive scores above a negative), ties count half (Hanley & McNeil 1982)."""
    before_DG = positive_DG.cumsum(1) - positive_DG / 2
    return ratio(np.einsum("dg,dg->d", negative_DG, before_DG), positive_DG.sum(1) * negative_DG.sum(1))


def average_precision(positive_DG: np.ndarray, negative_DG: np.ndarray) -> np.ndarray:
    """Σ precision · gain in recall, without interpolation."""
    found_DG = positive_DG.cumsum(1)
    precision_DG = ratio(found_DG, found_DG + negative_DG.cumsum(1))
    return ratio((positive_DG * np.nan_to_num(precision_DG)).sum(1), np.where(negative_DG.sum(1) > 0, positive_DG.sum(1), 0.0))


def tpr_at(fpr: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The largest true positive rate of a threshold whose false positive rate is at most `fpr` (no interpolation)."""

    def curve(positive_DG: np.ndarray, negative_DG: np.ndarray) -> np.ndarray:
        found_DG, false_DG = positive_DG.cumsum(1), negative_DG.cumsum(1)
        total_D = negative_DG.sum(1)
        allowed_D = (false_DG <= (fpr + 1e-12) * total_D[:, None]).sum(1)
        best_D = np.where(allowed_D > 0, found_DG[np.arange(len(found_DG)), allowed_D - 1], 0.0)
        return ratio(best_D, np.where(total_D > 0, positive_DG.sum(1), 0.0))

    return curve


def _ranked(scores_N: np.ndarray, is_positive_N: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """weights DN → weights of positives and of negatives per group of equal scores, best first, each DG."""
    order_N = np.argsort(-scores_N, kind="stable")
    starts_G = np.flatnonzero(np.r_[True, np.diff(scores_N[order_N]) != 0])
    sign_N = is_positive_N[order_N].astype(np.float64)

    def groups(weights_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sorted_DN = weights_DN.take(order_N, axis=1)
        positive_DG = np.add.reduceat(sorted_DN * sign_N, starts_G, axis=1)
        return positive_DG, np.add.reduceat(sorted_DN * (1 - sign_N), starts_G, axis=1)

    return groups
