"""Where a bad case is played: a folder with good rows and a tiny base, a recipe that works until one thing in it is spoilt, and what came of the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from knowhow.cli import main

SCREEN_LINES, LINE = 24, 2000
WORDS = {"warm": ("sun", "fire", "summer", "desert"), "cold": ("ice", "snow", "winter", "frost")}
FAST = {"draws": 20, "baselines": ["majority"], "forgetting": False, "memorisation": False}
Row = dict[str, Any]


def rows(count: int = 40) -> list[Row]:
    """Texts that say their label, no two alike."""
    made = []
    for at in range(count):
        label = ("warm", "cold")[at % 2]
        first, second = WORDS[label][at // 2 % 4], WORDS[label][at // 8 % 4]
        made.append({"text": f"{first} {at * 7919 % 1000} and {second} {at * at} of {at * 31}", "label": label})
    return made


def jsonl(made: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in made)


@dataclass(frozen=True)
class Place:
    """`folder` is the working folder of the command; `models` holds the bases, `finished` a finished run (both to be copied, never changed)."""

    folder: Path
    models: Path
    finished: Path
    patch: Any = None

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def recipe(self, changes: Mapping[str, Any] | None = None, *, data: str | None = None) -> list[str]:
        """`build` of a recipe that works, with dotted keys changed; None removes the key. `data`: the rows' file, by default good ones."""
        if data is None:
            data = self.file("rows.jsonl", jsonl(rows()))
        asked: Row = {
            "schema_version": 1,
            "name": "tiny",
            "base": {"model": str(self.models / "llama")},
            "data": {"train": data, "split": {"valid": 0.2, "test": 0.2}},
            "adapt": [{"steps": 2, "batch_tokens": 256, "microbatch_tokens": 256}],
            "evaluate": dict(FAST),
            "explain": {"examples": 0},
        }
        for key, value in (changes or {}).items():
            *above, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
            holder: Any = reduce(lambda inner, part: inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part], above, asked)
            if value is None:
                holder.pop(last, None)
            else:
                holder[last] = value
        self.file("r.yaml", yaml.safe_dump(asked, allow_unicode=True, sort_keys=False))
        return ["build", "r.yaml"]

    def yaml(self, text: str | bytes) -> list[str]:
        """`build` of a recipe as it stands."""
        self.file("rows.jsonl", jsonl(rows()))
        return ["build", self.file("r.yaml", text)]

    def model(self, spoil: Callable[[Path], object] | None = None, family: str = "llama") -> Path:
        """A copy of a base, spoilt."""
        folder = Path(shutil.copytree(self.models / family, self.folder / "model"))
        if spoil is not None:
            spoil(folder)
        return folder

    def base(self, spoil: Callable[[Path], object], family: str = "llama") -> list[str]:
        """`build` on a spoilt base."""
        self.model(spoil, family)
        return self.recipe({"base.model": "./model"})

    def specialist(self, spoil: Callable[[Path], object] | None = None) -> str:
        """A copy of a finished specialist."""
        folder = Path(shutil.copytree(self.finished / "package" / "specialist", self.folder / "expert"))
        if spoil is not None:
            spoil(folder)
        return "expert"

    def run(self) -> str:
        """A copy of a finished run, under its own name in `runs`."""
        shutil.copytree(self.finished, self.folder / "runs" / self.finished.name)
        return self.finished.name


@dataclass(frozen=True)
class Case:
    """One bad input. `given` prepares the place and returns the command line; `said` are words of the error.

    `leaves`: "nothing" (the folder is as it was), "run" (a run that --resume takes up), "more" (what was asked for; exit 0)."""

    name: str
    given: Callable[[Place], list[str]]
    said: tuple[str, ...]
    code: int = 2
    leaves: str = "nothing"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    before: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    after: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def new(self) -> set[str]:
        return {name for name in self.after if self.after[name] != self.before.get(name)}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """{name: (size, inode)} of everything under `folder`, folders included."""
    found = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        found[path.relative_to(folder).as_posix()] = (0 if path.is_dir() and not path.is_symlink() else about.st_size, about.st_ino)
    return found


def play(words: list[str], folder: Path, read: Callable[[], tuple[str, str]]) -> Outcome:
    """The command in this process; `read` gives what it wrote on stdout and stderr."""
    before, handler = tree(folder), signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        code = main(words)
    signal.signal(signal.SIGTERM, handler)
    return Outcome(code, *read(), before, tree(folder))


def judge(case: Case, got: Outcome) -> None:
    """The rules that every failure keeps."""
    shown = f"\n{got.out}\n{got.err}"
    assert got.code == case.code, shown
    assert "Traceback" not in shown
    assert not [word for word in case.said if word not in got.out + got.err], shown
    one_screen(got.err)
    if got.code:
        assert got.err.count("knowhow: ") == 1, shown
        assert "     got: " in got.err, shown
        assert " allowed: " in got.err or "      do: " in got.err, shown
    nothing_half_written(case, got)


def one_screen(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= SCREEN_LINES, text
    assert max(map(len, lines), default=0) <= LINE, max(map(len, lines))


def nothing_half_written(case: Case, got: Outcome) -> None:
    torn = [name for name in got.after if name.endswith((".part", ".tmp", ".new", ".old", ".incomplete"))]
    assert not torn, torn
    if case.leaves == "nothing":
        assert got.after == got.before, sorted(got.new | set(got.before) - set(got.after))
    if case.leaves == "run":
        others = sorted(name for name in got.new if name.partition("/")[0] != "runs")
        assert not others, others
        runs = {name.split("/")[1] for name in got.new if name.count("/")}
        assert all({f"runs/{run}/run.json", f"runs/{run}/data/seal.json"} <= set(got.after) for run in runs), sorted(got.new)


def machine_readable(case: Case, got: Outcome) -> None:
    """With --json: JSON lines on stdout and nothing else anywhere; the last is the error."""
    rows = [json.loads(line) for line in got.out.splitlines()]
    assert got.code == case.code, got.out + got.err
    assert not got.err, got.err
    if got.code:
        assert [row for row in rows if "error" in row] == rows[-1:], got.out
        error = rows[-1]["error"]
        assert error["code"] == case.code
        assert set(error) == {"type", "code", "message", "got", "allowed", "fix", "where"}
        assert error["got"]
        assert error["allowed"] or error["fix"]


def environment(**values: str) -> dict[str, str]:
    """The environment of a subprocess: nothing that would change what knowhow does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KNOWHOW_", "PYTEST_"))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} | values
