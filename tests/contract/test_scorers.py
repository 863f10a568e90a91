"""Every scorer, the day it is born: copies are weights, order of rows is nothing, right answers are best, draws equal loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from knowhow.errors import UsageError
from knowhow.evaluate.gold import take, take_predictions
from knowhow.evaluate.scorers import SCORERS, applicable, named
from knowhow.protocols import Scorer
from knowhow.types import Predictions, Task

N = 60
KINDS = ("one", "many", "number", "text")
NOT_COPIES = {"ece_debiased"}
"""A copy of a row is no new evidence to it, by design; all others count weight 3 as three rows."""


def case(kind: str) -> tuple[Any, Predictions]:
    """Gold answers and a middling model."""
    random = np.random.Generator(np.random.PCG64(3))
    ids = tuple(map(str, range(N)))
    if kind == "one":
        gold = random.integers(0, 4, N)
        logits = random.normal(size=(N, 4)) + 1.5 * np.eye(4)[gold]
        return gold, Predictions("m", ids, probs_NC=np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    if kind == "many":
        gold = random.integers(0, 2, (N, 3))
        return gold, Predictions("m", ids, probs_NC=1 / (1 + np.exp(-random.normal(size=(N, 3)) - 2 * gold + 1)))
    if kind == "number":
        gold = random.normal(size=N).round(1)
        return gold, Predictions("m", ids, values_N=(gold + random.normal(size=N)).round(1), nll_N=random.random(N))
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "us"])
    gold = [" ".join(random.choice(words, 6)) for _ in range(N)]
    texts = tuple(text if random.random() < 0.3 else f"{text[: len(text) // 2]} dog" for text in gold)
    return gold, Predictions("m", ids, texts=texts, nll_N=random.random(N))


def perfect(kind: str, gold: Any, predictions: Predictions) -> Predictions:
    if kind in ("one", "many"):
        sure = np.eye(4)[gold] if kind == "one" else gold
        return replace(predictions, probs_NC=sure * 0.9998 + 0.0001 if kind == "many" else sure * 0.9996 + 0.0001)
    return replace(predictions, values_N=gold, nll_N=np.zeros(N)) if kind == "number" else replace(predictions, texts=tuple(gold), nll_N=np.zeros(N))


BATTERY = [(metric.name, kind) for kind in KINDS for metric in SCORERS.values() if kind in metric.answers]


def test_the_registry_is_complete() -> None:
    promised = "accuracy macro_f1 micro_f1 auc average_precision tpr@1e-2 tpr@1e-3 exact_match nll rouge_l chrf mae rmse r2 spearman ece ece_debiased brier"
    assert set(SCORERS) == set(promised.split())
    assert all(isinstance(scorer, Scorer) and scorer.name == name for name, scorer in SCORERS.items())


@pytest.mark.parametrize(("name", "kind"), BATTERY)
def test_weights_are_copies(name: str, kind: str) -> None:
    gold, predictions = case(kind)
    copies_N = np.random.Generator(np.random.PCG64(1)).integers(0, 4, N)
    rows_N = np.repeat(np.arange(N), copies_N)
    weighted = SCORERS[name](gold, predictions, copies_N)
    assert np.isfinite(weighted)
    assert SCORERS[name](gold, predictions, copies_N * 0.37) == pytest.approx(weighted, abs=1e-9), "only relative weights matter"
    if name not in NOT_COPIES:
        repeated = SCORERS[name](take(gold, rows_N), take_predictions(predictions, rows_N), np.ones(len(rows_N)))
        assert repeated == pytest.approx(weighted, abs=1e-9)


@pytest.mark.parametrize(("name", "kind"), BATTERY)
def test_order_of_rows_is_nothing(name: str, kind: str) -> None:
    gold, predictions = case(kind)
    weights_N = np.random.Generator(np.random.PCG64(1)).random(N)
    rows_N = np.random.Generator(np.random.PCG64(2)).permutation(N)
    shuffled = SCORERS[name](take(gold, rows_N), take_predictions(predictions, rows_N), weights_N[rows_N])
    assert shuffled == pytest.approx(SCORERS[name](gold, predictions, weights_N), abs=1e-9)


@pytest.mark.parametrize(("name", "kind"), BATTERY)
def test_right_answers_are_better(name: str, kind: str) -> None:
    gold, predictions = case(kind)
    scorer = SCORERS[name]
    good, middling = (scorer(gold, answers, np.ones(N)) for answers in (perfect(kind, gold, predictions), predictions))
    assert good > middling if scorer.higher_is_better else good < middling
    if scorer.higher_is_better:
        assert good == pytest.approx(1)
    else:
        assert good == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("name", "kind"), BATTERY)
def test_draws_equal_a_loop(name: str, kind: str) -> None:
    gold, predictions = case(kind)
    weights_DN = np.random.Generator(np.random.PCG64(4)).poisson(1.0, (7, N)).astype(float)
    at_once = SCORERS[name].prepare(gold, predictions)(weights_DN)
    assert at_once.shape == (7,)
    np.testing.assert_allclose(at_once, [SCORERS[name](gold, predictions, weights_N) for weights_N in weights_DN], atol=1e-12)
    laid_out_by_row = np.asfortranarray(weights_DN)
    np.testing.assert_allclose(SCORERS[name].prepare(gold, predictions)(laid_out_by_row), at_once, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), BATTERY)
def test_no_rows_is_undefined_not_an_error(name: str, kind: str) -> None:
    gold, predictions = case(kind)
    assert np.isnan(SCORERS[name](gold, predictions, np.zeros(N)))


def test_defaults_leave_out_what_says_nothing_new() -> None:
    _, predictions = case("one")
    names = [metric.name for metric in applicable(Task("classify", tuple("abcd")), predictions)]
    assert "accuracy" in names
    assert not {"micro_f1", "exact_match", "rouge_l"} & set(names)
    hard = replace(predictions, probs_NC=np.eye(4)[predictions.probs_NC.argmax(1)])
    assert {"nll", "ece"}.isdisjoint(metric.name for metric in applicable(Task("classify", tuple("abcd")), hard))


def test_an_unknown_or_unfitting_metric_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean macro_f1"):
        named("macrof1", "one")
    with pytest.raises(UsageError, match="does not fit this task"):
        named("rouge_l", "one")
