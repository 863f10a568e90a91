"""Every law, the day it is born: a page with all sections, predictions from facts alone, and a score that never confirms what nobody saw."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from knowhow import laws
from knowhow.experiments.run import Outcome, run
from knowhow.laws.law import QUESTIONS, RUN, Experiment, Law
from knowhow.types import Diagnosis, Measurement, Prediction, Trace

STEPS = 4
SECTIONS = ("Statement", "Derivation", "Assumptions", "Where it fails", "Source")
SLOW: dict[str, str] = {}
"""{system: why it takes more than five seconds to make}; laws on these are checked by their own experiments alone."""

LIGHT: dict[str, dict[str, Any]] = {"llc": {"draws": (20, 20), "chains": 2}}
"""{observer: options that make a look quick}."""

FROM_NOTHING = {"one-step": "its interval is an error of zero", "noise-scale": "two measurements of one number must agree"}
"""Laws that need no fact: {law: why}."""

IN_BUILDS: dict[str, tuple[list[tuple[str, str, float]], list[str]]] = {
    "learning-rate-ceiling": ([(RUN, "start.ceiling", 1e-3), (RUN, "adam", 1.0)], ["run.lr", "run.diverged", "run.ceiling"]),
    "update-rank": ([(RUN, "steps", 300.0), (RUN, "adam", 1.0), ("layers.0.attn.q", "adam.stable_rank", 3.0)], ["update.stable_rank:layers.0.attn.q"]),
    "layer-skip": ([(f"layers.{k}", "skip.shift", 0.1 * (k + 1)) for k in range(7)], [f"shift.measured:layers.{k}" for k in range(7)]),
    "forgetting": (
        [(RUN, "lr.mean", 1e-3), (RUN, "steps", 300.0), (RUN, "adam", 1.0), ("0.001", "line.general", 0.01), ("0.01", "line.general", 0.3)],
        ["forgetting.measured"],
    ),
    "more-data": (
        [(RUN, "rows", 800.0), (RUN, "growth.rows", 400.0), *((str(100 * 2**k), "growth.loss", 1.0 / (k + 1)) for k in range(3))],
        ["more_data.gain"],
    ),
    "light-adaptation": ([(RUN, "lr.mean", 1e-3), (RUN, "steps", 300.0), (RUN, "adam", 1.0), ("0.001", "bend", 0.2), ("0.1", "bend", 0.8)], ["bend.measured"]),
    "steps-to-target": ([(RUN, "lr", 1e-3), ("0.001", "pilot.start", 2.0), ("0.001", "pilot.20", 1.0)], ["pilot.start"]),
}
"""Laws without an experiment of their own: {law: (what a diagnosis measures for it: site, metric, value; the columns it reads)}."""


def there(name: str) -> bool:
    return importlib.util.find_spec(f"knowhow.laws.{name.replace('-', '_')}") is not None


NAMES = [pytest.param(name, marks=[] if there(name) else pytest.mark.skip(reason=f"{name} is not written yet")) for name in laws.NAMES]


@cache
def outcomes(name: str) -> tuple[Outcome, ...]:
    """The first steps of the law's experiments, at seed 0."""
    law = laws.law(name)
    slow = [SLOW[one.system] for one in law.experiments if one.system in SLOW]
    if slow:
        pytest.skip(slow[0])
    if law.experiments:
        return tuple(meant(run(begun(one), 0), one) for one in law.experiments)
    facts, columns = IN_BUILDS[name]
    diagnosis = Diagnosis(tuple(Measurement(site, metric, value, "", 1) for site, metric, value in facts), "digest")
    return (Outcome(diagnosis, Trace(tuple({"step": float(step), "loss": 1.0, **{column: 1.0 for column in columns}} for step in range(1, STEPS + 1)))),)


def begun(experiment: Experiment) -> Experiment:
    """Its first steps, with looks that are quick."""
    observers = {name: {**options, **LIGHT.get(name, {})} for name, options in experiment.observers.items()}
    return replace(experiment, steps=STEPS, warm=min(experiment.warm, 1), observers=observers)


def meant(outcome: Outcome, experiment: Experiment) -> Outcome:
    """The steps that are known before the run are those of the whole experiment, not those that were run here."""
    known = tuple(replace(one, value=float(experiment.steps)) if one.metric == "steps" else one for one in outcome.diagnosis.measurements)
    return replace(outcome, diagnosis=replace(outcome.diagnosis, measurements=known))


def asked(law: Law, outcome: Outcome) -> list[Prediction]:
    return list(law.predict(outcome.diagnosis))


def blind(trace: Trace) -> dict[str, Trace]:
    """Traces that show nothing."""
    steps = [float(row["step"]) for row in trace.rows]
    return {
        "empty": Trace(()),
        "no columns": Trace(tuple({"step": step} for step in steps)),
        "a loss that is no number": Trace(tuple({"step": step, "loss": math.nan, "lr": math.nan} for step in range(1, 500))),
        "no number in any column": Trace(tuple({name: math.nan if name != "step" else value for name, value in row.items()} for row in trace.rows)),
        "no number, at many steps": Trace(tuple({**dict.fromkeys(trace.rows[-1], math.nan), "step": float(step)} for step in range(1, 500))),
        "endless numbers": Trace(tuple({**dict.fromkeys(trace.rows[-1], math.inf), "step": float(step)} for step in range(1, 500))),
    }


@pytest.mark.parametrize("name", NAMES)
def test_page_is_whole(name: str) -> None:
    law = laws.law(name)
    assert law.name == name
    assert law.title
    assert not law.title.endswith(".")
    assert [section for section in SECTIONS if not law.sections.get(section)] == []
    assert len(law.statement) > 40
    assert law.tolerance
    assert law.asks in QUESTIONS


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_refuted(name: str) -> None:
    law = laws.law(name)
    if not law.experiments:
        assert name in IN_BUILDS, "a law that only builds score needs its facts in IN_BUILDS, or an experiment and a control"
        return
    assert law.controls, "without a control a confirmation means nothing"
    assert len({control.name for control in law.controls}) == len(law.controls)
    assert all(control.because for control in law.controls)
    same = [control.name for control in law.controls if control.experiment is None and control.predict is None and control.score is None]
    assert not same, f"{same} do what the law does"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_predicted_from_nothing(name: str) -> None:
    law = laws.law(name)
    empty = list(law.predict(Diagnosis((), "")))
    assert (empty == []) == (name not in FROM_NOTHING)
    assert all(one.law == name for one in empty)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_intervals_of_its_own(name: str) -> None:
    law = laws.law(name)
    found = [asked(law, outcome) for outcome in outcomes(name)]
    assert all(found), "it predicts nothing of one of its own experiments"
    for one in (prediction for each in found for prediction in each):
        assert one.law == name
        assert one.low <= one.value <= one.high, one
        assert math.isfinite(one.value)
        assert one.quantity
        assert one.site
    assert [asked(law, outcome) for outcome in outcomes(name)] == found


@pytest.mark.parametrize("name", NAMES)
def test_it_confirms_nothing_that_nobody_saw(name: str) -> None:
    law = laws.law(name)
    for outcome in outcomes(name):
        predictions = asked(law, outcome)
        for what, trace in blind(outcome.trace).items():
            scored = law.score(predictions, trace)
            assert [one.verdict for one in scored if one.verdict == "confirmed"] == [], what
            assert len(scored) == len(predictions), what
            assert all(one.because for one in scored if one.verdict == "not applicable"), what


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_pure(name: str) -> None:
    law = laws.law(name)
    for outcome in outcomes(name):
        predictions = asked(law, outcome)
        before = copy.deepcopy((predictions, outcome.trace))
        first, second = (list(map(repr, law.score(predictions, outcome.trace))) for _ in range(2))
        assert first == second
        assert repr(before) == repr((predictions, outcome.trace))
        assert [one.prediction for one in law.score(predictions, outcome.trace)] == predictions


@pytest.mark.parametrize("name", NAMES)
def test_predictions_of_other_laws_are_left_alone(name: str) -> None:
    law = laws.law(name)
    other = Prediction("another law", "what it says", RUN, 0.0, -1.0, 1.0, "")
    assert list(law.score([other], outcomes(name)[0].trace)) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_numbers_and_never_a_model(name: str) -> None:
    module = importlib.import_module(f"knowhow.laws.{name.replace('-', '_')}")
    assert "torch" not in vars(module)


def test_every_law_is_listed_once() -> None:
    assert len(set(laws.NAMES)) == len(laws.NAMES)
    assert set(IN_BUILDS) <= set(laws.NAMES)


def said(law: Law, predictions: Sequence[Prediction], trace: Trace) -> set[str]:
    return {one.verdict for one in law.score(predictions, trace)}


def test_the_battery_can_fail() -> None:
    """A law that confirms whatever it is shown, and one that changes its mind, are caught."""
    law = laws.law("one-step")
    careless = replace(law, score=lambda predictions, trace: [replace(one, verdict="confirmed") for one in law.score(predictions, trace)])
    assert said(careless, law.predict(Diagnosis((), "")), Trace(())) == {"confirmed"}
    assert said(law, law.predict(Diagnosis((), "")), Trace(())) == {"not applicable"}
