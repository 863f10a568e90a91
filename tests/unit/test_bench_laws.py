"""bench/laws.py: what is there is not run again, a law is judged once, and the pages say what the lines say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from knowhow import laws
from knowhow.laws import judged
from knowhow.laws.judged import FRESH

ROOT = Path(__file__).resolve().parents[2]


class Here:
    """Runs jobs in this process, in the order in which they come."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_laws", ROOT / "bench" / "laws.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module that writes to a folder of the test and makes its lines up."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = script()
    for name, value in {"RESULTS": tmp_path / "laws.jsonl", "DOCS": tmp_path / "docs", "FILE": tmp_path / "judged.json", "ROOT": tmp_path}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(module, "checked", made)
    monkeypatch.setattr(module, "digest_of", lambda law: f"first {law.name}")
    monkeypatch.setattr(module.laws, "NAMES", ("one-step", "mode-times"))
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    return module


def made(name: str, seed: int) -> dict[str, Any]:
    """A line of a law that holds, and whose control fails."""
    good = {"quantity": "error (1.25 nats)", "site": "run", "value": 0.0, "low": 0.0, "high": 1.0, "measured": 0.1 + seed / 1000, "residual": 0.1}
    row = {**good, "verdict": "confirmed", "because": "so", "inside": 1.0}
    bad = {**row, "measured": 9.0, "verdict": "violated"}
    return {"law": name, "seed": seed, "seconds": 2.0, "clock": 3.0, "scored": [{"experiment": 1, **row}], "controls": {"wrong": [bad]}}


def lines(bench: ModuleType) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.RESULTS.read_text().splitlines()]


def test_what_is_there_is_not_run_again(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.judge(["one-step"], [0, 1], final=False, again="", jobs=1) == 0
    assert "which never ran" in capsys.readouterr().out
    assert bench.judge(["one-step", "mode-times"], [0, 1, 2], final=False, again="", jobs=1) == 0
    assert "4 of 6 runs are to be done" in capsys.readouterr().out
    assert sorted((line["law"], line["seed"]) for line in lines(bench)) == [(name, seed) for name in ("mode-times", "one-step") for seed in (0, 1, 2)]
    assert all(not line["final"] and line["digest"] == f"first {line['law']}" for line in lines(bench))


def test_a_changed_law_is_run_anew_and_judged_once(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.judge(["one-step"], list(FRESH), final=True, again="", jobs=1) == 0
    assert bench.judge(["one-step"], list(FRESH), final=True, again="", jobs=1) == 0
    assert len(lines(bench)) == len(FRESH)
    monkeypatch.setattr(bench, "digest_of", lambda law: f"second {law.name}")
    with pytest.raises(SystemExit, match="judged once"):
        bench.judge(["one-step"], list(FRESH), final=True, again="", jobs=1)
    assert len(lines(bench)) == len(FRESH)
    assert bench.judge(["one-step"], list(FRESH), final=True, again="a sign was wrong", jobs=1) == 0
    assert {line.get("again") for line in lines(bench)[len(FRESH) :]} == {"a sign was wrong"}
    assert {line["digest"] for line in bench.judged_lines(lines(bench), "one-step")} == {"second one-step"}


def test_what_is_not_committed_is_not_judged(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, " M src/knowhow/laws/one_step.py\n", ""))
    with pytest.raises(SystemExit, match="commit it first"):
        bench.judge(["one-step"], list(FRESH), final=True, again="", jobs=1)
    assert not bench.RESULTS.exists()


def test_a_law_that_changes_while_it_runs_leaves_no_line(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter("abcdefgh")
    monkeypatch.setattr(bench, "digest_of", lambda law: next(digests))
    assert bench.judge(["one-step"], [0], final=False, again="", jobs=1) == 1
    assert not bench.RESULTS.exists()


def test_a_run_that_fails_is_told_and_leaves_no_line(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(name: str, seed: int) -> dict[str, Any]:
        if seed == 1:
            raise RuntimeError("shapes differ")
        return made(name, seed)

    monkeypatch.setattr(bench, "checked", fails)
    assert bench.judge(["one-step"], [0, 1], final=False, again="", jobs=1) == 1
    assert "shapes differ" in capsys.readouterr().out
    assert [line["seed"] for line in lines(bench)] == [0]


@pytest.mark.parametrize("words", [["--final", "--seeds", "0-4"], ["--seeds", "100"], ["--seeds", "4-101"]])
def test_fresh_seeds_are_for_the_judgement_alone(bench: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["laws.py", *words])
    with pytest.raises(SystemExit, match="--final"):
        bench.main()


def test_pages_say_what_the_lines_say(bench: ModuleType) -> None:
    bench.judge(["one-step", "mode-times"], [0, 1], final=False, again="", jobs=1)
    bench.judge(["mode-times"], list(FRESH)[:3], final=True, again="", jobs=1)
    (bench.DOCS).mkdir()
    (bench.DOCS / "gone.md").write_text("a law of yesterday")
    bench.pages()
    assert json.loads(bench.FILE.read_text()) == {}
    assert "not judged yet" in (bench.DOCS / "mode-times.md").read_text()
    assert (bench.DOCS / "one-step.svg").read_text().startswith("<svg")
    assert not (bench.DOCS / "gone.md").exists()
    bench.judge(["mode-times"], list(FRESH), final=True, again="", jobs=1)
    bench.pages()
    said = json.loads(bench.FILE.read_text())
    assert list(said) == ["mode-times"]
    assert said["mode-times"]["verdict"] == "confirmed"
    assert said["mode-times"]["figures"][0]["quantity"] == "error"
    assert not said["mode-times"]["changed"]
    assert "**CONFIRMED**" in (bench.DOCS / "mode-times.md").read_text()
    assert "[mode-times](mode-times.md) (confirmed)" in (bench.DOCS / "README.md").read_text()


def test_a_judgement_of_another_form_is_shown_as_such(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.judge(["one-step"], list(FRESH), final=True, again="", jobs=1)
    monkeypatch.setattr(bench, "digest_of", lambda law: f"second {law.name}")
    bench.pages()
    assert json.loads(bench.FILE.read_text())["one-step"]["changed"]
    assert "changed since" in (bench.DOCS / "one-step.md").read_text()


def test_a_real_line_holds_scores_of_experiments_and_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    real, law = script(), laws.law("mode-times")
    short = [replace(one, steps=20) for one in law.experiments]
    controls = [replace(one, experiment=one.experiment and replace(one.experiment, steps=20)) for one in law.controls]
    monkeypatch.setattr(real.laws, "law", lambda name: replace(law, experiments=tuple(short), controls=tuple(controls)))
    line = json.loads(json.dumps(real.checked("mode-times", 0), allow_nan=False))
    assert {row["experiment"] for row in line["scored"]} == set(range(1, len(short) + 1))
    assert set(line["controls"]) == {control.name for control in controls}
    assert judged.summary("mode-times", [line])["verdict"] == "not applicable"
    assert {"seconds", "clock"} <= line.keys()
