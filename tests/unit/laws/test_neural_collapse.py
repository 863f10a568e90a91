"""Neural collapse: its number, its gates, and what must not pass."""

from __future__ import annotations

from typing import Any

import pytest

from knowhow.laws.law import facts, summed_up
from knowhow.laws.neural_collapse import COLUMNS, MEAN, angles_and_spread, decayed, one_too_many, orthogonal, predict, score
from knowhow.types import Trace

COLLAPSED = {
    "geometry.classes": 5.0, "geometry.width": 64.0, "geometry.least": 40.0, "geometry.balance": 1.0, "geometry.accuracy": 1.0, "geometry.decay": 2e-3,
    "geometry.cosine_mean": -0.25, "geometry.cosine_std": 0.02, "geometry.nc1": 0.01, "geometry.norm_cv": 0.01,
}  # fmt: skip


def trace(**changed: float) -> Trace:
    row = COLLAPSED | {f"geometry.{name}": value for name, value in changed.items()}
    return Trace(({"step": 1, **row, "geometry.accuracy": 0.5}, {"step": 100, **row}, {"step": 1000, **row}))


def test_the_number_is_the_simplex_of_as_many_corners() -> None:
    mean = next(p for p in predict(facts({"classes": 4})) if p.quantity == MEAN)
    assert mean.value == pytest.approx(-1 / 3)
    assert predict(facts({"lr": 1.0})) == ()


def test_a_collapsed_run_confirms_and_wrong_angles_do_not() -> None:
    known = facts({"classes": 5})
    assert summed_up(score(predict(known), trace())) == "confirmed"
    assert len(score(predict(known), trace())) == len(COLUMNS)
    for wrong in (orthogonal, one_too_many):
        assert {one.verdict for one in score(wrong(known), trace())} == {"violated"}
    assert {one.verdict for one in score(angles_and_spread(known), trace(cosine_std=0.2, nc1=0.3))} == {"violated"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"classes": 1.0}, "one class only"),
        ({"classes": 66.0}, "do not fit"),
        ({"balance": 0.5}, "unbalanced"),
        ({"least": 3.0}, "too few"),
        ({"accuracy": 0.99}, "accuracy is 99.0%"),
        ({"decay": 1e-5}, "decay has acted"),
        ({"decay": float("nan")}, "decay has acted"),
    ],
)
def test_each_gate_closes_with_its_reason(changed: dict[str, Any], reason: str) -> None:
    found = score(predict(facts({"classes": 5})), trace(**changed))
    assert {one.verdict for one in found} == {"not applicable"}
    assert all(reason in one.because for one in found)


def test_nothing_is_confirmed_without_numbers() -> None:
    for empty in (Trace(()), Trace(({"step": 1, "loss": 0.1},))):
        assert {one.verdict for one in score(predict(facts({"classes": 5})), empty)} == {"not applicable"}
    nan = float("nan")
    spoilt = score(predict(facts({"classes": 5})), trace(cosine_mean=nan, cosine_std=nan, nc1=nan, norm_cv=nan))
    assert {one.verdict for one in spoilt} == {"violated"}
    assert all(one.because for one in score(predict(facts({"classes": 1})), trace(classes=1.0)))


def test_decay_counts_from_the_last_error_on() -> None:
    looked = [{"step": step, "geometry.accuracy": right, "geometry.decay": 0.1} for step, right in ((1, 1.0), (9, 1.0), (11, 0.9), (21, 1.0), (31, 1.0))]
    assert decayed(looked) == pytest.approx(1.0)
    assert decayed(looked[:2]) == pytest.approx(0.8)
