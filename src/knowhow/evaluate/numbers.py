"""Metrics of numbers (regress), as statistics of row weights.

Shape letters: N rows, D draws (weight vectors), G groups of equal values. Gold and `predictions.values_N` are float N.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knowhow.maths.statistics import Statistic, ratio
from knowhow.types import Predictions


def absolute_error(gold: np.ndarray, predictions: Predictions) -> np.ndarray:
    """|error| per row, in the unit of the label."""
    return np.abs(predictions.values_N - gold)


def rmse(gold: np.ndarray, predictions: Predictions) -> Statistic:
    """Root mean squared error, in the unit of the label."""
    square_N = (predictions.values_N - gold) ** 2
    return lambda weights_DN: np.sqrt(ratio(weights_DN @ square_N, weights_DN.sum(1)))


def r2(gold: np.ndarray, predictions: Predictions) -> Statistic:
    """1 − squared error / squared deviation from the mean of the rows counted; NaN where all labels are equal."""
    centred_N = gold - gold.mean()
    features_NF = np.stack([np.ones(len(gold)), centred_N, centred_N**2, (predictions.values_N - gold) ** 2], 1)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        mass_D, first_D, second_D, error_D = (weights_DN @ features_NF).T
        spread_D = second_D - ratio(first_D**2, mass_D)
        return 1 - ratio(error_D, np.where(spread_D > 1e-12 * np.maximum(second_D, 1e-300), spread_D, 0.0))

    return statistic


def spearman(gold: np.ndarray, predictions: Predictions) -> Statistic:
    """Spearman's rank correlation; ties share their mean rank, a row of weight w counts as w copies. NaN where either side is constant."""
    gold_ranks, value_ranks = _ranks(gold), _ranks(predictions.values_N)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        mass_D = weights_DN.sum(1, keepdims=True)
        a_DN, b_DN = gold_ranks(weights_DN) - mass_D / 2, value_ranks(weights_DN) - mass_D / 2
        cross_D, a_D, b_D = ((weights_DN * x).sum(1) for x in (a_DN * b_DN, a_DN**2, b_DN**2))
        return ratio(cross_D, np.sqrt(a_D * b_D))

    return statistic


def _ranks(values_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """weights DN → weighted mean ranks DN (the weight below a row plus half the weight of its equals), whose weighted mean is mass / 2."""
    _, group_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    starts_G = np.flatnonzero(np.r_[True, np.diff(group_N[order_N]) != 0])

    def ranks(weights_DN: np.ndarray) -> np.ndarray:
        mass_DG = np.add.reduceat(weights_DN.take(order_N, axis=1), starts_G, axis=1)
        return (mass_DG.cumsum(1) - mass_DG / 2).take(group_N, axis=1)

    return ranks
