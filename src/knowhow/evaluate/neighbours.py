"""Retrieval without training: the nearest training rows vote. Shape letters: N rows, M training rows, C classes, K neighbours, F features."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from knowhow.evaluate.gold import AnswerKind
from knowhow.evaluate.linear import Loss, Model, Side, tfidf

COUNTS = (1, 4, 16, 64)
CHUNK = 256


def fit(train: Side, valid: Side, kind: AnswerKind, classes: int, *, loss: Loss) -> Model:
    """Votes of the K rows with the largest TF-IDF cosine, weighted by cosine and by their own weight; K is chosen on validation.

    Returns probabilities NC, or numbers N."""
    weighting = tfidf(train.counts_NF)
    known_MF = weighting(train.counts_NF)
    values_MC = np.eye(classes)[train.gold] if kind == "one" else np.asarray(train.gold, np.float64).reshape(known_MF.shape[0], -1)

    def voted(count: int) -> Model:
        return lambda counts_NF: _votes(weighting(counts_NF), known_MF, values_MC, train.weights_N, count, squeeze=kind == "number")

    counts = [count for count in COUNTS if count <= known_MF.shape[0]]
    losses = [loss(voted(count)(valid.counts_NF), valid) for count in counts] if len(valid.weights_N) else [0.0]
    return voted(counts[int(np.argmin(losses))])


def _votes(rows_NF: sparse.csr_matrix, known_MF: sparse.csr_matrix, values_MC: np.ndarray, weights_M: np.ndarray, count: int, *, squeeze: bool) -> np.ndarray:
    parts = []
    for start in range(0, rows_NF.shape[0], CHUNK):
        cosine_NM = (rows_NF[start : start + CHUNK] @ known_MF.T).toarray()
        near_NK = np.argpartition(-cosine_NM, count - 1, axis=1)[:, :count]
        votes_NK = (np.take_along_axis(cosine_NM, near_NK, 1) + 1e-6) * weights_M[near_NK]
        parts.append((votes_NK[..., None] * values_MC[near_NK]).sum(1) / votes_NK.sum(1, keepdims=True))
    found = np.concatenate(parts)
    return found[:, 0] if squeeze else found
