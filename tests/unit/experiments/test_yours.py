"""A law on the user's own model and data: the run is the user's, and what cannot be said there is said to be so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from knowhow import laws
from knowhow.errors import UsageError
from knowhow.experiments import run, yours
from knowhow.experiments.run import Check, Outcome
from knowhow.laws.law import Control, Law, compared, not_applicable
from knowhow.model import toys
from knowhow.types import Diagnosis, Prediction, Scored, Trace


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("yours")
    toys.twin("llama", folder / "base", vocab=600)
    return str(folder / "base")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {n} cats sat on the {n * n} mats and looked", "label": "ab"[n % 2]}) + "\n" for n in range(60)))
    return str(path)


def test_rows_are_windows_of_the_texts(base: str, texts: str) -> None:
    at = yours.yours(3, model=base, data=texts, rows=4, length=32)
    first, again = next(iter(at.batches))[0], next(iter(yours.yours(3, model=base, data=texts, rows=4, length=32).batches))[0]
    assert first.tokens_BT.shape == (4, 32)
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    assert torch.equal(first.tokens_BT[:, 1:], first.targets_BT[:, :-1])
    assert not torch.equal(first.tokens_BT, next(iter(yours.yours(4, model=base, data=texts, rows=4, length=32).batches))[0].tokens_BT)
    assert at.facts["vocab"] == at.model.get_input_embeddings().weight.shape[0]
    assert at.facts["charges.vo"] > 0
    assert float(at.objective(at.model, first)[0].detach()) / at.objective.units(first) == pytest.approx(6.4, abs=0.5)


def test_little_text_makes_short_windows_and_too_little_is_refused(base: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few words of text\n" * 2)
    assert yours.yours(0, model=base, data=str(tmp_path / "short.txt")).facts["length"] < 128
    (tmp_path / "least.txt").write_text("a\n")
    with pytest.raises(UsageError, match="tokens of text"):
        yours.yours(0, model=base, data=str(tmp_path / "least.txt"))


def test_an_encoder_is_refused(tmp_path: Path, texts: str) -> None:
    toys.twin("bert", tmp_path / "encoder", vocab=600)
    with pytest.raises(UsageError, match="encoder"):
        yours.yours(0, model=str(tmp_path / "encoder"), data=texts)


def test_the_run_is_the_users_and_its_settings_are_the_laws(base: str, texts: str) -> None:
    law = laws.law("one-step")
    moved, why = yours.applied(law, base, texts)
    assert why == ""
    assert moved.experiments == (replace(law.experiments[0], system="yours", options={"model": base, "data": texts}),)
    short = replace(moved, experiments=(replace(moved.experiments[0], steps=3, observers={"one_step": {"every": 1}}),))
    found = run.check(short, 0)
    assert [row["step"] for row in found.outcomes[0].trace.rows] == [1, 2, 3]
    assert found.scored[0].residual is not None
    assert 0 < found.scored[0].residual < 0.1
    assert found.outcomes[0].trace.rows[0]["loss"] == pytest.approx(6.4, abs=0.5)


def test_an_experiment_on_a_language_model_is_preferred() -> None:
    law = laws.law("rotational-equilibrium")
    assert law.experiments[0].system != "markov-decoder"
    assert any(one.system in yours.OWN for one in law.experiments)


@pytest.mark.parametrize("name", laws.NAMES)
def test_every_law_runs_there_or_says_why_not(name: str, base: str, texts: str) -> None:
    law = laws.law(name)
    if not law.experiments:
        return
    moved, why = yours.applied(law, base, texts)
    if why:
        assert why.startswith("it ")
        return
    short = replace(moved, experiments=tuple(replace(one, steps=4, warm=min(one.warm, 1)) for one in moved.experiments))
    assert not run.run(short.experiments[0], 0).broke


def checked(own: str, control: str) -> Check:
    """A check whose own score and control came out so."""
    prediction = Prediction("law", "what", "run", 0.0, -1.0, 1.0, "")

    def scored(verdict: str) -> Scored:
        return not_applicable(prediction, "no") if verdict == "not applicable" else compared(prediction, 0.0 if verdict == "confirmed" else 9.0)

    return Check((Outcome(Diagnosis((), ""), Trace(())),), (scored(own),), {"wrong": (scored(control),)})


@pytest.mark.parametrize(
    ("own", "control", "verdict"),
    [
        ("confirmed", "violated", "confirmed"),
        ("confirmed", "confirmed", "not applicable"),
        ("confirmed", "not applicable", "confirmed"),
        ("violated", "violated", "violated"),
        ("violated", "confirmed", "violated"),
        ("not applicable", "violated", "not applicable"),
    ],
)
def test_a_run_that_cannot_tell_right_from_wrong_confirms_nothing(own: str, control: str, verdict: str) -> None:
    law = Law("law", "Title.", "use", "none", lambda _: (), lambda *_: (), (), (Control("wrong", "because"),))
    found = yours.judged(law, {0: checked(own, control), 1: checked(own, control)})
    assert found.verdict == verdict
    if own == control == "confirmed":
        assert "wrong" in found.because
