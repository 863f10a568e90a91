"""A run on disk: its folder, its lease, and stages sealed by digest so that a killed build goes on where it stopped."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow import __version__
from knowhow.errors import Interrupted, UsageError
from knowhow.files import append_jsonl, digest, digest_folder, read_json, write_json, writing

OUTSIDE_DIGESTS = ("measured.json", "seal.json", "started.json", "seconds.jsonl")
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


@dataclass(frozen=True, slots=True)
class Run:
    """`folder` holds one sub-folder per stage. Everything but measured.json is a function of recipe, data, base, code and machine class."""

    folder: Path

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], None]) -> str:
        """Run `work(folder)` unless this stage is sealed for the same inputs; returns the digest of what it left.

        A stage begun with other inputs starts afresh; one begun with the same inputs finds its own half-done files."""
        folder = self.path(name)
        asked = digest({"stage": name, "version": __version__, **inputs})
        seal = folder / "seal.json"
        if seal.is_file():
            sealed = read_json(seal)
            if sealed["inputs"] == asked and sealed["files"] == digest_folder(folder, without=OUTSIDE_DIGESTS):
                self.log(stage=name, event="kept")
                return str(sealed["digest"])
            seal.unlink()
        started = folder / "started.json"
        if folder.exists() and (not started.is_file() or read_json(started)["inputs"] != asked):
            shutil.rmtree(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(started, {"inputs": asked})
        self.log(stage=name, event="started")
        clock = time.monotonic()
        work(folder)
        files = digest_folder(folder, without=OUTSIDE_DIGESTS)
        result = digest({"inputs": asked, "files": files})
        write_json(seal, {"inputs": asked, "files": files, "digest": result})
        self.measure(stages={name: round(time.monotonic() - clock, 2)})
        self.log(stage=name, event="sealed", digest=result)
        return result

    def sealed(self, name: str) -> str | None:
        """Digest of a finished stage, None when it is not finished."""
        seal = self.path(name, "seal.json")
        return str(read_json(seal)["digest"]) if seal.is_file() else None

    def measure(self, **values: Any) -> None:
        """Add to measured.json: times, speeds and dates live there alone, outside every digest. Seconds of a resumed stage add up."""
        path = self.path("measured.json")
        known = read_json(path) if path.is_file() else {}
        for name, value in values.items():
            if name == "stages":
                stages = known.setdefault("stages", {})
                for stage, seconds in value.items():
                    stages[stage] = round(stages.get(stage, 0) + seconds, 2)
            else:
                known[name] = value
        write_json(path, known)

    def log(self, **row: Any) -> None:
        append_jsonl(self.path("log.jsonl"), row)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """One process per run; the operating system lets go of the lease when the process dies, however it dies."""
        path = self.path("lease.json")
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise UsageError(f"the run {self.folder.name} is in use by {holder}", fix="wait for it, or stop it first", where=str(self.folder)) from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, f'{{"process": {os.getpid()}, "host": "{platform.node()}"}}\n'.encode(), 0)
            yield
        finally:
            os.close(handle)


@contextmanager
def nothing_from_nothing(folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """Work that failed before anything was kept (`begun`) leaves no folder behind: there is nothing to go on with, and the next try starts clean.

    An interruption leaves it: `--resume` goes on with it."""
    try:
        yield
    except (Interrupted, BrokenPipeError):
        raise
    except Exception:
        if not begun():
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
        raise


def check_name(name: str) -> str:
    """Names are not paths. Raises UsageError."""
    if not NAME.match(name) or ".." in name:
        raise UsageError(f"{name!r} is not a name", allowed="a to z, 0 to 9, dot, dash and underscore; at most 64; the first a letter or digit")
    return name


def find_run(where: str, runs: Path) -> Run:
    """A run by name (under `runs`) or by its folder. Raises UsageError listing the runs there are."""
    folder = Path(where) if "/" in where or Path(where, "run.json").is_file() else runs / check_name(where)
    if not (folder / "run.json").is_file():
        there = ", ".join(run.folder.name for run in list_runs(runs)) or "none yet"
        raise UsageError(f"no run at {folder}", allowed=f"runs in {runs}: {there}", fix="`knowhow runs ls` lists them")
    return Run(folder)


def list_runs(runs: Path) -> list[Run]:
    """Runs in `runs`, oldest first."""
    folders = [path.parent for path in runs.glob("*/run.json")] if runs.is_dir() else []
    return [Run(folder) for folder in sorted(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)]


def open_run(runs: Path, name: str, recipe_digest: str, *, resume: bool | None) -> Run:
    """The folder for a build: on resume the newest of this recipe, otherwise a fresh one (name, first eight digits of the recipe's digest, -2, -3 …).
    None: the newest if there is one."""
    stem = f"{name[:50]}-{recipe_digest[:8]}"
    same = [run for run in list_runs(runs) if run.folder.name == stem or run.folder.name.startswith(stem + "-")]
    if resume or (resume is None and same):
        if not same:
            fix = "leave --resume away, or give the same --set values and --runs folder as before"
            raise UsageError(f"nothing to resume: no run of this recipe in {runs}", fix=fix)
        return same[-1]
    taken = {run.folder.name for run in same}
    fresh = next(candidate for candidate in [stem, *(f"{stem}-{k}" for k in range(2, 10_000))] if candidate not in taken)
    return Run(runs / fresh)
