"""How it learned and what it cost: learning curves, time, size, speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.files import digest
from knowhow.report import charts, curves
from knowhow.report.numbers import DASH, better_sign, count, decimal, duration, in_order, metric_name, number, part, percent, plural, size
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.read import Run
from knowhow.report.text import clean


def learning(run: Run) -> Section:
    """Training loss with validation loss, each validation metric, and the learning rate, over all phases in a row."""
    rows, phases = global_steps(run.trace)
    train = curves.thin(_series(rows, "loss"))
    losses = [{"x": x, "value": y} for x, y in _series(rows, "valid_loss")]
    if not train and not losses:
        return Section(missing="adapt/trace.jsonl holds neither losses nor validations")
    lines = [{"x": start, "label": f"phase {int(name) + 1}" if name.isdecimal() else clean(name, 24)} for name, start in phases[1:]]
    bare = [{"x": line["x"], "label": ""} for line in lines]
    figures = [_loss(train, losses, lines), *(_validation(rows, key, bare) for key in validations(rows)[:3])]
    rates = curves.thin(_series(rows, "lr"))
    if rates:
        peak = max(rate["value"] for rate in rates)
        spec = curves.learning([rate | {"low": rate["value"], "high": rate["value"]} for rate in rates], [], "learning rate", phases=bare, height=190)
        figures.append(Figure("lr", f"The learning rate peaks at {peak:.2g}.", spec, wide=False))
    seen = max((number(row, "tokens") or 0 for row in rows), default=0)
    told = [plural(number(rows[-1], "x"), "optimizer step"), f"{count(seen)} tokens" if seen else "", f"{len(phases)} phases" if len(phases) > 1 else ""]
    return Section(lead=", ".join(item for item in told if item) + ".", figures=tuple(figures))


def global_steps(trace: tuple[Mapping[str, Any], ...]) -> tuple[list[dict[str, Any]], list[tuple[str, float]]]:
    """Rows with `x`, the step counted over all phases, and (phase, where it begins). A step logged twice (resumed) keeps its last values."""
    merged: dict[tuple[str, float], dict[str, Any]] = {}
    for row in trace:
        step = number(row, "step")
        if step is not None:
            merged.setdefault((str(row.get("phase", "")), step), {}).update(row)
    starts: list[tuple[str, float]] = []
    rows: list[dict[str, Any]] = []
    for phase in dict.fromkeys(phase for phase, _ in merged):
        steps = sorted(step for name, step in merged if name == phase)
        end = float(rows[-1]["x"]) if rows else 0.0
        # a phase that counts on from the one before needs no offset
        offset = 0.0 if not rows or steps[0] > end else end
        starts.append((phase, offset if offset else steps[0]))
        rows += [merged[phase, step] | {"x": step + offset} for step in steps]
    return rows, starts


def validations(rows: list[dict[str, Any]]) -> list[str]:
    """Names of the validation columns but the loss, in order of appearance."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith("valid_") and key != "valid_loss" and _series(rows, key)]


def _series(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(row["x"]), value) for row in rows if (value := number(row, key)) is not None]


def _loss(train: list[dict[str, float]], valid: list[dict[str, float]], lines: list[dict[str, Any]]) -> Figure:
    keys = (Key("other", "training, with the range within each point"),) * bool(train) + (Key("accent", "validation"),) * bool(valid)
    parts = [f"training loss goes from {decimal(train[0]['value'])} to {decimal(train[-1]['value'])}"] if train else []
    if valid:
        best, last = min(valid, key=lambda row: row["value"]), valid[-1]["value"]
        rise = f" and rises to {decimal(last)} by the end (overfitting)" if last > best["value"] * 1.02 else ""
        parts.append(f"validation loss is lowest at step {count(best['x'])} ({decimal(best['value'])}){rise}")
    sentence = "; ".join(parts)
    cells = tuple((count(row["x"]), decimal(row["value"], 4)) for row in valid[:100])
    table = Table("Validation loss", ("step", "loss"), cells, frozenset({0, 1})) if valid else None
    return Figure("loss", f"{sentence[:1].upper()}{sentence[1:]}.", curves.learning(train, valid, "loss", phases=lines), table, keys)


def _validation(rows: list[dict[str, Any]], key: str, lines: list[dict[str, Any]]) -> Figure:
    metric = key.removeprefix("valid_")
    points = [{"x": x, "value": y} for x, y in _series(rows, key)]
    best = (max if better_sign(metric) > 0 else min)(points, key=lambda row: row["value"])
    sentence = f"Validation {clean(metric_name(metric), 60)} is best at step {count(best['x'])}: {decimal(best['value'])}."
    cells = tuple((count(point["x"]), decimal(point["value"], 4)) for point in points[:100])
    table = Table(f"Validation {metric_name(metric)}", ("step", "value"), cells, frozenset({0, 1}))
    spec = curves.learning([], points, clean(metric_name(metric), 40), phases=lines, best=best | {"label": decimal(best["value"])}, height=190)
    return Figure(f"valid-{digest(metric)[:8]}", sentence, spec, table, wide=False)


def cost(run: Run) -> Section:
    """Time per stage, size, speed, and the estimate beside what was measured."""
    measured = run.get("measured")
    named = part(measured, "stages")
    stages = {str(name): seconds for name in in_order(named) if (seconds := number(named, name)) is not None}
    total = number(measured, "total_seconds") or sum(stages.values()) or None
    minutes = number(run.get("estimate"), "minutes")
    estimated = f"estimated {duration(minutes * 60)}" if minutes and total else ""
    latency = part(measured, "latency_ms")
    half = number(latency, "latency_ms_p50") if number(latency, "p50") is None else number(latency, "p50")
    most = next(((name, value) for name in ("p95", "p90") if (value := number(latency, name) or number(latency, f"latency_ms_{name}")) is not None), None)
    tiles = (
        Tile("whole build", duration(total), estimated),
        Tile("training", duration(stages.get("adapt")), _watched(part(measured, "observers"))),
        Tile("parameters", count(number(measured, "parameters"))),
        Tile("size on disk", size(number(measured, "bytes"))),
        Tile("training speed", count(number(measured, "tokens_per_second")), "tokens per second"),
        Tile("answer time", f"{decimal(half, 1)} ms", f"in the middle; {most[0][1:]}% within {decimal(most[1], 1)} ms" if most else ""),
    )
    shown = tuple(tile for tile in tiles if not tile.value.startswith(DASH))
    return Section(tiles=shown, figures=(_stages(stages, total or 1.0),) if stages else ())


def _watched(observers: Mapping[str, Any]) -> str:
    training = number(observers, "training")
    looks = sum(number(observers, name) or 0.0 for name in observers if name != "training")
    return f"observers took {percent(looks / training, 1)} of it" if training else ""


def _stages(stages: Mapping[str, float], total: float) -> Figure:
    longest = max(stages, key=lambda name: stages[name])
    unit, seconds_per = ("minutes", 60.0) if stages[longest] > 240 else ("seconds", 1.0)
    rows = [
        {"name": name, "value": seconds / seconds_per, "label": duration(seconds), "colour": charts.ACCENT if name == longest else charts.OTHER}
        for name, seconds in stages.items()
    ]
    sentence = f"The stage {clean(longest, 40)} took {duration(stages[longest])}, {percent(stages[longest] / total, 0)} of the build."
    table = Table("Time per stage", ("stage", "time"), tuple((clean(name, 40), duration(seconds)) for name, seconds in stages.items()), frozenset({1}))
    return Figure("stages", sentence, charts.bars(rows, unit), table)
