"""Predictions before a run and their verdicts after it: the table for the terminal and the section of the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from knowhow.report.numbers import DASH, number, span
from knowhow.report.parts import Section, Table
from knowhow.report.read import Run
from knowhow.report.text import clean

ORDER = ("violated", "confirmed", "not applicable")
"""A violated law is shown first, as loudly as a confirmed one."""
TONES = {"violated": "bold red", "confirmed": "bold green", "not applicable": "yellow"}


def text_table(rows: Sequence[Mapping[str, Any]]) -> RichTable:
    """One line a law and quantity; quantities at many sites are summed up as their range and how many of them were confirmed."""
    scored = any(row.get("verdict") for row in rows)
    table = RichTable(
        box=box.SIMPLE_HEAD, title="predicted and measured" if scored else "predicted before training", title_justify="left", title_style="bold", pad_edge=False
    )
    for name in ("law", "quantity"):
        table.add_column(name)
    for name in ("predicted", "interval", *(("measured",) if scored else ())):
        table.add_column(name, justify="right")
    if scored:
        table.add_column("verdict")
    for line in summed(rows):
        cells = [Text(line["law"]), Text(line["quantity"]), Text(line["value"]), Text(line["interval"])]
        if scored:
            cells += [Text(line["measured"]), Text(line["verdict"].upper() + line["why"], style=TONES.get(line["first"], ""))]
        table.add_row(*cells)
    return table


def summed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Lines of the table, violated ones first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[clean(row.get("law", ""), 40), clean(row.get("quantity", ""), 90)].append(row)
    lines = [_line(law, quantity, found) for (law, quantity), found in groups.items()]
    return sorted(lines, key=lambda line: ORDER.index(line["first"]) if line["first"] in ORDER else len(ORDER))


def _line(law: str, quantity: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    counts = {verdict: sum(row.get("verdict") == verdict for row in rows) for verdict in ORDER}
    first = next((verdict for verdict in ORDER if counts[verdict]), "")
    if len(rows) > 1:
        first = "confirmed" if counts["confirmed"] > counts["violated"] else first
        verdict = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    else:
        verdict = first
    why = next((clean(row.get("because", ""), 90) for row in rows if row.get("verdict") == first and row.get("because")), "")
    return {
        "law": law, "quantity": quantity if len(rows) == 1 else f"{quantity} ({len(rows)} sites)", "first": first, "verdict": verdict,
        "why": f": {why}" if why and first != "confirmed" else "", "value": _range(rows, "value"), "measured": _range(rows, "measured"),
        "interval": span(number(rows[0], "low"), number(rows[0], "high")) if len(rows) == 1 else DASH,
    }  # fmt: skip


def _range(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    found = [value for row in rows if (value := number(row, key)) is not None]
    if not found:
        return DASH
    return f"{found[0]:.3g}" if len(rows) == 1 else f"{min(found):.3g} to {max(found):.3g}"


def predictions(run: Run) -> Section:
    """What was predicted before anything changed, beside what was measured: laws first, then every site."""
    rows = [row for row in run.files["predictions"] if isinstance(row, Mapping)]
    if not rows:
        return Section(missing="verify/predictions.json is empty")
    lines = summed(rows)
    count = {verdict: sum(line["first"] == verdict for line in lines) for verdict in ORDER}
    lead = (
        f"Before training, {len(rows)} numbers were predicted from measurements of the untouched base; after it they were measured. Of {len(lines)} quantities "
        f"{count['confirmed']} were confirmed, {count['violated']} violated, {count['not applicable']} did not apply."
    )
    cells = tuple((line["law"], line["quantity"], line["value"], line["interval"], line["measured"], line["verdict"] + line["why"]) for line in lines)
    summary = Table("By law", ("law", "quantity", "predicted", "interval", "measured", "verdict"), cells, frozenset({2, 3, 4}))
    each = tuple(_site(row) for row in rows[:300] if row.get("site") not in ("", "run"))
    columns = ("law", "site", "predicted", "interval", "measured", "verdict")
    tables = (summary, *((Table("Site by site", columns, each, frozenset({2, 3, 4})),) if each else ()))
    return Section(lead=lead, tables=tables)


def _site(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        clean(row.get("law", ""), 60), clean(row.get("site", ""), 60), _range([row], "value"), span(number(row, "low"), number(row, "high")),
        _range([row], "measured"), clean(row.get("verdict", ""), 20),
    )  # fmt: skip
