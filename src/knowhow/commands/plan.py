"""`knowhow diagnose`, `knowhow plan`, `knowhow laws predict`: what is measured on the base, chosen and predicted, before any weight changes.

The run folder is the one that `knowhow build --resume` goes on with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow import reading
from knowhow.commands.build import How, specialist_recipe
from knowhow.commands.output import Output, table
from knowhow.files import read_json

RUN_FIRST = ("noise.scale", "line.ceiling", "overlap.general", "sink.share", "rows", "tokens", "classes")


def diagnose(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    """Measures the base; prints one line a metric."""
    run = _until("diagnose", path, sets, how, output)
    raw = read_json(run / "diagnose" / "diagnosis.json")
    rows = [dict(zip(("site", "metric", "value", "unit", "n"), row, strict=True)) for row in raw["measurements"]]
    output.result({"event": "diagnosed", "run": str(run), "digest": raw["digest"], "measurements": rows}, f"{_summary(rows)}\n\nrun  {run}")


def plan(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    """The choices, the predictions each rests on, and what the alternatives were predicted to cost."""
    run = _until("plan", path, sets, how, output)
    found = read_json(run / "plan" / "plan.json")
    text = "\n\n".join(_said(choice) for choice in found["choices"])
    output.result({"event": "planned", "run": str(run), **found}, f"{text}\n\nrun   {run}\nnext  knowhow build {path} --resume")


def predict(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    """Every law's predictions for this recipe."""
    run = _until("plan", path, sets, how, output)
    rows = read_json(run / "plan" / "predictions.json")
    shown = [[row["law"], row["quantity"], row["site"], f"{row['value']:.3g}", f"{row['low']:.3g} to {row['high']:.3g}"] for row in rows]
    output.result({"event": "predicted", "run": str(run), "predictions": rows}, table(("law", "quantity", "site", "predicted", "interval"), shown))


def _until(stage: str, path: Path, sets: Sequence[str], how: How, output: Output) -> Path:
    recipe, _ = specialist_recipe(path, sets)
    from knowhow import run
    from knowhow.loop.machine import keep_memory

    keep_memory()
    asked, root = reading.expanded(recipe), path.absolute().parent
    with output.progress() as progress:
        at = run.flow(asked, runs=how.runs, resume=None, start_from=None, progress=progress, root=root, until=stage)
    return at.run.folder


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a metric: its value, or the range over sites with the site of the largest."""
    metrics: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        metrics[row["metric"]].append(row)
    ordered = sorted(metrics, key=lambda name: (name not in RUN_FIRST, name))
    shown = []
    for name in ordered:
        found = metrics[name]
        largest = max(found, key=lambda row: row["value"])
        least = min(row["value"] for row in found)
        one = len(found) == 1
        shown.append([name, f"{largest['value']:.4g}" if one else f"{least:.3g} to {largest['value']:.3g}", "" if one else largest["site"], largest["unit"]])
    return table(("measured", "value", "largest at", "unit"), shown)


def _said(choice: Mapping[str, Any]) -> str:
    """A choice, why, and the alternatives."""
    value = choice["value"]
    shown = ", ".join(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value
    if isinstance(value, dict):
        shown = ", ".join(f"{name} {rank}" for name, rank in value.items())
    lines = [f"{choice['choice']}: {shown}"]
    for one in choice["because"][:4]:
        lines.append(f"  because  {one['law']}: {one['quantity']} ({one['site']}) {one['value']:.3g}, {one['low']:.3g} to {one['high']:.3g}")
    if choice["alternatives"]:
        lines.append("  instead  " + ", ".join(f"{name}: {cost:.3g}" for name, cost in choice["alternatives"].items()))
    return "\n".join(lines)
