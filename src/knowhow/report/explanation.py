"""What answers rest on: claims that an intervention showed, methods side by side, and worked answers with their lines marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report.behind import behind, tokens, unit_pieces
from knowhow.report.numbers import decimal, items, number, percent, span
from knowhow.report.parts import Sample, Section, Table
from knowhow.report.read import Run
from knowhow.report.text import clean, pieces, tones, valid_spans

SHOWN = 8
METHODS = ("method", "answers", "lost without", "random", "kept alone", "random", "IoU", "precision", "recall", "distractors")


def explanation(run: Run) -> Section:
    """Claims with control and verdict; the table of methods; the first worked answers."""
    rows = [row for row in run.files["findings"] if isinstance(row, Mapping)]
    cells = tuple(
        (
            clean(row.get("claim", ""), 300),
            clean(row.get("method", ""), 60),
            decimal(number(row, "effect")),
            decimal(number(row, "control")),
            span(number(row, "interval", "low"), number(row, "interval", "high")),
            clean(row.get("verdict", ""), 20),
        )
        for row in rows[:100]
    )
    if not cells:
        return Section(missing="explain/findings.json is empty: no labels, no right answers, or `explain.examples` is 0")
    columns = ("claim", "method", "found", "random lines", "difference, 95% interval", "verdict")
    claims = Table("What was claimed and tested", columns, cells, frozenset({2, 3}))
    lead = "Every claim was tested by taking lines out of the texts and asking the specialist again, and once more with as many random lines."
    return Section(lead=lead, tables=(claims, *_methods(run)), samples=_worked(run))


def _methods(run: Run) -> tuple[Table, ...]:
    rows = [row for row in run.files.get("methods", []) if isinstance(row, Mapping)]
    cells = tuple(
        (
            clean(row.get("method", ""), 60),
            decimal(number(row, "n"), 0),
            percent(number(row, "necessity_flips")),
            percent(number(row, "random_necessity_flips")),
            percent(_kept(row, "sufficiency_flips")),
            percent(_kept(row, "random_sufficiency_flips")),
            *(decimal(number(row, key)) for key in ("iou", "precision", "recall", "distractors")),
        )
        for row in rows[:20]
    )
    note = (
        "Lost without: answers that go when the lines are cut out; kept alone: answers that stay with nothing else; random: the same for as many random lines. "
        "IoU, precision and recall: against the evidence that the data names; distractors: "
        "share of the marked lines that look like evidence and are none. The page shows the evidence of the method that did best on validation."
    )
    return (Table("Methods compared", METHODS, cells, frozenset(range(1, 10)), note),) if cells else ()


def _kept(row: Mapping[str, Any], key: str) -> float | None:
    lost = number(row, key)
    return None if lost is None else 1.0 - lost


def _worked(run: Run) -> tuple[tuple[str, tuple[Sample, ...]], ...]:
    tone_of = tones(str(row.get("label", "")) for row in run.evidence)
    return (("Answers and the lines that they rest on", tuple(_sample(row, tone_of) for row in run.evidence[:SHOWN])),) if run.evidence else ()


def _sample(row: Mapping[str, Any], tone_of: Mapping[str, str]) -> Sample:
    text, label = str(row.get("text", "")), clean(row.get("label", ""), 120)
    marked = valid_spans(text, row.get("evidence"))
    found, spoken = behind(row), tokens(row)
    return Sample(
        clean(row.get("id", ""), 80),
        label,
        label,
        None,
        "",
        row.get("verdict") == "supported",
        ((found or spoken) and unit_pieces(text, row, marked, tone_of)) or pieces(text, marked, tone_of),
        _sentence(row, len(items(row, "evidence"))),
        found,
        spoken,
        "supported" if row.get("verdict") == "supported" else "not supported",
    )


def _sentence(row: Mapping[str, Any], lines: int) -> str:
    """What the intervention showed, in one sentence; nothing that it did not."""
    said, chance = clean(row.get("label", ""), 120), percent(number(row, "random_necessity_flips"))
    marked = f"the {lines} marked lines" if lines != 1 else "the marked line"
    lost = f"Without {marked} the answer {said} is gone; without as many random lines it was gone in {chance} of the tries."
    if row.get("verdict") == "supported":
        alone = "is not given" if row.get("sufficiency_flips") else "is given"
        return f"{lost} With {marked} alone it {alone}."
    if row.get("necessity_flips"):
        return f"Not supported: {lost[0].lower()}{lost[1:]}"
    return f"Not supported: without {marked} the answer {said} stays."
