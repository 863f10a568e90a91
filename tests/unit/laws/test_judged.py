"""Scores as rows, judgements of rows, and the prose that names the laws."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from knowhow import laws
from knowhow.laws import judged, rows
from knowhow.laws.answers import ANSWERS
from knowhow.laws.law import QUESTIONS, Experiment
from knowhow.types import Prediction, Scored


def scored(measured: float | None, verdict: str = "confirmed", *, high: float = 1.0, quantity: str = "error") -> Scored:
    prediction = Prediction("one-step", quantity, "run", 0.0, -1.0, high, "digest")
    return Scored(prediction, measured, measured, verdict, "so", 0.5)  # type: ignore[arg-type]


def line(seed: int, verdict: str = "confirmed", control: str = "violated", residual: float = 0.25) -> dict[str, object]:
    return {
        "law": "one-step",
        "seed": seed,
        "scored": [rows.of_score(scored(residual, verdict), 1)],
        "controls": {"wrong": [rows.of_score(scored(3.0, control))]},
    }


@pytest.mark.parametrize("one", [scored(0.25), scored(None, "not applicable"), scored(0.5, high=math.inf)])
def test_a_score_survives_the_disk(one: Scored) -> None:
    row = json.loads(json.dumps(rows.of_score(one, 2), allow_nan=False))
    assert row["experiment"] == 2
    back = rows.score_of("one-step", row)
    assert (back.measured, back.residual, back.verdict, back.because, back.inside) == (one.measured, one.residual, one.verdict, one.because, one.inside)
    assert (back.prediction.value, back.prediction.low, back.prediction.high) == (0.0, -1.0, one.prediction.high)


def test_what_is_no_number_is_not_written() -> None:
    row = rows.of_score(scored(math.nan, "violated"))
    assert row["measured"] is None
    assert rows.kept(0.123456789) == 0.123457


def test_quantities_lose_the_numbers_of_their_run_alone() -> None:
    assert rows.plain("share near the unigram entropy (3.2954)") == "share near the unigram entropy"
    assert rows.plain("attention (chain 2.1000 nats, 3 triggers)") == "attention"
    assert rows.plain("spread inside classes (NC1)") == "spread inside classes (NC1)"


def test_experiments_say_what_is_not_usual() -> None:
    told = rows.of_experiment(Experiment("clusters", 10, {"hessian": {"every": 2}}, {"classes": 3}, clip=1.0, warm=5, schedule="cosine"))
    assert told == {
        "system": "clusters",
        "steps": 10,
        "optimizer": {"lr": 1e-3},
        "observers": {"hessian": {"every": 2}},
        "options": {"classes": 3},
        "schedule": "cosine",
        "warm": 5,
        "clip": 1.0,
    }


def test_a_judgement_needs_every_seed_and_every_control() -> None:
    good = judged.summary("one-step", [line(100), line(101)])
    assert (good["verdict"], good["seeds"], good["controls"]) == ("confirmed", {"100": "confirmed", "101": "confirmed"}, {"wrong": True})
    assert (good["residual"], good["inside"]) == (0.25, 0.5)
    assert good["figures"] == [
        {"experiment": 1, "quantity": "error", "n": 2, "confirmed": 2, "value": 0.0, "low": -1.0, "high": 1.0, "measured": 0.25, "residual": 0.25}
    ]
    assert judged.summary("one-step", [line(100), line(101, "violated")])["verdict"] == "violated"
    assert judged.summary("one-step", [line(100), line(101, control="confirmed")])["verdict"] == "violated"
    assert judged.summary("one-step", [line(100), line(101, control="not applicable")])["controls"] == {"wrong": False}
    assert judged.summary("one-step", [line(100, "not applicable"), line(101, "not applicable")])["verdict"] == "not applicable"


def test_the_committed_judgements_are_of_laws_that_there_are() -> None:
    assert set(judged.committed()) <= set(laws.NAMES)
    for said in judged.committed().values():
        assert said["verdict"] in ("confirmed", "violated", "not applicable")
        assert set(map(int, said["seeds"])) >= set(judged.FRESH)
        assert said["verdict"] != "confirmed" or (set(said["seeds"].values()) == {"confirmed"} and said["controls"] and all(said["controls"].values()))
    assert judged.verdict("no such law") == judged.NOT_YET


def test_each_answer_names_the_laws_that_give_it() -> None:
    assert set(ANSWERS) == set(QUESTIONS)
    named = {question: set(re.findall(r"\[([a-z-]+)\]", text)) for question, text in ANSWERS.items()}
    assert set().union(*named.values()) <= set(laws.NAMES)
    for law in laws.every_law():
        assert law.name in named[law.asks], f"{law.name} answers {law.asks!r}, and the answer does not name it"


def test_reading_laws_loads_no_torch() -> None:
    code = "import sys; from knowhow import laws; from knowhow.laws import judged, answers; laws.every_law(); judged.committed(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"
