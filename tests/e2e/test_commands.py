"""Every command on one tiny run, as a person would go through them: init, build, ask, predict, eval, runs, report, diff, rm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowhow.cli import main
from knowhow.files import read_json, read_jsonl
from knowhow.model.toys import twin

SETS = ["adapt.0.steps=12", "adapt.0.epochs=", "adapt.0.lr=3e-3", "adapt.0.method=full", "adapt.0.batch_tokens=512", "evaluate.draws=50"]
SETS += ["evaluate.baselines=[majority, tfidf-lr]", "evaluate.forgetting=false", "evaluate.memorisation=false", "explain.examples=4"]
WORDS = {"warm": ["sun", "fire", "summer", "desert"], "cold": ["ice", "snow", "winter", "frost"]}


def rows(count: int) -> list[dict[str, str]]:
    random = np.random.default_rng(0)
    labels = [("warm", "cold")[at % 2] for at in range(count)]
    return [{"body": " ".join(random.choice([*WORDS[label], "the", "of", "and"], size=9)), "kind": label} for label in labels]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base, rows, a recipe by `init` and a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("place")
        patch.chdir(folder)
        patch.setattr("knowhow.commands.failures._settle", lambda debug: None)
        twin("llama", folder / "base")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(160)))
        assert main(["init", "--data", "rows.jsonl", "--base", "./base", "--set", "fields.label=kind", "--yes", "--out", "weather.yaml", "--quiet"]) == 0
        assert main(["build", "weather.yaml", "--quiet", *(word for text in SETS for word in ("--set", text))]) == 0
        yield folder


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    """Run with --json; every line of stdout is a record, and stderr is empty."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    shown = capsys.readouterr()
    assert shown.err == ""
    return [json.loads(line) for line in shown.out.splitlines()]


STAGES = ("data", "base", "diagnose", "plan", "baseline", "adapt", "readout", "evaluate", "explain", "verify", "package", "report")


def test_build_tells_machines_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "build", "weather.yaml", "--resume", *(word for text in SETS for word in ("--set", text)))
    assert told[0]["event"] == "estimate"
    assert told[0]["memory_gb"] > 0
    assert [row["stage"] for row in told if row["event"] == "stage"] == list(STAGES)
    end = told[-1]
    assert end["event"] == "done"
    (before,) = [row["predictions"] for row in told if row["event"] == "predicted"]
    assert {row["law"] for row in before} == {row["law"] for row in end["predictions"]}
    assert all(row["verdict"] in ("confirmed", "violated", "not applicable") for row in end["predictions"])
    assert {(row["model"], row["metric"]) for row in end["results"]} == {(model, "macro_f1") for model in ("specialist", "majority", "tfidf-lr")}
    assert Path(end["specialist"], "knowhow.json").is_file()
    assert end["sha256"] == read_json(Path(end["specialist"], "knowhow.json"))["digest"]
    assert read_json(Path(end["run"], "estimate.json"))["rows"] == told[0]["rows"]


def test_build_tells_people_where_things_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "weather.yaml", "--resume", *(word for text in SETS for word in ("--set", text))]) == 0
    shown = capsys.readouterr()
    for line in ("macro-F1", "95% interval", "majority", "tfidf-lr", "specialist", "report      file://", "next        knowhow ask weather-"):
        assert line in shown.out, line
    assert "[12 of 12] report" in shown.err
    assert "estimate: " in shown.err


def test_ask(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = said(capsys, "ask", "weather", "the sun and the fire")
    assert answer["answer"] in ("warm", "cold")
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert main(["ask", "weather", "the sun", "--quiet"]) == 0
    assert re.match(r"(warm|cold)  \(\d+\.\d% sure", capsys.readouterr().out)
    assert said(capsys, "ask", "weather", " ", code=2)[0]["error"]["got"] == "an empty text"
    assert "--pair" in said(capsys, "ask", "weather", "a", "--pair", "b", code=2)[0]["error"]["fix"]


def test_ask_reads_stdin(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "in"
    for content, code in ((b"ice and snow\n", 0), (b"\xff\xfe", 2), (b"x" * 1_000_001, 2)):
        path.write_bytes(content)
        with path.open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            said(capsys, "ask", "weather", "-", code=code)


def test_predict_and_eval(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, end = said(capsys, "predict", "weather", "rows.jsonl", "--out", "answers.jsonl")
    assert end["rows"] == 160
    answers = list(read_jsonl(Path("answers.jsonl")))
    assert [row["row"] for row in answers] == list(range(160))
    *_, found = said(capsys, "eval", "weather", "rows.jsonl", "--set", "fields.label=kind")
    accuracy = next(row for row in found["results"] if (row["metric"], row["slice"]) == ("accuracy", "all"))
    right = np.mean([row["answer"] == given["kind"] for row, given in zip(answers, rows(160))])
    assert accuracy["value"] == pytest.approx(right)
    assert said(capsys, "predict", "weather", "rows.jsonl", "--out", "answers.jsonl", code=2)[0]["error"]["where"] == "answers.jsonl"
    assert said(capsys, "eval", "weather", "rows.jsonl", "--set", "fields.label=kinds", code=2)


def test_runs_report_diff(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = said(capsys, "runs", "ls")
    assert listed["state"] == "done"
    assert listed["result"]["metric"] == "macro_f1"
    (told,) = said(capsys, "report", "weather")
    page = Path(told["report"]).read_text()
    assert "<html" in page
    (found,) = said(capsys, "diff", "weather", listed["run"])
    assert found["recipe"] == []
    assert found["same_rows"]["only_a_right"] == 0
    assert main(["diff", "weather", listed["run"]]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") < 40, "people see the specialist on all rows"


def test_a_warm_update_and_its_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed,) = said(capsys, "runs", "ls")
    start = Path(listed["folder"]) / "package" / "specialist"
    *_, end = said(capsys, "build", "weather.yaml", "--from", str(start), "--set", "name=warm", *(word for text in SETS for word in ("--set", text)))
    assert Path(end["run"]).name.startswith("warm-")
    assert said(capsys, "runs", "rm", Path(end["run"]).name, "--yes")[0]["event"] == "removed"
    assert [row["run"] for row in said(capsys, "runs", "ls")] == [listed["run"]]


def test_a_gate_that_is_not_met_still_tells(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", "weather.yaml", "--runs", "gated", "--set", "budget={beat_baselines: true}", "--set", "adapt.0.lr=1e-9"]
    told = said(capsys, *words, *(word for text in SETS if "lr" not in text.split("=")[0] for word in ("--set", text)), code=3)
    assert told[-2]["event"] == "done"
    assert told[-1]["error"]["code"] == 3
    assert "does not beat" in told[-1]["error"]["got"]
