"""The table a build ends with, for the terminal: each baseline and the specialist with interval and paired difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from knowhow.report.numbers import DASH, decimal, metric_name, signed, slice_name, span
from knowhow.report.text import clean
from knowhow.report.verdict import SPECIALIST, find, gaps, headline_metric, judge, ranked
from knowhow.types import EvalResult


def text_table(results: Sequence[EvalResult], *, metric: str | None = None, slice: str = "all") -> Table:
    """Models as rows, best last (next to the prompt); the difference is specialist minus that row, on the same examples."""
    metric = headline_metric(results, metric)
    own = find(results, model=SPECIALIST, metric=metric, slice=slice)
    paired = {gap.baseline: gap for gap in gaps(own)} if own else {}
    rows = ranked(results, metric, slice)[::-1]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{metric_name(metric)} on {slice_name(slice)}{f', n = {own.n:,}' if own else ''}",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    table.add_column("model")
    table.add_column(metric_name(metric), justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("specialist minus it", justify="right")
    for row in rows:
        gap = paired.get(row.model)
        style = "bold" if row.model == SPECIALIST else ""
        told = Text("")
        if gap:
            tone = "green" if gap.beaten else "red" if gap.worse else "yellow"
            told = Text(f"{signed(gap.difference.value)} ({span(gap.difference.low, gap.difference.high, sign=True)})", style=tone)
        elif row.model != SPECIALIST:
            told = Text(DASH)
        table.add_row(Text(clean(row.model, 40), style=style), Text(decimal(row.value), style=style), Text(span(row.low, row.high), style=style), told)
    return table


def verdict_line(results: Sequence[EvalResult], *, metric: str | None = None, slice: str = "all") -> str:
    """Title and sentence of the verdict, as the page shows them."""
    told = judge(results, headline_metric(results, metric), slice)
    return f"{told.title}. {told.sentence}"


def diff_table(difference: Mapping[str, Any]) -> Table:
    """The results part of `diff` for the terminal; the other parts are short lists of keys."""
    table = Table(
        box=box.SIMPLE_HEAD, title=clean(f"{difference['a']['run']} → {difference['b']['run']}", 120), title_justify="left", title_style="bold", pad_edge=False
    )
    for name in ("model", "metric", "slice"):
        table.add_column(name)
    for name in ("a", "b", "b minus a"):
        table.add_column(name, justify="right")
    for row in difference["results"]:
        tone = {"b": "green", "a": "red"}.get(row["better"], "")
        gap = Text(f"{signed(row['difference'])} ({span(row['low'], row['high'], sign=True)})", style=tone)
        names = (clean(row["model"], 40), metric_name(row["metric"]), slice_name(row["slice"]))
        table.add_row(*(Text(clean(name, 40)) for name in names), Text(decimal(row["a"]["value"])), Text(decimal(row["b"]["value"])), gap)
    return table
