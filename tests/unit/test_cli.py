"""The command line: quick help, nothing heavy before it is needed, every failure on one screen with its exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from knowhow import __version__, errors
from knowhow.cli import app, main
from knowhow.commands.failures import guarded

KNOWHOW = [sys.executable, "-m", "knowhow"]


def failing(error: BaseException) -> typer.Typer:
    """A command line whose only command raises."""
    tiny = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

    @tiny.callback()
    def root() -> None:
        pass

    @tiny.command()
    def build(json: bool = typer.Option(False, "--json")) -> None:
        raise error

    return tiny


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knowhow.commands.failures._settle", lambda debug: None)
    for name in [name for name in os.environ if name.startswith("KNOWHOW_") and name != "KNOWHOW_DATA"]:
        monkeypatch.delenv(name)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in ("build", "init", "inspect", "eval", "predict", "ask", "diff", "runs", "report", "doctor", "pretrain", "schema"):
        assert re.search(rf"^  {name} ", shown, re.MULTILINE), name
    assert main(["runs"]) == 0
    assert "gc" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", [["--help"], ["build", "--help"]])
def test_help_is_quick(command: list[str]) -> None:
    """Seconds of a core, the best of some tries: other processes share the machine, and nothing here waits."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*KNOWHOW, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.4


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, knowhow.cli as cli; cli.main(['build', '--help']); print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    heavy = {"torch", "transformers", "numpy", "scipy", "sklearn", "datasets", "altair", "lightgbm", "yaml", "rich", "tokenizers", "pyarrow"}
    assert not heavy & set(re.findall(r"'(\w+)'", found))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.UsageError("a", allowed="b", fix="c", where="d:1"), 2, ["at: d:1", "got: a", "allowed: b", "do: c"]),
        (errors.GateError("below the gate"), 3, ["below the gate"]),
        (errors.SafetyError("a pickle"), 4, ["a pickle"]),
        (errors.ResourceError("no memory"), 5, ["no memory"]),
        (errors.Interrupted("stopped", fix="go on"), 75, ["stopped", "go on"]),
        (KeyboardInterrupt(), 75, ["knowhow build --resume"]),
        (typer.Abort(), 75, ["stopped"]),
        (MemoryError(), 5, ["out of memory", "microbatch_tokens"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 5, ["out of memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 5, ["disk is full", "runs gc", "x.bin"]),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 2, ["Permission denied", "x.bin"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), 2, ["too long", "more characters"]),
        (typer.BadParameter("no such thing"), 2, ["no such thing", "--help"]),
        (ZeroDivisionError("division by zero"), 1, ["bug", "ZeroDivisionError", "knowhow-bug-"]),
        (RecursionError("deep"), 1, ["bug"]),
        (OSError(errno.EIO, "Input/output error"), 1, ["bug"]),
    ],
)
def test_failures(error: BaseException, code: int, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(error), ["build"]) == code
    shown = capsys.readouterr()
    assert not shown.out
    assert not [words for words in said if words not in shown.err], shown.err
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") < 24


def test_failures_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(failing(errors.SafetyError("a pickle", fix="x", where="y")), ["build", "--json"]) == 4
    shown = capsys.readouterr()
    assert not shown.err
    row = json.loads(shown.out)["error"]
    assert (row["type"], row["code"], row["got"], row["fix"], row["where"]) == ("SafetyError", 4, "a pickle", "x", "y")


def test_a_bug_leaves_its_traceback_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guarded(failing(ValueError("odd \ud800 \x1b[31m")), ["build"]) == 1
    shown = capsys.readouterr().err
    path = Path(re.search(r"\S*knowhow-bug-\S+\.txt", shown)[0])  # type: ignore[index]
    assert "Traceback" in path.read_text()
    assert "\x1b" not in shown


def test_a_bug_with_nowhere_to_write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert guarded(failing(ValueError("odd")), ["build"]) == 1
    assert "KNOWHOW_DEBUG=1" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWHOW_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        guarded(failing(ValueError("odd")), ["build"])
    assert guarded(failing(errors.UsageError("still short")), ["build"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["buld", "x"], "build"),
        (["build"], "RECIPE"),
        (["build", "r.yaml", "--resum"], "--resume"),
        (["build", "absent.yaml"], "no such file"),
        (["build", "."], "a folder"),
        (["build", "\x00"], "null"),
        (["runs", "rm", "../x", "--yes"], "not a name"),
        (["runs", "rm", "absent", "--yes"], "no run"),
        (["report", "absent"], "runs ls"),
        (["diff", "a"], "RUN"),
        (["init", "--yes", "--task", "x"], "--data"),
        (["inspect", "absent.csv"], "absent.csv"),
    ],
)
def test_bad_command_lines(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown, shown
    assert shown.startswith("knowhow: error\n")


def test_environment_mirrors_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("KNOWHOW_RUNS", str(tmp_path / "elsewhere"))
    assert main(["runs", "ls"]) == 0
    assert "elsewhere" in capsys.readouterr().out
    monkeypatch.setenv("KNOWHOW_JSON", "1")
    assert main(["report", "absent"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == 2


def test_schema_is_printed_and_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    published = Path(__file__).resolve().parents[2] / "docs" / "recipe.schema.json"
    assert printed == json.loads(published.read_text()), "`make docs` writes docs/recipe.schema.json anew"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_resumable(stop: signal.Signals) -> None:
    # a job that a shell started in the background ignores Ctrl-C, and so would what it starts: the child asks for the usual handler
    code = (
        "import signal, time, typer\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from knowhow.commands.failures import guarded\nslow = typer.Typer()\n"
        "@slow.callback()\ndef root(): pass\n@slow.command()\ndef build():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "raise SystemExit(guarded(slow, ['build']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(stop)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 75
    assert "--resume" in said


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen([*KNOWHOW, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == b""


def test_every_command_has_json_and_quiet() -> None:
    group: Callable[..., object] = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for inner in command.commands.values() if name in ("runs", "laws") else [command]:
            assert {"--json", "--quiet"} <= {option for parameter in inner.params for option in parameter.opts}, name
