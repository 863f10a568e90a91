"""Gradient boosting (LightGBM) over log counts of n-grams: the strongest cheap baseline on traces.

Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
from scipy import sparse

from knowhow.evaluate.gold import AnswerKind
from knowhow.evaluate.linear import Loss, Model, Side
from knowhow.evaluate.ngrams import Limits, commonest
from knowhow.protocols import Progress

STAGES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the rounds that are tried on validation."""

MANY = 20
"""Classes from which leaves are held back: where a class has the probability p, one of its leaves steps by 1/p logits, and with many classes that diverges."""

Staged = Callable[[sparse.csr_matrix, int], np.ndarray]
"""(log counts NF, rounds) → answers."""


def fit(train: Side, valid: Side, kind: AnswerKind, classes: int, limits: Limits, *, loss: Loss, seed: int, progress: Progress) -> Model:
    """Trees on log(1 + count) of the commonest `limits.boosted_features` n-grams, rows weighing the root of their copies.

    The number of rounds is the one of `STAGES` with the least `loss` on `valid` (all of them when it is empty): stopping where the NLL is
    best costs macro-F1 on rare classes. Many labels: one model per label. Deterministic for a seed and `limits.threads`."""
    columns_F = commonest(train.counts_NF, limits.boosted_features)

    def features(counts_NF: sparse.csr_matrix) -> sparse.csr_matrix:
        return counts_NF[:, columns_F].log1p()

    train_NF, valid_NF = features(train.counts_NF), features(valid.counts_NF)
    if kind == "many":
        labels = [
            _fit(Side(train_NF, train.gold[:, which], train.weights_N), "one", 2, limits, seed, _part_of(progress, which, classes)) for which in range(classes)
        ]

        def staged(features_NF: sparse.csr_matrix, rounds: int) -> np.ndarray:
            return np.stack([label(features_NF, rounds)[:, 1] for label in labels], 1)
    else:
        staged = _fit(Side(train_NF, train.gold, train.weights_N), kind, classes, limits, seed, _part_of(progress, 0, 1))
    stages = sorted({max(1, round(share * limits.rounds)) for share in STAGES}, reverse=True)
    tried = stages if len(valid.weights_N) else stages[:1]
    rounds = min(tried, key=lambda stage: loss(staged(valid_NF, stage), valid)) if len(tried) > 1 else tried[0]
    return lambda counts_NF: staged(features(counts_NF), rounds)


def _fit(train: Side, kind: AnswerKind, classes: int, limits: Limits, seed: int, tell: Any) -> Staged:
    features_NF, gold_N, weights_N = train.counts_NF, train.gold, train.weights_N
    present = np.unique(gold_N) if kind == "one" else np.zeros(0, dtype=np.int64)
    if len(present) == 1 or not features_NF.shape[1]:
        constant = np.bincount(gold_N, weights_N, classes) / weights_N.sum() if kind == "one" else np.average(gold_N, weights=weights_N)
        return lambda other_NF, rounds: np.repeat(np.asarray(constant)[None], other_NF.shape[0], axis=0)
    targets_N = np.searchsorted(present, gold_N) if kind == "one" else gold_N
    data = lightgbm.Dataset(features_NF, targets_N, weight=np.sqrt(weights_N), params={"verbose": -1})
    booster = lightgbm.train(_settings(kind, len(present), limits, seed), data, limits.rounds, callbacks=[tell(limits.rounds)])

    def answers(other_NF: sparse.csr_matrix, rounds: int) -> np.ndarray:
        given = np.asarray(booster.predict(other_NF, num_iteration=rounds, num_threads=limits.threads))
        if kind == "number":
            return given
        probs_NC = np.zeros((other_NF.shape[0], classes))
        probs_NC[:, present] = np.stack([1 - given, given], 1) if len(present) == 2 else given
        return probs_NC

    return answers


def _settings(kind: AnswerKind, classes: int, limits: Limits, seed: int) -> dict[str, Any]:
    objective: dict[str, Any] = {"objective": "regression"} if kind == "number" else {"objective": "binary"}
    if kind == "one" and classes > 2:
        objective = {"objective": "multiclass", "num_class": classes}
    return {
        **objective,
        "learning_rate": limits.learning_rate,
        "num_leaves": 31,
        "min_data_in_leaf": 5,
        "lambda_l2": 1.0 if classes >= MANY else 0.0,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": limits.threads,
        "seed": seed,
        "verbose": -1,
    }


def _part_of(progress: Progress, which: int, parts: int) -> Callable[[int], Any]:
    """A LightGBM callback that reports rounds as one of several models."""

    def tell(rounds: int) -> Any:
        return lambda environment: progress("lightgbm rounds", which * rounds + environment.iteration + 1, parts * rounds)

    return tell
