"""Metrics of texts (generate): ROUGE-L and chrF, written here because a build needs them and their packages are only test references.

Shape letters: N rows, D draws (weight vectors), O n-gram orders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from knowhow.maths.statistics import Statistic, ratio
from knowhow.types import Predictions

ORDERS = 6
BETA = 2.0


def rouge_l_rows(gold: Sequence[str], predictions: Predictions) -> np.ndarray:
    """ROUGE-L F1 per row (Lin 2004, eq. 2–4 with β = 1): longest common subsequence of lower-case alphanumeric words, without stemming."""
    return np.array([_rouge_l(_words(answer), _words(target)) for target, answer in zip(gold, predictions.texts, strict=True)], dtype=np.float64)


def chrf(gold: Sequence[str], predictions: Predictions) -> Statistic:
    """Corpus chrF2, 0 to 1 (Popović 2015): character n-grams of order 1–6 without white space, precision and recall averaged over orders.

    Counts are summed over rows first, as sacrebleu does; an order counts only where both sides have n-grams of it."""
    counts_NF = np.array([_ngram_counts(answer, target) for target, answer in zip(gold, predictions.texts, strict=True)], dtype=np.float64)

    def statistic(weights_DN: np.ndarray) -> np.ndarray:
        sums_DO3 = (weights_DN @ counts_NF).reshape(len(weights_DN), ORDERS, 3)
        answer_DO, target_DO, both_DO = sums_DO3[:, :, 0], sums_DO3[:, :, 1], sums_DO3[:, :, 2]
        used_DO = (answer_DO > 0) & (target_DO > 0)
        orders_D = used_DO.sum(1)
        precision_D = ratio(np.where(used_DO, np.nan_to_num(ratio(both_DO, answer_DO)), 0.0).sum(1), orders_D)
        recall_D = ratio(np.where(used_DO, np.nan_to_num(ratio(both_DO, target_DO)), 0.0).sum(1), orders_D)
        score_D = ratio((1 + BETA**2) * precision_D * recall_D, BETA**2 * precision_D + recall_D)
        return np.where(weights_DN.sum(1) > 0, np.nan_to_num(score_D), np.nan)

    return statistic


def _ngram_counts(answer: str, target: str) -> list[int]:
    """[of the answer, of the target, in both] for each order; where the target has none, the answer's are not held against it (as sacrebleu)."""
    answer, target = "".join(answer.split()), "".join(target.split())
    row: list[int] = []
    for order in range(1, ORDERS + 1):
        of_answer, of_target = _ngrams(answer, order), _ngrams(target, order)
        row += [of_answer.total() if of_target else 0, of_target.total(), (of_answer & of_target).total()]
    return row


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _rouge_l(answer: list[str], target: list[str]) -> float:
    if not answer or not target:
        return 0.0
    common = _longest_common_subsequence(answer, target)
    return 2 * common / (len(answer) + len(target))


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """Bit-parallel (Hyyrö 2004): one big-integer operation per word of `b` instead of a row of the table."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()
