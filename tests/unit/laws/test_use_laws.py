"""Laws of builds without an experiment of their own: their numbers at known points."""

from __future__ import annotations

import pytest

from knowhow.laws import light_adaptation, steps_to_target
from knowhow.laws.law import facts
from knowhow.types import Diagnosis, Measurement, Prediction, Trace


def test_the_gap_is_in_proportion_below_the_first_look_and_flat_beyond_the_last() -> None:
    looked = {0.001: 0.1, 0.01: 0.4, 0.1: 0.9}
    assert light_adaptation.foreseen(looked, 0.0005) == pytest.approx(0.05)
    assert light_adaptation.foreseen(looked, 0.01) == pytest.approx(0.4)
    assert light_adaptation.foreseen(looked, 10**-2.5) == pytest.approx(0.2)
    assert light_adaptation.foreseen(looked, 5.0) == pytest.approx(0.9)


@pytest.mark.parametrize(("gap", "label"), [(0.05, "light"), (0.2, "between"), (0.9, "new features")])
def test_what_a_gap_means(gap: float, label: str) -> None:
    assert light_adaptation.label(gap) == label


def pilots(end: float) -> list[Prediction]:
    said = facts({"lr": 1e-3})
    sites = (Measurement("0.001", "pilot.start", 2.0, "nats", 1), Measurement("0.001", "pilot.20", end, "nats", 1))
    return list(steps_to_target.predict(Diagnosis((*said.measurements, *sites), "d")))


def losses(*values: float) -> Trace:
    return Trace(({"step": 0.0, "pilot.start": 2.0}, *({"step": float(10 * (at + 1)), "loss": value} for at, value in enumerate(values))))


def test_half_of_the_loss_is_foreseen_in_proportion_to_the_pilot() -> None:
    (one,) = pilots(1.6)
    assert (one.value, one.low, one.high) == pytest.approx((50.0, 50 / 3, 150.0))
    falling = losses(*[2.0] * 4, *[0.9] * 6)
    (scored,) = steps_to_target.score([one], falling)
    assert scored.verdict == "confirmed"
    assert scored.measured == 90.0


def test_what_is_reached_too_soon_or_never_is_violated() -> None:
    (slow,) = pilots(1.9)
    assert steps_to_target.score([slow], losses(*[0.5] * 8))[0].verdict == "violated"
    (quick,) = pilots(0.5)
    assert steps_to_target.score([quick], losses(*[1.5] * 20))[0].verdict == "violated"
    assert steps_to_target.score([slow], losses(*[1.5] * 20))[0].verdict == "not applicable"


def test_a_pilot_that_learns_nothing_foresees_nothing_within_the_run() -> None:
    (one,) = pilots(1.99)
    assert one.high == steps_to_target.NEVER
    assert steps_to_target.score([one], losses(*[1.9] * 20))[0].verdict == "confirmed"
    assert steps_to_target.score([one], losses(*[0.5] * 20))[0].verdict == "violated"
