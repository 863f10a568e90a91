"""A bad world round a good recipe: Ctrl-C anywhere, no memory, no disk, nobody who reads, two at once. Work that was cut short goes on to the same bytes."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_place import Case, Outcome, Place, environment, jsonl, judge, machine_readable, one_screen, play, rows, tree

from knowhow.cli import main
from knowhow.files import read_json
from knowhow.progress import stage_of
from knowhow.workspace import Run

RUNNER = [sys.executable, str(Path(__file__).with_name("bad_runner.py"))]
KNOWHOW = [sys.executable, "-m", "knowhow"]
STAGES = ("data", "base", "diagnose", "plan", "baseline", "adapt", "readout", "evaluate", "verify", "package", "report")


def sha(folder: Path) -> str:
    return str(read_json(folder / "package" / "specialist" / "knowhow.json")["digest"])


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def separately(words: list[str], folder: Path, *, runner: list[str] = KNOWHOW, **values: str) -> Outcome:
    """The command in a process of its own."""
    before = tree(folder)
    done = subprocess.run([*runner, *words], cwd=folder, capture_output=True, text=True, env=environment(**values), timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr, before, tree(folder))


def expect(code: int, *said: str, leaves: str = "nothing") -> Case:
    return Case("", lambda place: [], said, code, leaves)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal gives it, in a background job too (those are started with it ignored)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_each_stage_then_on_to_the_same_bytes(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words, at = place.recipe(), [""]

    def show(self: object, what: str, done: int, total: int) -> None:
        if stage_of(what) == at[0] and done < total:
            signal.raise_signal(signal.SIGINT)

    place.patch.setattr("knowhow.progress.Lines.__call__", show)
    for number, stage in enumerate(STAGES):
        at[0] = stage
        got = play([*words, *(["--resume"] if number else [])], place.folder, capfd.readouterr)
        judge(expect(75, "knowhow: stopped", "knowhow build r.yaml --resume", leaves="more"), got)
        assert [name for name in STAGES if (only_run(place.folder) / name / "seal.json").is_file()] == list(STAGES[:number])
    at[0] = ""
    assert play([*words, "--resume"], place.folder, capfd.readouterr).code == 0
    assert sha(only_run(place.folder)) == sha(place.finished)


@pytest.mark.parametrize("write", [1, 9, 20])
def test_a_disk_that_is_full_at_some_write(write: int, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words, count, sync = place.recipe(), [0], os.fsync

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] >= write:
            raise OSError(28, "No space left on device")
        sync(handle)

    place.patch.setattr("os.fsync", full)
    got = play(words, place.folder, capfd.readouterr)
    judge(expect(5, "the disk is full", "runs gc", leaves="run"), got)
    place.patch.setattr("os.fsync", sync)
    assert play([*words, *(["--resume"] if got.new else [])], place.folder, capfd.readouterr).code == 0
    assert sha(only_run(place.folder)) == sha(place.finished)


def test_two_builds_on_one_run(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words, name = place.recipe(), place.run()
    with Run(place.folder / "runs" / name).lease():
        for command in ([*words, "--resume"], ["runs", "rm", name, "--yes"]):
            judge(expect(2, "is in use by", str(os.getpid())), play(command, place.folder, capfd.readouterr))
    assert play([*words, "--resume"], place.folder, capfd.readouterr).code == 0


STDIN: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "binary": (bytes(range(256)), 2, ("not UTF-8", "stdin")),
    "nothing": (b"", 2, ("an empty text",)),
    "blanks": (b" \n\n", 2, ("an empty text",)),
    "a byte order mark": (b"\xef\xbb\xbfsnow", 0, ()),
    "more than a megabyte": (b"snow " * 300_000, 2, ("1,000,000 bytes", "knowhow predict")),
    "NUL": (b"snow \0 ice", 0, ()),
}


@pytest.mark.parametrize("name", STDIN)
def test_ask_reads_stdin(name: str, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    data, code, said = STDIN[name]
    expert = place.specialist()
    place.patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    judge(expect(code, *said), play(["ask", expert, "-"], place.folder, capfd.readouterr))


GOOD: dict[str, Callable[[Place], list[str]]] = {
    "ask": lambda p: ["ask", p.specialist(), "snow"],
    "predict": lambda p: ["predict", p.specialist(), p.file("new.jsonl", jsonl(rows(9)))],
    "eval": lambda p: ["eval", p.specialist(), p.file("new.jsonl", jsonl(rows(9)))],
    "inspect": lambda p: ["inspect", p.file("new.jsonl", jsonl(rows()))],
    "init": lambda p: ["init", "--yes", "--base", str(p.models / "llama"), "--data", p.file("new.jsonl", jsonl(rows()))],
    "report": lambda p: ["report", p.run()],
    "diff": lambda p: ["diff", name := p.run(), name],
    "runs ls": lambda p: (p.run(), ["runs", "ls"])[1],
    "runs gc": lambda p: (p.run(), ["runs", "gc", "--yes"])[1],
    "build": lambda p: p.recipe(),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_went_well_for_machines(name: str, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words = GOOD[name](place)
    got = play([*words, "--json"], place.folder, capfd.readouterr)
    machine_readable(expect(0, leaves="more"), got)
    assert got.out


def test_nobody_reads_the_output_of_a_build(place: Place) -> None:
    words = [*place.recipe(), "--json"]
    process = subprocess.Popen([*RUNNER, *words], cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    said = process.stderr.read()
    assert process.wait(300) == 75
    assert "--resume" in said
    one_screen(said)
    place.patch.chdir(place.folder)
    assert main([*words, "--resume", "--quiet"]) == 0
    assert sha(only_run(place.folder)) == sha(place.finished)


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [("| head -c 1", 0, ""), ("> /dev/full", 5, "the disk is full"), (">&-", 0, ""), ("2>&-", 0, ""), (">&- 2>&-", 0, ""), ("< /dev/null", 0, "")],
)
def test_streams_that_are_full_or_closed(redirect: str, code: int, said: str, tmp_path: Path) -> None:
    script = f'set -o pipefail; "$@" schema {redirect}'
    done = subprocess.run(["bash", "-c", script, "bash", *KNOWHOW], cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_a_terminal_without_the_characters(place: Place) -> None:
    """The table of a build has a minus sign and lines that ASCII lacks."""
    name = place.run()
    other = place.folder / "runs" / f"{name}-2"
    shutil.copytree(place.folder / "runs" / name, other)
    got = separately(["diff", name, other.name], place.folder, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert got.code == 0, got.err
    assert got.out.isascii()


def test_sigterm_ends_a_build_that_can_go_on(place: Place) -> None:
    words = [*place.recipe({"adapt.0.steps": 5000}), "--json"]
    process = subprocess.Popen([*RUNNER, *words], cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout
    for line in process.stdout:
        row = json.loads(line)
        if row.get("event") == "progress" and row["what"].startswith("phase"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    error = json.loads(out.splitlines()[-1])["error"]
    assert (error["type"], error["code"]) == ("Interrupted", 75)
    assert "--resume" in error["fix"]
    assert not err
    assert not [name for name in tree(place.folder) if name.endswith(".part")]


@pytest.mark.parametrize("megabytes", [60, *(pytest.param(size, marks=pytest.mark.slow) for size in (30, 120, 250))])
def test_out_of_memory(megabytes: int, place: Place) -> None:
    made = [row | {"text": f"{row['text']} {at}x " * 40} for at, row in enumerate(rows(800))]
    words = place.recipe({"adapt.0.batch_tokens": 100_000, "adapt.0.microbatch_tokens": 100_000}, data=place.file("many.jsonl", jsonl(made)))
    got = separately([*words, "--quiet"], place.folder, runner=[*RUNNER, f"+{megabytes}"])
    judge(expect(5, "out of memory", "microbatch_tokens", leaves="run"), got)


@pytest.fixture
def mounted(place: Place) -> Callable[[str, list[str]], Outcome]:
    """Runs a command with a small file system of its own at `disk`, where the process may mount one."""
    tried = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("no file system of its own can be mounted here (unshare -Urm)")
    (place.folder / "disk").mkdir()

    def run(options: str, words: list[str]) -> Outcome:
        kept = "; code=$?; cp -r disk kept; exit $code"
        script = f'mount -t tmpfs -o {options} tmpfs disk && "$@"{kept}'
        return separately(words, place.folder, runner=["unshare", "-Urm", "bash", "-c", script, "bash", *RUNNER])

    return run


def test_output_that_is_read_only(place: Place, mounted: Callable[[str, list[str]], Outcome]) -> None:
    got = mounted("ro", [*place.recipe(), "--runs", "disk/runs", "--quiet"])
    judge(expect(2, "Read-only file system", "choose a folder that you may write to", leaves="more"), got)


@pytest.mark.parametrize("size", ["160k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("8k", "40k", "80k", "300k", "500k", "900k"))])
def test_a_disk_that_is_full(size: str, place: Place, mounted: Callable[[str, list[str]], Outcome]) -> None:
    words = place.recipe()
    got = mounted(f"size={size}", [*words, "--runs", "disk/runs", "--quiet"])
    judge(expect(5, "the disk is full", leaves="more"), got)
    assert not list((place.folder / "kept").rglob("*/seal.json")) or list((place.folder / "kept" / "runs").glob("*/run.json"))
    if (place.folder / "kept" / "runs").is_dir():
        shutil.move(place.folder / "kept" / "runs", place.folder / "runs")
        assert main([*words, "--resume", "--quiet"]) == 0
        assert sha(only_run(place.folder)) == sha(place.finished)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 40, 150])
def test_files_that_may_not_grow(kilobytes: int, place: Place) -> None:
    words, before = place.recipe(), tree(place.folder)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, resource.RLIM_INFINITY))

    done = subprocess.run([*RUNNER, *words, "--quiet"], cwd=place.folder, capture_output=True, text=True, env=environment(), timeout=300, preexec_fn=limit)
    judge(expect(5, "a file larger than this system allows", leaves="run"), Outcome(done.returncode, done.stdout, done.stderr, before, tree(place.folder)))


@pytest.mark.slow
def test_two_builds_at_the_same_moment(place: Place) -> None:
    words = place.recipe()
    both = [subprocess.Popen([*RUNNER, *words, "--quiet"], cwd=place.folder, stderr=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert {code for _, code in ended} <= {0, 2}
    assert 0 in {code for _, code in ended}
    assert all("is in use by" in said for said, code in ended if code)
    for run in (place.folder / "runs").iterdir():
        assert sha(run) == sha(place.finished)
