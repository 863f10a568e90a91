"""The page of a triage: every answer with its calls, what was not seen, and what could not be read. No script; every value is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow.files import write_atomic
from knowhow.report.page import asset, template

SHOWN = 200
"""Reports in full on one page."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write(records: Sequence[Mapping[str, Any]], path: Path, *, model: str, sources: Sequence[str]) -> None:
    """`records`: as domains/malware/triage.py makes them, and {name, status: "not read", exit, error}; `sources`: attributions."""
    counted = Counter(_kind(record) for record in records)
    tiles = [(label, counted[label], note) for label, note in NOTES.items() if counted[label]]
    ordered = sorted(records, key=lambda record: ORDER.index(_kind(record)))[:SHOWN]
    said = {"model": model, "count": len(records), "records": ordered, "tiles": tiles, "shorter": len(records) > SHOWN, "sources": sources}
    page = template("triage.html.j2").render(**said, style=asset("page.css"), policy=POLICY, tone=_tone)
    write_atomic(path, page)


NOTES = {
    "with findings": "calls carry them",
    "not confirmed": "a label, and no calls that carry it",
    "nothing found": "enough calls, no finding",
    "insufficient evidence": "the report does not carry an answer",
    "not read": "refused, or no report",
}
ORDER = list(NOTES)


def _kind(record: Mapping[str, Any]) -> str:
    if record["status"] != "answered":
        return str(record["status"])
    if any(finding["state"] == "shown" for finding in record["findings"]):
        return "with findings"
    return "not confirmed" if record["findings"] else "nothing found"


def _tone(record: Mapping[str, Any]) -> str:
    kind = _kind(record)
    return "bad" if kind == "with findings" else "good" if kind == "nothing found" else "none"
