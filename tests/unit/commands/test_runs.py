"""Runs on disk: listed, found by recipe, removed only when sure and never while in use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from knowhow.cli import main
from knowhow.commands.runs import resolve
from knowhow.errors import UsageError
from knowhow.files import write_json
from knowhow.workspace import Run


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knowhow.commands.failures._settle", lambda debug: None)


def made(name: str, *stages: str, age: int = 0) -> Run:
    run = Run(Path("runs") / name)
    write_json(run.path("run.json"), {"id": name})
    for stage in stages:
        write_json(run.path(stage, "seal.json"), {"digest": "0" * 64, "inputs": "", "files": {}})
    stamp = 1_700_000_000 - age
    os.utime(run.path("run.json"), (stamp, stamp))
    return run


def test_ls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "ls"]) == 0
    assert "no runs" in capsys.readouterr().out
    made("a-11111111", "data", "base", "baseline", "adapt", "evaluate", "package", "report", age=10)
    made("b-22222222", "data")
    made("c-33333333", age=20)
    assert main(["runs", "ls", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["run"], row["state"]) for row in listed] == [("c-33333333", "begun"), ("a-11111111", "done"), ("b-22222222", "after data")]


def test_a_recipes_name_means_its_newest_run() -> None:
    made("a-11111111", age=10)
    newest = made("a-22222222")
    other = made("ab-33333333")
    assert resolve("a", Path("runs")).folder == newest.folder
    assert resolve("a-11111111", Path("runs")).folder.name == "a-11111111"
    assert resolve(str(other.folder), Path("runs")).folder == other.folder
    for bad in ("absent", "../a-11111111", "A"):
        with pytest.raises(UsageError):
            resolve(bad, Path("runs"))


def test_rm_wants_to_be_sure(capsys: pytest.CaptureFixture[str]) -> None:
    run = made("a-11111111")
    assert main(["runs", "rm", "a-11111111"]) == 2
    assert "--yes" in capsys.readouterr().err
    with run.lease():
        assert main(["runs", "rm", "a-11111111", "--yes"]) == 2
        assert "in use" in capsys.readouterr().err
    assert run.folder.is_dir()
    assert main(["runs", "rm", "a-11111111", "--yes"]) == 0
    assert not run.folder.exists()


@pytest.mark.parametrize("name", ["..", ".", "a/../../b", "/etc", "runs/a"])
def test_rm_takes_names_not_paths(name: str) -> None:
    made("a-11111111")
    Path("precious").mkdir()
    assert main(["runs", "rm", name, "--yes"]) == 2
    assert Path("precious").is_dir()
    assert Path("runs/a-11111111").is_dir()


def test_gc_leaves_what_is_sealed_or_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    done, begun, busy = made("a-11111111", "data"), made("b-22222222"), made("c-33333333")
    torn = done.path("adapt", ".model.safetensors.123.part")
    torn.parent.mkdir()
    torn.write_bytes(b"half")
    with busy.lease():
        assert main(["runs", "gc", "--yes"]) == 0
    capsys.readouterr()
    assert not torn.exists()
    assert not begun.folder.exists()
    assert busy.folder.is_dir()
    assert done.path("data", "seal.json").is_file()
    assert main(["runs", "gc", "--yes", "--runs", "absent"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
