"""Counts of word 1–3-grams: the features of the classical baselines.

Shape letters: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from knowhow.model.ngrams import WORD


@dataclass(frozen=True, slots=True)
class Limits:
    """How large the classical models may get. The defaults are full settings; `SMALL` is for demos."""

    tfidf_features: int = 200_000
    boosted_features: int = 5_000
    rounds: int = 200
    learning_rate: float = 0.1
    strengths: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    threads: int = 1


SMALL = Limits(tfidf_features=20_000, boosted_features=2_000, rounds=60, learning_rate=0.2, strengths=(3.0, 30.0))


@dataclass(frozen=True, slots=True)
class Grams:
    vectoriser: CountVectorizer

    def counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """NF counts, columns in the vocabulary's order."""
        return sparse.csr_matrix(self.vectoriser.transform(texts))

    def words(self) -> np.ndarray:
        """Columns that are single words."""
        return np.flatnonzero([" " not in gram for gram in self.vectoriser.get_feature_names_out()])


def fit_grams(texts: Sequence[str], *, longest: int = 3, rare: bool = False) -> tuple[Grams, sparse.csr_matrix]:
    """The n-grams (n ≤ `longest`) that occur in at least two texts (all of them with `rare`, or where none does), and the texts' own counts."""
    for least in (1,) if rare else (2, 1):
        vectoriser = CountVectorizer(token_pattern=WORD, ngram_range=(1, longest), min_df=least, dtype=np.float64)
        try:
            counts_NF = vectoriser.fit_transform(texts)
        except ValueError:  # "empty vocabulary": no n-gram occurs in so many texts
            continue
        return Grams(vectoriser), sparse.csr_matrix(counts_NF)
    empty = Grams(CountVectorizer(token_pattern=WORD, vocabulary=["\0"], dtype=np.float64))
    return empty, empty.counts(texts)


def commonest(counts_NF: sparse.csr_matrix, limit: int) -> np.ndarray:
    """Columns of the `limit` features that occur in most rows, in their own order; the first column wins ties."""
    frequency_F = np.bincount(counts_NF.indices, minlength=counts_NF.shape[1])
    return np.sort(np.argsort(-frequency_F, kind="stable")[:limit])
