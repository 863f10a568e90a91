"""Metrics of labels and of class probabilities, as statistics of row weights.

Shape letters: N rows, C classes, D draws (weight vectors), F summed features, J bins.
`gold` is int N (one label) or NC 0/1 (many labels; an answer is positive when its probability is at least .5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from knowhow.maths.statistics import Statistic, ratio
from knowhow.types import Predictions

FLOOR = 1e-12
"""Probabilities are held between this and 1 minus this before a logarithm: a sure and wrong answer costs 27.6 nats, not infinity."""


def predicted(predictions: Predictions) -> np.ndarray:
    """One label: the likeliest class of each row, int N; −1 where a row has no probability at all (an answer that is no label)."""
    probs_NC = predictions.probs_NC
    return np.where(np.nansum(probs_NC, axis=1) > 0, np.nan_to_num(probs_NC, nan=-1.0).argmax(1), -1)


def positive(predictions: Predictions) -> np.ndarray:
    """Many labels: NC 0/1, by the model's own thresholds where it has some."""
    thresholds = 0.5 if predictions.thresholds_C is None else predictions.thresholds_C
    return (predictions.probs_NC >= thresholds).astype(np.int64)


def best_thresholds(gold_NC: np.ndarray, probs_NC: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """The probability C from which giving each label has the best F1; half-way between neighbouring rows, one half where no row has the label.

    Chosen on validation rows only."""
    chosen_C = np.full(probs_NC.shape[1], 0.5)
    for c in range(probs_NC.shape[1]):
        order = np.argsort(-probs_NC[:, c], kind="stable")
        probs, hits = probs_NC[order, c], np.cumsum(weights_N[order] * gold_NC[order, c])
        if hits[-1] == 0:
            continue
        f1 = 2 * hits / (np.cumsum(weights_N[order]) + hits[-1])
        last = np.append(probs[1:] < probs[:-1], True)
        at = int(np.where(last, f1, -1.0).argmax())
        chosen_C[c] = (probs[at] + probs[at + 1]) / 2 if at + 1 < len(probs) else probs[at]
    return chosen_C


def class_sums(gold: np.ndarray, predictions: Predictions) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """weights DN → (gold, predicted, both), each DC: the weighted counts that every label metric is made of."""
    classes = predictions.probs_NC.shape[1]
    if gold.ndim == 1:
        gold_NC = np.eye(classes)[gold]
        found_NC = np.vstack([np.eye(classes), np.zeros(classes)])[predicted(predictions)]
    else:
        gold_NC, found_NC = gold.astype(np.float64), positive(predictions).astype(np.float64)
    features_NF = np.hstack([gold_NC, found_NC, gold_NC * found_NC])

    def sums(weights_DN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sums_DF = weights_DN @ features_NF
        return sums_DF[:, :classes], sums_DF[:, classes : 2 * classes], sums_DF[:, 2 * classes :]

    return sums


def correct_rows(gold: Any, predictions: Predictions) -> np.ndarray:
    """0/1 N: is the whole answer right (all labels of a row, or the text up to white space)?"""
    if isinstance(gold, list):
        return np.array([" ".join(a.split()) == " ".join(b.split()) for a, b in zip(gold, predictions.texts, strict=True)], dtype=np.float64)
    if gold.ndim == 1:
        return (predicted(predictions) == gold).astype(np.float64)
    return (positive(predictions) == gold).all(1).astype(np.float64)


def mean_of(rows: Callable[[Any, Predictions], np.ndarray]) -> Callable[[Any, Predictions], Statistic]:
    """A metric that is the weighted mean of a number per row."""

    def prepare(gold: Any, predictions: Predictions) -> Statistic:
        rows_N = rows(gold, predictions)
        return lambda weights_DN: ratio(weights_DN @ rows_N, weights_DN.sum(1))

    return prepare


def macro_f1(gold: np.ndarray, predictions: Predictions) -> Statistic:
    """Mean F1 over the classes that occur in the gold answers of the rows counted (so a draw that missed a class leaves it out).

    A class that never occurs has no recall to measure; its false positives still cost the class they were taken from (one label)."""
    sums = class_sums(gold, predictions)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        gold_DC, found_DC, both_DC = sums(weights_DN)
        f1_DC = ratio(2 * both_DC, gold_DC + found_DC)
        present_DC = gold_DC > 0
        return ratio(np.where(present_DC, f1_DC, 0.0).sum(1), present_DC.sum(1))

    return statistic


def micro_f1(gold: np.ndarray, predictions: Predictions) -> Statistic:
    """F1 of all label decisions pooled."""
    sums = class_sums(gold, predictions)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        gold_DC, found_DC, both_DC = sums(weights_DN)
        return ratio(2 * both_DC.sum(1), gold_DC.sum(1) + found_DC.sum(1))

    return statistic


def of_class(which: int, gold: np.ndarray, predictions: Predictions) -> Statistic:
    """Precision, recall and F1 of one class: weights DN → 3D. Precision is NaN where the class was never answered."""
    is_gold_N = gold == which if gold.ndim == 1 else gold[:, which] == 1
    is_found_N = predicted(predictions) == which if gold.ndim == 1 else positive(predictions)[:, which] == 1
    features_NF = np.stack([is_gold_N, is_found_N, is_gold_N & is_found_N], 1).astype(np.float64)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        gold_D, found_D, both_D = (weights_DN @ features_NF).T
        return np.stack([ratio(both_D, found_D), ratio(both_D, gold_D), ratio(2 * both_D, gold_D + found_D)])

    return statistic


def nll_rows(gold: Any, predictions: Predictions) -> np.ndarray:
    """Nats per row: of the gold label; mean binary cross-entropy over labels (many); for texts what the model itself reported."""
    if isinstance(gold, list) or predictions.probs_NC is None:
        return np.asarray(predictions.nll_N, dtype=np.float64)
    probs_NC = np.clip(predictions.probs_NC.astype(np.float64), FLOOR, 1 - FLOOR)
    if gold.ndim == 1:
        return -np.log(probs_NC[np.arange(len(gold)), gold])
    return -np.where(gold == 1, np.log(probs_NC), np.log1p(-probs_NC)).mean(1)


def brier_rows(gold: np.ndarray, predictions: Predictions) -> np.ndarray:
    """Squared error of the probabilities (Brier 1950): summed over classes, halved for two; mean over labels (many)."""
    probs_NC = predictions.probs_NC.astype(np.float64)
    if gold.ndim == 2:
        return ((probs_NC - gold) ** 2).mean(1)
    rows_N = ((probs_NC - np.eye(probs_NC.shape[1])[gold]) ** 2).sum(1)
    return rows_N / 2 if probs_NC.shape[1] == 2 else rows_N


def confidence_and_outcome(gold: np.ndarray, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """What calibration compares, N×1 or NC: the top class's probability and whether it is right; with many labels every label's."""
    if gold.ndim == 2:
        return predictions.probs_NC.astype(np.float64), gold.astype(np.float64)
    return np.nan_to_num(predictions.probs_NC.astype(np.float64)).max(1, keepdims=True), correct_rows(gold, predictions)[:, None]


def ece(gold: np.ndarray, predictions: Predictions, bins: int = 15) -> Statistic:
    """Expected calibration error: Σ_j share_j · |outcome_j − confidence_j| over 15 bins of equal width (Guo et al. 2017, eq. 3)."""
    sums = _bin_sums(*confidence_and_outcome(gold, predictions), edges=np.linspace(0, 1, bins + 1)[1:-1])

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        mass_DJ, confidence_DJ, outcome_DJ, _ = sums(weights_DN)
        return ratio(np.abs(outcome_DJ - confidence_DJ).sum(1), mass_DJ.sum(1))

    return statistic


def ece_debiased(gold: np.ndarray, predictions: Predictions, bins: int = 15) -> Statistic:
    """Root mean squared calibration error with the bins' sampling noise taken off (Kumar et al. 2019, eq. 4), 15 bins of equal mass.

    The plain error is above 0 even for a perfect model with few rows per bin. A bin's n is Kish's: copies of a row are not new evidence."""
    confidence, outcome = confidence_and_outcome(gold, predictions)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    sums = _bin_sums(confidence, outcome, edges=edges)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        mass_DJ, confidence_DJ, outcome_DJ, squares_DJ = sums(weights_DN)
        rate_DJ, gap_DJ = ratio(outcome_DJ, mass_DJ), ratio(outcome_DJ - confidence_DJ, mass_DJ)
        noise_DJ = ratio(rate_DJ * (1 - rate_DJ), ratio(mass_DJ**2, squares_DJ) - 1)
        square_D = ratio((mass_DJ * np.nan_to_num(gap_DJ**2 - np.nan_to_num(noise_DJ))).sum(1), mass_DJ.sum(1))
        return np.sqrt(np.maximum(square_D, 0.0))

    return statistic


def _bin_sums(confidence: np.ndarray, outcome: np.ndarray, *, edges: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """weights DN → (mass, confidence, outcome, squared mass) summed per bin, each DJ; bins are closed above: edge belongs to the bin below."""
    place = np.searchsorted(edges, confidence, side="left")
    member_NJ = [(place == bin_) for bin_ in range(len(edges) + 1)]
    mass_NJ = np.stack([member.sum(1) for member in member_NJ], 1).astype(np.float64)
    confidence_NJ = np.stack([(member * confidence).sum(1) for member in member_NJ], 1)
    outcome_NJ = np.stack([(member * outcome).sum(1) for member in member_NJ], 1)

    def sums(weights_DN: np.ndarray) -> tuple[np.ndarray, ...]:
        return weights_DN @ mass_NJ, weights_DN @ confidence_NJ, weights_DN @ outcome_NJ, weights_DN**2 @ mass_NJ

    return sums
