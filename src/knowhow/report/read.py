"""A run folder as plain data. Nothing in it is trusted: a file may be absent, torn, huge or of another shape, and the page says so in one line."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow.errors import KnowhowError, UsageError
from knowhow.files import read_json, read_jsonl
from knowhow.report.numbers import number
from knowhow.types import EvalResult, Interval

FILES = {
    "run": "run.json",
    "recipe": "recipe.json",
    "estimate": "estimate.json",
    "readout": "readout/choice.json",
    "audit": "data/audit.json",
    "vocabulary": "base/vocabulary.json",
    "results": "evaluate/results.json",
    "confusion": "evaluate/confusion.json",
    "calibration": "evaluate/calibration.json",
    "forgetting": "evaluate/forgetting.json",
    "memorisation": "evaluate/memorisation.json",
    "robustness": "evaluate/robustness.json",
    "measured": "measured.json",
    "package": "package/specialist/knowhow.json",
    "findings": "explain/findings.json",
    "methods": "explain/methods.json",
    "inside": "explain/inside.json",
    "diff": "explain/diff.json",
    "circuit": "looked/circuit.json",
    "features": "looked/features.json",
    "influence": "looked/influence.json",
    "predictions": "verify/predictions.json",
}
LISTS = frozenset({"results", "findings", "methods", "predictions", "robustness"})
LIMIT = 64_000_000
SAMPLES_WRONG, SAMPLES_RIGHT, EVIDENCE = 6, 4, 20


@dataclass(frozen=True, slots=True)
class Run:
    """`files`: parsed content by key (mapping or list); `why`: for each key that is absent, one line that says why."""

    name: str
    files: Mapping[str, Any]
    why: Mapping[str, str]
    results: tuple[EvalResult, ...]
    trace: tuple[Mapping[str, Any], ...]
    wrong: tuple[Mapping[str, Any], ...]
    right: tuple[Mapping[str, Any], ...]
    evidence: tuple[Mapping[str, Any], ...] = ()

    def get(self, key: str) -> Mapping[str, Any]:
        """The object of that file, or an empty one."""
        return self.files.get(key, {})

    def reason(self, *keys: str) -> str:
        return "; ".join(self.why[key] for key in keys if key in self.why)


def load(folder: Path) -> Run:
    """Read what there is. Raises UsageError when `folder` is not a run (no run.json and no recipe.json)."""
    files: dict[str, Any] = {}
    why: dict[str, str] = {}
    for key, name in FILES.items():
        content = _content(folder / name, list if key in LISTS else dict)
        if isinstance(content, str):
            asked = f"not asked for (of classifiers: `knowhow look {folder.name} {key}`)"
            why[key] = asked if name.startswith("looked/") and not (folder / name).exists() else content.format(name=name)
        else:
            files[key] = content
    if not (folder / FILES["run"]).is_file() and not (folder / FILES["recipe"]).is_file():
        raise UsageError(f"{folder.name} holds neither run.json nor recipe.json", allowed="the folder of a run", fix="see `knowhow runs ls`", where=str(folder))
    results = tuple(result for row in files.get("results", []) if (result := eval_result(row)) is not None)
    if "results" in files and not results:
        why["results"] = f"{FILES['results']} holds no results"
    trace = tuple(_rows(folder / "adapt/trace.jsonl", "trace", why))
    wrong, right = _samples(folder / "evaluate/samples.jsonl", why)
    evidence = tuple(itertools.islice(read_jsonl(folder / "explain/evidence.jsonl"), EVIDENCE))
    return Run(folder.name, files, why, results, trace, wrong, right, evidence)


def eval_result(row: object) -> EvalResult | None:
    """One EvalResult of results.json; None when a needed field is missing or of another kind."""
    if not isinstance(row, Mapping):
        return None
    value, low, high, n = (number(row, key) for key in ("value", "low", "high", "n"))
    if value is None:
        return None
    paired = row.get("paired") if isinstance(row.get("paired"), Mapping) else {}
    return EvalResult(
        task=str(row.get("task", "")),
        metric=str(row.get("metric", "")),
        value=value,
        low=value if low is None else low,
        high=value if high is None else high,
        n=int(n or 0),
        slice=str(row.get("slice", "all")),
        model=str(row.get("model", "")),
        paired={str(name): gap for name, item in paired.items() if (gap := _interval(item)) is not None},
    )


def _interval(item: object) -> Interval | None:
    value, low, high, n = (number(item, key) for key in ("value", "low", "high", "n"))
    return None if value is None or low is None or high is None else Interval(value, low, high, int(n or 0))


def _content(path: Path, kind: type) -> Any:
    """Parsed JSON of the wanted kind, or a line that says why there is none."""
    if not path.is_file():
        return "not run: {name} is not there"
    if path.stat().st_size > LIMIT:
        return "{name} is larger than 64 MB and was left out"
    try:
        content = read_json(path)
    except (KnowhowError, ValueError, RecursionError, OSError):
        return "{name} could not be read as JSON"
    return content if isinstance(content, kind) else "{name} does not have the expected form"


def _rows(path: Path, key: str, why: dict[str, str]) -> Sequence[Mapping[str, Any]]:
    rows = list(read_jsonl(path))
    if not rows:
        why[key] = f"not run: {path.parent.name}/{path.name} is not there or empty"
    return rows


def _samples(path: Path, why: dict[str, str]) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    """The most confident wrong and right answers; two passes that never hold the whole file."""
    if not path.is_file():
        why["samples"] = "not run: evaluate/samples.jsonl is not there"
        return (), ()

    def best(correct: bool, limit: int) -> tuple[Mapping[str, Any], ...]:
        rows = (row for row in read_jsonl(path) if bool(row.get("correct")) is correct)
        return tuple(heapq.nlargest(limit, rows, key=lambda row: number(row, "confidence") or 0.0))

    wrong, right = best(False, SAMPLES_WRONG), best(True, SAMPLES_RIGHT)
    if not wrong and not right:
        why["samples"] = "evaluate/samples.jsonl holds no examples"
    return wrong, right
