"""The edge of stability against recurrences that are run, and the gates of the law of stationarity."""

from __future__ import annotations

import math

import pytest

from knowhow.laws import edge_of_stability, fact
from knowhow.laws.law import facts
from knowhow.types import Diagnosis, Trace

RUN = {"lr": 0.1, "momentum": 0.0, "adam": 0.0, "weight_decay": 0.0, "full_batch": 1.0, "steps": 1000.0}


def grows(curvature: float, rate: float, momentum: float, averaged: bool) -> bool:
    """Whether descent on ½ · curvature · x² leaves where it started, by running it."""
    x, velocity = 1.0, 0.0
    for _ in range(4000):
        velocity = momentum * velocity + (1 - momentum if averaged else 1.0) * curvature * x
        x -= rate * velocity
        if abs(x) > 1e6:
            return True
    return False


@pytest.mark.parametrize(("momentum", "adam"), [(0.0, False), (0.9, False), (0.5, False), (0.9, True)])
def test_edge_is_where_descent_stops_to_be_stable(momentum: float, adam: bool) -> None:
    edge = edge_of_stability.edge(0.1, momentum, adam=adam)
    assert not grows(edge * 0.99, 0.1, momentum, adam)
    assert grows(edge * 1.01, 0.1, momentum, adam)
    assert edge_of_stability.ceiling(edge, momentum, adam=adam) == pytest.approx(0.1)


def test_adams_edge_is_the_published_one() -> None:
    assert edge_of_stability.edge(1e-3, 0.9, adam=True) == pytest.approx(38 / 1e-3)


def hovering(late: float, early: float = 4.0, column: str = "sharpness.top") -> Trace:
    return Trace(tuple({"step": float(step), column: early if step < 300 else late} for step in range(1, 1000, 50)))


def verdicts(trace: Trace, diagnosis: Diagnosis) -> list[str]:
    return [one.verdict for one in edge_of_stability.score(edge_of_stability.predict(diagnosis), trace)]


def test_hovering_at_the_edge_is_confirmed_and_beside_it_violated() -> None:
    at = facts(RUN)
    assert verdicts(hovering(20.3), at) == ["confirmed"]
    assert verdicts(hovering(22.0), at) == ["violated"]
    assert verdicts(hovering(12.0, early=21.0), at) == ["violated"]
    assert verdicts(hovering(18.0), at) == ["not applicable"]
    assert [one.verdict for one in edge_of_stability.score(edge_of_stability.half_edge(at), hovering(20.3))] == ["violated"]
    assert [one.verdict for one in edge_of_stability.without_gate(edge_of_stability.predict(at), hovering(12.0))] == ["violated"]


def test_adam_is_read_from_the_preconditioned_column() -> None:
    at = facts(RUN | {"adam": 1.0, "momentum": 0.9})
    assert verdicts(hovering(380.0, column="sharpness.preconditioned"), at) == ["confirmed"]
    assert verdicts(hovering(380.0), at) == ["not applicable"]
    forgetful = edge_of_stability.memoryless(at)
    assert [one.verdict for one in edge_of_stability.score(forgetful, hovering(380.0, column="sharpness.preconditioned"))] == ["violated"]
    assert edge_of_stability.memoryless(facts(RUN)) == ()


def test_edge_is_not_claimed_beyond_full_batches() -> None:
    assert edge_of_stability.predict(facts(RUN | {"full_batch": 0.0})) == ()
    assert edge_of_stability.predict(facts({name: value for name, value in RUN.items() if name != "full_batch"})) == ()
    assert edge_of_stability.predict(facts(RUN | {"weight_decay": 0.1})) == ()


DECAYED = RUN | {"weight_decay": 0.05}


def resting(first: float, second: float, looks: int = 8) -> Trace:
    rows = [{"step": 10.0 * k, "fact.cosine:0": first * k / looks, "fact.cosine:2": second * k / looks} for k in range(1, looks + 1)]
    return Trace(tuple(rows))


def rest(trace: Trace) -> list[str]:
    return [one.verdict for one in fact.score(fact.predict(facts(DECAYED)), trace)]


def test_every_layer_must_rest() -> None:
    assert fact.times(facts(DECAYED)) == pytest.approx(5.0)
    assert rest(resting(0.999, 0.996)) == ["confirmed"]
    assert rest(resting(0.999, 0.99)) == ["violated"]
    assert rest(resting(0.999, 0.999, looks=3)) == ["not applicable"]
    assert rest(Trace(())) == ["not applicable"]
    assert rest(resting(math.nan, 0.99)) == ["not applicable"]
    assert rest(resting(math.inf, math.inf)) == ["not applicable"]


def test_rest_is_claimed_only_where_decay_is_in_the_gradient_and_had_time() -> None:
    assert fact.predict(facts(DECAYED | {"adam": 1.0})) == ()
    assert fact.predict(facts(DECAYED | {"steps": 500.0})) == ()
    assert fact.predict(facts(DECAYED | {"full_batch": 0.0})) == ()
    assert fact.predict(facts(RUN)) == ()
    assert len(fact.predict(facts(DECAYED | {"steps": 100.0, "momentum": 0.9}))) == 1
    assert [one.verdict for one in fact.ansatz(fact.predict(facts(DECAYED)), resting(0.99, 0.99))] == ["not applicable"]
