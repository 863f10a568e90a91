"""Worked examples: the most confident mistakes first, then sure and right answers, each with the evidence in its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from knowhow.report.numbers import number, sure
from knowhow.report.parts import Sample, Section
from knowhow.report.read import Run
from knowhow.report.text import clean, pieces, tones, valid_spans


def examples(run: Run) -> Section:
    """Two groups of samples; every kind of evidence keeps one colour through the page."""
    tone_of = tones(kind for row in (*run.wrong, *run.right) for _, _, kind in valid_spans(str(row.get("text", "")), row.get("evidence")))
    groups = tuple(
        (title, tuple(_sample(row, tone_of) for row in rows))
        for title, rows in (("Wrong, most confident first", run.wrong), ("Right, most confident first", run.right))
        if rows
    )
    told = "Marked text is evidence given with the data." if tone_of else ""
    return Section(lead=told, samples=groups)


def _sample(row: Mapping[str, Any], tone_of: Mapping[str, str]) -> Sample:
    text = str(row.get("text", ""))
    return Sample(
        id=clean(row.get("id", ""), 80),
        gold=_answer(row.get("gold")),
        predicted=_answer(row.get("predicted")),
        confidence=number(row, "confidence"),
        sure=sure(number(row, "confidence")),
        right=bool(row.get("correct")),
        pieces=pieces(text, valid_spans(text, row.get("evidence")), tone_of),
    )


def _answer(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return clean(", ".join(str(item) for item in value), 300) or "nothing"
    return clean(value, 300)
