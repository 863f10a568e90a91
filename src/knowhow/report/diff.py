"""Two runs side by side, ready for JSON: what differs in recipe, data, results and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowhow.files import read_jsonl
from knowhow.report import read
from knowhow.report.numbers import better_sign, number
from knowhow.types import EvalResult

MISSING = None


def diff(run_a: Path, run_b: Path) -> dict[str, Any]:
    """`recipe`, `data`, `cost`: rows {key, a, b} that differ; `results`: rows with both intervals and b minus a; `same_rows`: a paired count where both
    runs answered the same examples. Raises UsageError when either folder is not a run."""
    a, b = read.load(run_a), read.load(run_b)
    return {
        "a": {"run": a.get("run").get("id") or a.name, "recipe_sha256": a.get("run").get("recipe_sha256")},
        "b": {"run": b.get("run").get("id") or b.name, "recipe_sha256": b.get("run").get("recipe_sha256")},
        "recipe": changes(a.get("recipe"), b.get("recipe")),
        "data": changes(_data(a), _data(b)),
        "stages": [row for row in changes(_stages(a), _stages(b))],
        "results": results(a.results, b.results),
        "same_rows": same_rows(run_a, run_b),
        "cost": [row | {"change": _change(row)} for row in changes(_cost(a), _cost(b))],
    }


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects and lists as {dotted key: leaf}."""
    if isinstance(value, Mapping) and value:
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}
    if isinstance(value, list) and value and any(isinstance(item, Mapping) for item in value):
        return {key: leaf for index, part in enumerate(value) for key, leaf in flat(part, f"{prefix}[{index}]").items()}
    return {prefix: value}


def changes(a: Any, b: Any) -> list[dict[str, Any]]:
    """Rows {key, a, b} for every leaf that differs; null where a side has none."""
    left, right = flat(a), flat(b)
    keys = [key for key in dict.fromkeys([*left, *right]) if key and left.get(key, MISSING) != right.get(key, MISSING)]
    return [{"key": key, "a": left.get(key), "b": right.get(key)} for key in keys]


def results(a: tuple[EvalResult, ...], b: tuple[EvalResult, ...]) -> list[dict[str, Any]]:
    """b minus a per model, metric and slice. The interval treats the two as independent (MOVER: Zou & Donner 2008, eq. 3 with a minus sign),
    which is too wide when both saw the same rows: `clear` is then still safe to believe."""
    left = {(row.model, row.metric, row.slice): row for row in a}
    rows = []
    for row in b:
        other = left.get((row.model, row.metric, row.slice))
        if other is None:
            continue
        gap = row.value - other.value
        low = gap - math.hypot(row.value - row.low, other.high - other.value)
        high = gap + math.hypot(row.high - row.value, other.value - other.low)
        clear = low > 0 or high < 0
        better = None if not clear else "b" if gap * better_sign(row.metric) > 0 else "a"
        rows.append(
            {
                "model": row.model,
                "metric": row.metric,
                "slice": row.slice,
                "a": _result(other),
                "b": _result(row),
                "difference": gap,
                "low": low,
                "high": high,
                "better": better,
            }
        )
    return rows


def same_rows(run_a: Path, run_b: Path) -> dict[str, Any] | None:
    """Examples that both runs answered (same id and truth): how often only one was right, with the exact McNemar p-value; None when there are none."""
    left = {
        row.get("id"): (row.get("gold"), bool(row.get("correct"))) for row in read_jsonl(run_a / "evaluate/samples.jsonl") if isinstance(row.get("id"), str)
    }
    counts = {"n": 0, "both_right": 0, "only_a_right": 0, "only_b_right": 0}
    for row in read_jsonl(run_b / "evaluate/samples.jsonl"):
        gold, right_a = left.get(row.get("id") if isinstance(row.get("id"), str) else None, (None, False))
        if row.get("id") not in left or gold != row.get("gold"):
            continue
        right_b = bool(row.get("correct"))
        counts["n"] += 1
        counts["both_right"] += right_a and right_b
        counts["only_a_right"] += right_a and not right_b
        counts["only_b_right"] += right_b and not right_a
    return counts | {"p": mcnemar(counts["only_a_right"], counts["only_b_right"])} if counts["n"] else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial p-value of discordant pairs against one half (McNemar 1947, exact form)."""
    n, k = only_a + only_b, min(only_a, only_b)
    log_half = n * math.log(2)
    tail = sum(math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - log_half) for i in range(k + 1))
    return min(1.0, 2 * tail)


def _result(row: EvalResult) -> dict[str, float]:
    return {"value": row.value, "low": row.low, "high": row.high, "n": row.n}


def _data(run: read.Run) -> dict[str, Any]:
    audit = run.get("audit")
    kept = {
        key: audit[key] for key in ("rows", "duplicates", "leakage", "conflicts", "label_noise", "truncation", "balance", "tokens_per_word") if key in audit
    }
    return {"audit": _without_examples(kept), "vocabulary": run.get("vocabulary")}


def _without_examples(value: Any) -> Any:
    return {key: _without_examples(part) for key, part in value.items() if key != "examples"} if isinstance(value, Mapping) else value


def _stages(run: read.Run) -> dict[str, Any]:
    stages = run.get("run").get("stages")
    return {str(name): stage.get("digest") if isinstance(stage, Mapping) else stage for name, stage in stages.items()} if isinstance(stages, Mapping) else {}


def _cost(run: read.Run) -> dict[str, Any]:
    measured = run.get("measured")
    return {key: measured[key] for key in ("stages", "total_seconds", "parameters", "bytes", "tokens_per_second", "latency_ms") if key in measured}


def _change(row: Mapping[str, Any]) -> float | None:
    """b / a - 1, where both are numbers."""
    a, b = number(row, "a"), number(row, "b")
    return None if not a or b is None else b / a - 1
