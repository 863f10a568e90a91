"""`knowhow laws`: the registry listed and shown without torch, and a law put to the test."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knowhow import laws
from knowhow.cli import main
from knowhow.commands import laws as command
from knowhow.commands.output import Output
from knowhow.errors import UsageError
from knowhow.laws.law import Control, Experiment, Law, compared, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knowhow.commands.failures._settle", lambda debug: None)
    written = [name for name in laws.NAMES if importlib.util.find_spec(f"knowhow.laws.{name.replace('-', '_')}")]
    monkeypatch.setattr("knowhow.laws.NAMES", tuple(written))


def falls(diagnosis: Diagnosis) -> list[Prediction]:
    return [predicted("tiny", "the loss falls", 0.0, -10.0, 0.0, diagnosis)]


def score(predictions: Any, trace: Trace) -> list[Scored]:
    loss = values(trace, "loss")
    return [compared(one, loss[-1] - loss[0]) if loss else not_applicable(one, "no loss") for one in predictions if one.law == "tiny"]


def rises(diagnosis: Diagnosis) -> list[Prediction]:
    return [predicted("tiny", "the loss falls", 1.0, 0.5, 10.0, diagnosis)]


TINY = Law(
    "tiny",
    "Losses fall.\n\n**Statement** They do.\n\n**Derivation** g·u < 0.\n\n**Assumptions** None.\n\n**Where it fails** High rates.\n\n**Source** Cauchy 1847.",
    "dynamics",
    "any fall",
    falls,
    score,
    (Experiment("clusters", 5, {}, {"width": 8, "per_class": 10}, {"lr": 0.05, "rule": "sgd"}),),
    (Control("losses rise", "they do not", predict=rises),),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knowhow.commands.laws.laws.law", lambda name: TINY)


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_list_says_what_each_law_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "list", "--json"]) == 0
    rows = told(capsys)
    assert [row["law"] for row in rows] == list(laws.NAMES)
    assert all(row["title"] and row["question"] and row["tolerance"] and row["verdict"] for row in rows)
    assert main(["laws", "list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= command.WIDTH
    assert "one-step" in shown
    assert main(["laws"]) == 0
    assert "check" in capsys.readouterr().out


def test_show_is_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "show", "one-step"]) == 0
    shown = capsys.readouterr().out
    law = laws.law("one-step")
    for section in ("Statement", "Derivation", "Assumptions", "Where it fails", "Source"):
        assert law.sections[section] in shown
    assert "markov-decoder, 60 steps" in shown
    assert "first order alone" in shown
    assert main(["laws", "show", "one-step", "--json"]) == 0
    assert told(capsys)[0]["sections"]["Statement"] == law.statement


def test_what_was_judged_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"experiment": 1, "quantity": "error", "n": 5, "confirmed": 5, "value": 0.0, "low": 0.0, "high": 0.02, "measured": 0.004, "residual": 0.004}
    said = {"verdict": "violated", "because": "at seed 101", "seeds": {"100": "confirmed", "101": "violated"}, "controls": {"first order alone": True}}
    monkeypatch.setattr(command, "committed", lambda: {"one-step": {**said, "inside": 0.9, "figures": [figure], "changed": True}})
    assert main(["laws", "show", "one-step"]) == 0
    shown = capsys.readouterr().out
    assert "VIOLATED: at seed 101" in shown
    assert "changed since" in shown
    assert "0.004" in shown


@pytest.mark.parametrize("words", [["show", "one-stop"], ["check", "one-stop"]])
def test_a_wrong_name_lists_the_right_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", *words]) == 2
    said = capsys.readouterr().err
    assert "'one-stop'" in said
    assert "rotational-equilibrium" in said


@pytest.mark.usefixtures("tiny")
def test_check_runs_experiments_and_controls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "check", "tiny", "--seeds", "0,3"]) == 0
    out, err = capsys.readouterr()
    assert "seed 0" in out
    assert "seed 3" in out
    assert "control losses rise: failed, as it must" in out
    assert out.rstrip().endswith("tiny: CONFIRMED, at 2 of 2 seeds, with every control failing")
    assert "[1 of 2] tiny, seed 0" in err
    assert main(["laws", "check", "tiny", "--seeds", "0", "--json"]) == 0
    rows = [row for row in told(capsys) if row["event"] in ("scored", "judged")]
    assert [(row["event"], row.get("control"), row["verdict"]) for row in rows] == [
        ("scored", None, "confirmed"),
        ("scored", "losses rise", "violated"),
        ("judged", None, "confirmed"),
    ]


def test_a_law_that_only_builds_score_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("knowhow.commands.laws.laws.law", lambda name: replace(TINY, experiments=(), controls=()))
    assert main(["laws", "check", "tiny"]) == 0
    assert "NOT APPLICABLE, it has no experiment of its own" in capsys.readouterr().out
    assert main(["laws", "show", "tiny"]) == 0
    assert "every build predicts with it" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("words", [["--model", "seedling"], ["--data", "rows.jsonl"], ["--seeds", "x"], ["--seeds", "0,0"], ["--seeds", "0-99999999999"]])
def test_what_cannot_be_run_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "check", "tiny", *words]) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_on_your_own_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from knowhow.model import toys

    toys.twin("llama", tmp_path / "base", vocab=600)
    (tmp_path / "rows.txt").write_text("some words of text, and a few more\n" * 50)
    assert main(["laws", "check", "tiny", "--seeds", "0", "--model", str(tmp_path / "base"), "--data", "rows.txt"]) == 0
    out = capsys.readouterr().out
    assert "yours" not in out
    assert "tiny: CONFIRMED" in out
    assert main(["laws", "check", "tiny", "--model", str(tmp_path / "base"), "--data", "none.txt"]) == 2


def test_on_your_own_model_what_is_not_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from knowhow.model import toys

    toys.twin("llama", tmp_path / "base", vocab=600)
    (tmp_path / "rows.txt").write_text("some words of text, and a few more\n" * 50)
    for law, why in (("neural-collapse", "a classifier"), ("sinks", "softmax")):
        assert main(["laws", "check", law, "--model", str(tmp_path / "base"), "--data", "rows.txt"]) == 0
        out = capsys.readouterr().out
        assert f"{law}: NOT APPLICABLE" in out
        assert why in out


def test_seeds_are_read() -> None:
    assert command.seeds_of("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(UsageError, match="0-4"):
        command.seeds_of("")


def test_columns_are_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    shown = command.wrapped(("law", "says"), [("a", "word " * 60)], (1,))
    assert max(map(len, shown.splitlines())) <= 90
    assert shown.count("word") == 60


def test_many_sites_are_told_in_a_line() -> None:
    made = [Scored(Prediction("l", "q (1.25 nats)", f"m{k}", float(k), 0.0, 9.0, ""), k + 0.5, 0.5, "confirmed") for k in range(3)]
    assert command._lines(made) == [("q", "0 … 2", "3 intervals", "0.5 … 2.5", "3 confirmed")]


def test_list_and_show_load_no_torch() -> None:
    code = (
        "import sys, importlib.util as u; from knowhow import laws;"
        "laws.NAMES = tuple(n for n in laws.NAMES if u.find_spec('knowhow.laws.' + n.replace('-', '_')));"
        "from knowhow.cli import main; main(['laws', 'list', '--quiet']); main(['laws', 'show', 'one-step']); print('torch' in sys.modules, file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr.strip().endswith("False")


def test_quiet_checks_say_no_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knowhow.commands.laws.laws.law", lambda name: TINY)
    command.check("tiny", "0", command.Yours(None, None), Output(quiet=True))
    assert capsys.readouterr().err == ""
