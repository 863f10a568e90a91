from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from knowhow.evaluate import calibration
from knowhow.evaluate.gold import gold_of
from knowhow.evaluate.scorers import SCORERS
from knowhow.types import Example, Predictions, Task

Model = Callable[..., Predictions]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("stretch", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(stretch: float) -> None:
    random = generator()
    logits_NC = 2 * random.normal(size=(8000, 5))
    gold = (logits_NC + random.gumbel(size=logits_NC.shape)).argmax(1)
    fitted = calibration.fit_temperature(logits_NC * stretch, gold)
    assert fitted["temperature"] == pytest.approx(stretch, rel=0.05)
    assert fitted["nll_after"] <= fitted["nll_before"]
    many = (random.random(logits_NC.shape) < 1 / (1 + np.exp(-logits_NC))).astype(int)
    assert calibration.fit_temperature(logits_NC * stretch, many)["temperature"] == pytest.approx(stretch, rel=0.05)


def test_weights_are_copies() -> None:
    random = generator()
    logits_NC, gold, w = 3 * random.normal(size=(200, 3)), random.integers(0, 3, 200), random.integers(0, 4, 200)
    copies = np.repeat(np.arange(200), w)
    weighted, copied = calibration.fit_temperature(logits_NC, gold, w), calibration.fit_temperature(logits_NC[copies], gold[copies])
    assert weighted["temperature"] == pytest.approx(copied["temperature"], rel=1e-4)


def test_separable_rows_end_at_the_bound_not_at_infinity() -> None:
    fitted = calibration.fit_temperature(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]))
    assert 1 / 51 < fitted["temperature"] < 1 / 20
    assert np.isfinite(fitted["nll_after"])


def test_apply_keeps_the_order_and_calibrates(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 3.0)
    loud = replace(given, logits_NC=given.logits_NC * 5, probs_NC=np.exp(given.logits_NC * 5) / np.exp(given.logits_NC * 5).sum(1, keepdims=True))
    fitted = calibration.fit(loud, examples, task, risk=0.2)
    calm = calibration.apply(loud, fitted, task)
    assert (calm.probs_NC.argmax(1) == loud.probs_NC.argmax(1)).all()
    gold = gold_of(examples, task)
    assert SCORERS["nll"](gold.values, calm, gold.weights_N) < SCORERS["nll"](gold.values, loud, gold.weights_N)
    no_logits = calibration.apply(replace(loud, logits_NC=None), fitted, task)
    np.testing.assert_allclose(no_logits.probs_NC, calm.probs_NC, atol=1e-6)
    hard = Predictions("text", loud.ids, probs_NC=np.eye(3)[loud.probs_NC.argmax(1)])
    assert calibration.apply(hard, fitted, task) is hard


def test_many_labels_round_trip() -> None:
    task = Task("classify", ("a", "b"), many=True)
    random = generator()
    logits_NC = 2 * random.normal(size=(500, 2))
    gold = (random.random((500, 2)) < 1 / (1 + np.exp(-logits_NC))).astype(int)
    rows = [Example(str(i), f"t{i}", label=tuple(np.array(("a", "b"))[row == 1])) for i, row in enumerate(gold)]
    given = Predictions("m", tuple(map(str, range(500))), probs_NC=1 / (1 + np.exp(-3 * logits_NC)), logits_NC=3 * logits_NC)
    fitted = calibration.fit(given, rows, task, risk=0.3)
    assert fitted["temperature"]["temperature"] == pytest.approx(3, rel=0.25)
    report = calibration.report(given, rows, task, fitted)
    assert report["after"]["ece"] < report["before"]["ece"]
    sure = calibration.confidence_of(Predictions("m", ("1",), probs_NC=np.array([[0.9, 0.2]])), task)
    assert sure[0] == pytest.approx(0.9 * 0.8)
    unsure = calibration.confidence_of(Predictions("m", ("1",), probs_NC=np.array([[0.9, 0.2]]), thresholds_C=np.array([0.5, 0.1])), task)
    assert unsure[0] == pytest.approx(0.9 * 0.2), "a label given at a low threshold is a doubtful answer"
    assert len(fitted["thresholds"]) == 2
    assert np.array_equal(calibration.apply(given, fitted, task).thresholds_C, fitted["thresholds"])


def test_report_is_json_and_agrees_with_itself(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 3.0)
    fitted = calibration.fit(given, examples, task, risk=0.3)
    report = json.loads(json.dumps(calibration.report(given, examples, task, fitted)))
    assert sum(bin_["share"] for bin_ in report["reliability"]) == pytest.approx(1)
    assert all(bin_["low"] <= bin_["accuracy"] <= bin_["high"] for bin_ in report["reliability"])
    assert report["risk_coverage"]["coverage"][-1] == pytest.approx(1)
    assert report["abstention"]["threshold"] is not None
    kept = calibration.answered(calibration.apply(given, fitted, task), fitted, task)
    assert report["abstention"]["test_coverage"] == pytest.approx(np.average(kept, weights=[example.weight for example in examples]))
    assert report["abstention"]["test_answered"] == len({example.prompt for example, answer in zip(examples, kept) if answer})


def test_reliability_interval_counts_clusters() -> None:
    confidence, right = np.full(100, 0.7), (np.arange(100) % 10 < 7).astype(float)
    apart = calibration.reliability(confidence, right, np.ones(100))[0]
    together = calibration.reliability(confidence, right, np.ones(100), np.arange(100) % 10)[0]
    assert apart["n"] == pytest.approx(100)
    assert together["n"] == pytest.approx(10)
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


def test_risk_coverage_by_hand() -> None:
    curve = calibration.risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1, 0, 1]))
    assert curve["coverage"] == [0.25, 0.5, 0.75, 1]
    assert curve["risk"] == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert curve["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    tied = calibration.risk_coverage(np.full(4, 0.5), np.array([1.0, 1, 0, 1]))
    assert (tied["coverage"], tied["risk"], tied["aurc"]) == ([1.0], [0.25], 0.25)
    weighted = calibration.risk_coverage(np.array([0.9, 0.8]), np.array([1.0, 0]), np.array([3.0, 1]))
    assert (weighted["coverage"], weighted["risk"]) == ([0.75, 1.0], [0.0, 0.25])


def test_a_perfect_order_has_no_excess() -> None:
    right = generator().random(4000) < 0.8
    best = calibration.risk_coverage(right + generator(1).random(4000) * 0.5, right)
    assert best["excess"] == pytest.approx(0, abs=2e-3)
    assert calibration.risk_coverage(generator(2).random(4000), right)["excess"] > 0.15
    assert len(best["coverage"]) == 200


def test_abstention_keeps_its_promise() -> None:
    """Over 300 validation sets the true risk at the chosen threshold is above the stated one in at most 10% (+ noise) of them."""
    broken = chosen = 0
    for seed in range(300):
        confidence = generator(seed).uniform(0.5, 1, 300)
        result = calibration.abstention(confidence, (generator(seed + 999).random(300) < confidence).astype(float), risk=0.15, confidence=0.9)
        if result["threshold"] is not None:
            chosen += 1
            broken += 1 - (result["threshold"] + 1) / 2 > 0.15  # mean of U(t, 1) is the true share right
    assert chosen > 150
    assert broken / 300 <= 0.12


def test_copies_buy_no_confidence() -> None:
    confidence, right = np.linspace(0.5, 1, 40), np.ones(40)
    assert calibration.abstention(confidence, right, risk=0.05)["threshold"] is None
    copied = calibration.abstention(np.repeat(confidence, 50), np.repeat(right, 50), np.repeat(np.arange(40), 50), risk=0.05)
    assert copied["threshold"] is None
    assert "always abstain" in copied["guarantee"]
    real = calibration.abstention(np.linspace(0.5, 1, 2000), np.ones(2000), risk=0.05)
    assert real["threshold"] == 0.5
    assert real["coverage"] == 1
    assert real["upper"] < 0.05
    assert "does not hold under shift" in real["guarantee"]


def test_nothing_is_answered_without_a_threshold(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 0.0)
    fitted = calibration.fit(given, examples, task, risk=0.01)
    assert fitted["abstention"]["threshold"] is None
    assert not calibration.answered(given, fitted, task).any()
    report = calibration.report(given, examples, task, fitted)
    assert report["abstention"]["test_coverage"] == 0
