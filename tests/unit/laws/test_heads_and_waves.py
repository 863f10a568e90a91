"""The laws of floors, heads, sinks and waves on traces that are made up: right ones pass, wrong ones and empty ones never do."""

from __future__ import annotations

import math

import pytest

from knowhow.laws import bigram_floor, grokking, induction, law, sinks
from knowhow.laws.law import facts
from knowhow.types import Diagnosis, Trace

KNOWN = {
    "bigram-floor": {"bigram_entropy": 2.0, "unigram_entropy": 3.0},
    "induction": {"layers": 2, "random_distance": 1, "copy_loss_blind": 3.4},
    "grokking": {"prime": 31, "weight_decay": 0.3},
    "sinks": {"idle": 0.9, "softmax": 1, "begun": 1},
}
NAMES = list(KNOWN)


def said(name: str, trace: Trace, known: Diagnosis | None = None) -> dict[str, str]:
    found = law(name)
    return {one.prediction.quantity: one.verdict for one in found.score(found.predict(known or facts(KNOWN[name])), trace)}


def rows(count: int, **columns: object) -> Trace:
    """Rows of steps 10, 20, …; a column is a function of the share of the run that is done."""
    return Trace(tuple({"step": 10 * (k + 1), **{name.replace("__", "."): make(k / (count - 1)) for name, make in columns.items()}} for k in range(count)))


def grokked(unseen: float = 1.0, explained: float = 0.97, shed: float = 0.5) -> Trace:
    return rows(
        40,
        fourier__seen=lambda done: 1.0 if done > 0.2 else 0.3,
        fourier__unseen=lambda done: unseen if done > 0.5 else 0.03,
        fourier__explained=lambda done: explained * done,
        fourier__difference=lambda done: 0.01,
        fourier__single=lambda done: 0.2 + 0.75 * done,
        fourier__norm=lambda done: 1000 * (1 - (1 - shed) * done),
    )


def headed(score: float = 0.9, turn: float = 0.5) -> Trace:
    def rise(done: float, at: float) -> float:
        return 1 / (1 + math.exp(-30 * (done - at)))

    return rows(
        41,
        circuits__induction=lambda done: score * rise(done, 0.5),
        circuits__previous=lambda done: 0.8 * rise(done, 0.5),
        circuits__copy_loss=lambda done: 3.4 * (1.01 - rise(done, turn)),
        loss=lambda done: 3.4 * (1.01 - rise(done, turn)),
    )


def resting(sink: float, at_triggers: float = 0.3) -> Trace:
    return rows(
        60,
        circuits__sink=lambda done: sink * done,
        loss=lambda done: 2.0 * 0.9 + at_triggers * 0.1,
        trigger_loss=lambda done: at_triggers * 0.1,
        triggers=lambda done: 0.1,
    )


def falling(floor: float, stay: float | None = None) -> Trace:
    def loss(done: float) -> float:
        return stay if stay is not None and done < 0.25 else floor + 1.5 * math.exp(-60 * done)

    return rows(200, loss=loss)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_foretold_of_a_run_that_is_not_of_the_kind(name: str) -> None:
    assert list(law(name).predict(facts({"lr": 1e-3, "weight_decay": 0.1, "steps": 100, "adam": 1}))) == []
    assert list(law(name).predict(facts({}))) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", ["empty", "other columns", "not numbers"])
def test_what_was_not_seen_is_never_confirmed(name: str, broken: str) -> None:
    whole = {"bigram-floor": falling(2.0), "induction": headed(), "grokking": grokked(), "sinks": resting(0.88)}[name]
    assert set(said(name, whole).values()) == {"confirmed"}
    traces = {
        "empty": Trace(()),
        "other columns": Trace(({"step": 1, "lr": 0.1},) * 80),
        "not numbers": Trace(tuple({key: value if key == "step" else math.nan for key, value in row.items()} for row in whole.rows)),
    }
    verdicts = said(name, traces[broken])
    assert verdicts
    assert "confirmed" not in verdicts.values()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_every_section(name: str) -> None:
    assert {"Statement", "Derivation", "Assumptions", "Where it fails", "Source"} <= set(law(name).sections)
    assert len(law(name).sections["Derivation"]) > 400
    assert law(name).controls


def test_a_floor_missed_either_way_is_violated() -> None:
    assert said("bigram-floor", falling(2.1))[bigram_floor.FLOOR] == "violated"
    assert said("bigram-floor", falling(1.9))[bigram_floor.FLOOR] == "violated"


def test_a_plateau_at_the_unigram_entropy_is_seen() -> None:
    known = facts(KNOWN["bigram-floor"])
    assert said("bigram-floor", falling(2.0, stay=3.0))[bigram_floor.STAY] == "violated"
    assert bigram_floor.score(bigram_floor.plateau(known), falling(2.0, stay=3.0))[0].verdict == "confirmed"
    assert bigram_floor.score(bigram_floor.plateau(known), falling(2.0))[0].verdict == "violated"
    assert bigram_floor.score(bigram_floor.frequencies_alone(known), falling(2.0))[0].verdict == "violated"


def test_the_plateau_is_not_asked_where_the_entropies_are_close() -> None:
    assert len(law("bigram-floor").predict(facts({"bigram_entropy": 2.0, "unigram_entropy": 2.1}))) == 1


def test_an_induction_head_must_be_high_and_come_with_the_fall() -> None:
    assert said("induction", headed(score=0.6))[induction.SCORE] == "violated"
    assert said("induction", headed(turn=0.05))[induction.TOGETHER] == "violated"
    assert said("induction", headed(score=0.0))[induction.TOGETHER] == "violated"


def test_depth_and_distance_decide_what_is_foretold() -> None:
    shallow, fixed = facts(KNOWN["induction"] | {"layers": 1}), facts(KNOWN["induction"] | {"random_distance": 0})
    assert said("induction", headed(0.1), shallow) == {induction.SCORE: "confirmed"}
    assert said("induction", headed(0.5), shallow) == {induction.SCORE: "violated"}
    assert said("induction", headed(0.1), fixed) == {induction.SCORE: "confirmed", induction.COPIED: "confirmed"}
    assert induction.score(induction.depth_ignored(shallow), headed(0.1))[0].verdict == "violated"
    assert induction.score(induction.distance_ignored(fixed), headed(0.1))[0].verdict == "violated"
    assert list(induction.depth_ignored(fixed)) == []


def test_a_net_that_only_remembers_does_not_pass() -> None:
    verdicts = said("grokking", grokked(unseen=0.1, explained=0.05))
    assert verdicts[grokking.EXPLAINED] == verdicts[grokking.DELAY] == verdicts[grokking.SHED] == "violated"
    assert said("grokking", grokked(shed=0.95))[grokking.SHED] == "violated"


def test_the_gate_closes_on_a_net_that_does_not_even_remember() -> None:
    trace = Trace(tuple(row | {"fourier.seen": 0.5} for row in grokked().rows))
    assert set(said("grokking", trace).values()) == {"not applicable"}


def test_waves_of_the_difference_fail() -> None:
    [found] = grokking.difference(grokking.predict(facts(KNOWN["grokking"])), grokked())
    assert found.verdict == "violated"


def test_a_sink_is_asked_of_a_softmax_whose_rows_begin_alike() -> None:
    sigmoid, unbegun = facts({"idle": 0.9, "softmax": 0, "begun": 1}), facts({"idle": 0.9, "softmax": 1, "begun": 0})
    assert set(said("sinks", resting(0.75)).values()) == {"violated"}
    assert list(law("sinks").predict(facts(KNOWN["sinks"] | {"idle": 1.0}))) == []
    assert set(said("sinks", resting(0.02), sigmoid).values()) == {"confirmed"}
    assert set(said("sinks", resting(0.6), sigmoid).values()) == {"violated"}
    assert said("sinks", resting(0.6), unbegun) == {}
    assert sinks.score(sinks.whatever_the_weights(sigmoid), resting(0.02))[0].verdict == "violated"
    assert sinks.score(sinks.wherever_rows_begin(unbegun), resting(0.1))[0].verdict == "violated"
    assert list(sinks.whatever_the_weights(facts(KNOWN["sinks"]))) == list(sinks.wherever_rows_begin(facts(KNOWN["sinks"]))) == []


def test_a_task_that_was_not_learnt_says_nothing_about_sinks() -> None:
    assert set(said("sinks", resting(0.6, at_triggers=1.5)).values()) == {"not applicable"}
