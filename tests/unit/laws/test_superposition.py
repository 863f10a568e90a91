"""Superposition: arrangements and their losses, the phases, and what must not pass."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from knowhow.laws.law import facts
from knowhow.laws.superposition import ANGLES, KEPT, always_shared, arranged, cosines, directions, never_shared, predict, score
from knowhow.types import Diagnosis, Trace


def at(probability: float, decay: float = 0.9) -> Diagnosis:
    return facts({"features": 5, "dims": 2, "probability": probability, "importance_decay": decay})


def trace(kept: int, length: float, turned: float = 0.0) -> Trace:
    unit = np.pad(directions(kept), ((0, 0), (0, 5 - kept)))
    unit[:, 0] = [math.cos(turned), math.sin(turned)]
    gram = unit.T @ unit
    row = {f"superposition.norm.{i}": length if i < kept else 0.01 for i in range(5)}
    row |= {f"superposition.cosine.{i}.{j}": float(gram[i, j]) for i, j in itertools.combinations(range(5), 2)}
    return Trace(({"step": 900, **row}, {"step": 1000, **row}))


def test_the_pentagon_has_the_published_cosines() -> None:
    assert cosines(5) == pytest.approx([-0.80902] * 5 + [0.30902] * 5, abs=1e-5)
    assert cosines(4) == pytest.approx([-1, -1, 0, 0, 0, 0], abs=1e-12)
    assert cosines(2) == pytest.approx([0], abs=1e-12)


def test_sparser_features_share_more() -> None:
    kept = [next(p.value for p in predict(at(probability)) if p.quantity == KEPT) for probability in (1.0, 0.3, 0.05)]
    assert kept == [2, 4, 5]


def test_the_least_loss_is_below_what_one_length_and_no_bias_cost() -> None:
    """At first order in p: .955 p/3 for unit directions without bias (the page's first bound), and opposite pairs cost only the dropped feature."""
    p = 1e-3
    assert arranged(5, 5, p, 1.0).loss < 0.955 * p / 3
    assert arranged(4, 5, p, 1.0).loss == pytest.approx(p / 3, rel=0.02)
    assert arranged(2, 5, p, 1.0).loss == pytest.approx(3 * (p / 3 - p * p / 4))


def test_an_arrangement_as_predicted_confirms_and_others_do_not() -> None:
    for probability, kept in ((1.0, 2), (0.3, 4), (0.05, 5)):
        length = arranged(kept, 5, probability, 0.9).length
        assert [one.verdict for one in score(predict(at(probability)), trace(kept, length))] == ["confirmed"] * 3
        other = {2: 4, 4: 5, 5: 2}[kept]
        wrong = {one.prediction.quantity: one.verdict for one in score(predict(at(probability)), trace(other, length))}
        assert wrong[KEPT] == wrong[ANGLES] == "violated"
    bent = {one.prediction.quantity: one.verdict for one in score(predict(at(0.05)), trace(5, 1.13, turned=0.05))}
    assert bent[ANGLES] == "violated"
    assert bent[KEPT] == "confirmed"


def test_the_controls_speak_only_where_they_differ() -> None:
    assert always_shared(at(0.05)) == never_shared(at(1.0)) == []
    assert {one.verdict for one in score(always_shared(at(1.0)), trace(2, 1.0))} == {"violated"}
    assert {one.verdict for one in score(never_shared(at(0.05)), trace(5, 1.13))} == {"violated"}


def test_nothing_is_confirmed_without_numbers_or_before_the_run_settled() -> None:
    rows = trace(5, 1.13).rows
    early = {name: value - 0.2 if "norm" in name else value for name, value in rows[0].items()}
    nan = {name: float("nan") for name in rows[1]} | {"step": 1000.0}
    for shut in (Trace(()), Trace(rows[:1]), Trace((early, rows[1])), Trace((rows[0], nan))):
        assert {one.verdict for one in score(predict(at(0.05)), shut)} == {"not applicable"}


def test_nothing_is_said_where_the_theory_does_not_reach() -> None:
    assert predict(facts({"classes": 5})) == ()
    assert predict(facts({"features": 5, "dims": 3, "probability": 0.1, "importance_decay": 1.0})) == ()
