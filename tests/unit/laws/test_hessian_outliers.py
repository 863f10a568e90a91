"""Hessian outliers: the gap is found where it is, and only midway through learning."""

from __future__ import annotations

from knowhow.laws.hessian_outliers import by_outputs, predict, score, typical, widest
from knowhow.laws.law import facts
from knowhow.types import Trace

OUTLIERS = [4.0, 3.5, 3.0, 2.6, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4]


def trace(values: list[float], *losses: float) -> Trace:
    spectrum = {f"hessian.value.{k}": value for k, value in enumerate(values, 1)}
    return Trace(tuple({"step": step, "hessian.loss": loss, **spectrum} for step, loss in enumerate(losses, 1)))


def test_the_widest_ratio_counts_the_outliers() -> None:
    assert widest(OUTLIERS, 10) == 4
    assert widest([9.0, 1.0, 0.99, 0.01], 2) == 1
    assert widest([1.0, -1.0], 5) == 0
    assert typical([[4.0, 1.0, 0.0], [1.0, 4.0, 1.0]]) == [2.0, 2.0]


def test_classes_less_one_confirms_and_other_counts_do_not() -> None:
    known = facts({"classes": 5, "outputs": 12})
    assert [one.verdict for one in score(predict(known), trace(OUTLIERS, 0.4, 0.2))] == ["confirmed"]
    assert [one.verdict for one in score(predict(known), trace([9.0, *OUTLIERS[4:], 0.3], 0.4, 0.2))] == ["violated"]
    long = [*OUTLIERS, *(0.4 - 0.01 * k for k in range(1, 10))]
    assert [one.verdict for one in score(by_outputs(known), trace(long, 0.4, 0.2))] == ["violated"]


def test_the_gate_needs_looks_midway_and_enough_eigenvalues() -> None:
    predictions = predict(facts({"classes": 5}))
    for shut in (trace(OUTLIERS, 0.9, 0.05), trace(OUTLIERS, 0.3), trace(OUTLIERS[:5], 0.3, 0.3), Trace(()), trace([float("nan")] * 11, 0.3, 0.3)):
        (only,) = score(predictions, shut)
        assert only.verdict == "not applicable"
        assert only.because


def test_nothing_is_said_without_classes() -> None:
    assert predict(facts({"lr": 0.1})) == ()
    assert predict(facts({"classes": 2})) == ()
