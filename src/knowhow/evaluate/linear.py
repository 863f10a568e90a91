"""Linear baselines over n-grams: logistic regression (labels) and ridge (numbers), strength chosen on validation.

Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge

from knowhow.evaluate.gold import AnswerKind
from knowhow.evaluate.ngrams import Limits, commonest

Model = Callable[[sparse.csr_matrix], np.ndarray]
"""counts NF → probabilities NC or numbers N."""


@dataclass(frozen=True, slots=True)
class Side:
    """Counts of n-grams, right answers and copies of one split."""

    counts_NF: sparse.csr_matrix
    gold: Any
    weights_N: np.ndarray


Loss = Callable[[np.ndarray, Side], float]
"""(answers, split) → what validation minimises."""


def fit(train: Side, valid: Side, kind: AnswerKind, classes: int, limits: Limits, *, loss: Loss, presence: bool = False) -> Model:
    """The strength of `limits.strengths` with the least `loss` on `valid` (the middle one when there are no validation rows).

    Features: TF-IDF of 1–3-grams (sublinear, unit length), the commonest `limits.tfidf_features`; with `presence` only which of them
    occur (give it counts of single words and neither order nor number is left). Rows weigh the root of their copies: a row seen a
    thousand times is not a thousand facts."""
    columns_F = commonest(train.counts_NF, limits.tfidf_features)
    weighting = _presence if presence else tfidf(train.counts_NF[:, columns_F])

    def features(counts_NF: sparse.csr_matrix) -> sparse.csr_matrix:
        return weighting(counts_NF[:, columns_F])

    train_NF, valid_NF = features(train.counts_NF), features(valid.counts_NF)
    candidates = limits.strengths if len(valid.weights_N) else (limits.strengths[len(limits.strengths) // 2],)
    best: tuple[float, Model] | None = None
    for strength in candidates:
        model = _fit(train_NF, train, kind, classes, strength)
        lost = loss(model(valid_NF), valid) if len(valid.weights_N) else 0.0
        if best is None or lost < best[0]:
            best = (lost, model)
    chosen = best[1]
    return lambda counts_NF: chosen(features(counts_NF))


def tfidf(counts_NF: sparse.csr_matrix) -> Callable[[sparse.csr_matrix], sparse.csr_matrix]:
    """Sublinear TF-IDF with unit rows, fitted on these counts."""
    transformer = TfidfTransformer(sublinear_tf=True).fit(counts_NF)
    return lambda other_NF: sparse.csr_matrix(transformer.transform(other_NF)) if other_NF.shape[0] else other_NF


def _presence(counts_NF: sparse.csr_matrix) -> sparse.csr_matrix:
    present_NF = counts_NF.copy()
    present_NF.data[:] = 1.0
    return present_NF


def _fit(features_NF: sparse.csr_matrix, train: Side, kind: AnswerKind, classes: int, strength: float) -> Model:
    weights_N = np.sqrt(train.weights_N)
    weights_N = weights_N / weights_N.mean()
    if kind == "number":
        ridge = Ridge(alpha=1.0 / strength, solver="sparse_cg", tol=1e-5).fit(features_NF, train.gold, sample_weight=weights_N)
        return lambda other_NF: np.asarray(ridge.predict(other_NF), dtype=np.float64)
    if kind == "one":
        return _logistic(features_NF, train.gold, weights_N, classes, strength)
    columns = [_logistic(features_NF, train.gold[:, which], weights_N, 2, strength) for which in range(classes)]
    return lambda other_NF: np.stack([column(other_NF)[:, 1] for column in columns], 1)


def _logistic(features_NF: sparse.csr_matrix, gold_N: np.ndarray, weights_N: np.ndarray, classes: int, strength: float) -> Model:
    """Multinomial logistic regression; classes without training rows get probability 0, a single class probability 1."""
    present = np.unique(gold_N)
    if len(present) == 1:
        only = np.eye(classes)[present[0]]
        return lambda other_NF: np.repeat(only[None], other_NF.shape[0], axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at 300 iterations the ranking of strengths has long settled
        model = LogisticRegression(C=strength, max_iter=300, tol=1e-4).fit(features_NF, gold_N, sample_weight=weights_N)

    def probabilities(other_NF: sparse.csr_matrix) -> np.ndarray:
        probs_NC = np.zeros((other_NF.shape[0], classes))
        probs_NC[:, present] = model.predict_proba(other_NF)
        return probs_NC

    return probabilities
