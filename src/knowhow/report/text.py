"""Foreign text made fit to show: nothing in it may act as markup, hide, or turn the line round. Standard library only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from knowhow.report.parts import Piece

# C0/C1 controls but tab and newline, lone surrogates, and the marks that reorder or hide text ("trojan source").
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
TONES = 6
SHOWN = 900
AROUND = 120


def clean(value: object, limit: int | None = None) -> str:
    """Text with invisible and reordering characters written as visible escapes; cut to `limit` characters with an ellipsis."""
    text = str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text.replace("\r\n", "\n"))


def clean_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chart rows whose strings are safe to draw."""
    return [{key: clean(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]


def short_names(names: Iterable[str], limit: int = 36) -> dict[str, str]:
    """Each name cleaned and cut for an axis; names that fall together get a number."""
    shown: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        label, count = clean(name, limit), 2
        while label in used:
            label, count = f"{clean(name, limit - 4)} #{count}", count + 1
        used.add(label)
        shown[name] = label
    return shown


def tones(kinds: Iterable[str]) -> dict[str, str]:
    """A colour class for each kind of evidence, in order of first appearance; colours repeat after six."""
    return {kind: f"tone-{index % TONES}" for index, kind in enumerate(dict.fromkeys(kinds))}


def valid_spans(text: str, evidence: object) -> list[tuple[int, int, str]]:
    """(start, end, kind) of the spans that lie inside `text`, sorted; anything else is passed over."""
    spans = []
    for span in evidence if isinstance(evidence, list) else []:
        if not isinstance(span, dict):
            continue
        start, end = span.get("start"), span.get("end")
        if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text):
            spans.append((start, end, str(span.get("kind", ""))))
    return sorted(spans)


def pieces(text: str, spans: Sequence[tuple[int, int, str]], tone_of: Mapping[str, str]) -> tuple[Piece, ...]:
    """`text` cut where evidence begins and ends; of overlapping spans the one that begins last wins. Long texts keep their start and what
    surrounds the evidence, and say how much was left out."""
    shown = _windows(len(text), spans)
    edges = sorted({0, len(text), *(edge for window in shown for edge in window), *(edge for start, end, _ in spans for edge in (start, end))})
    result: list[Piece] = []
    for start, end in itertools.pairwise(edges):
        if not any(low <= start < high for low, high in shown):
            result.append(Piece(f"{end - start:,} characters left out", gap=True))
            continue
        kind = next((kind for low, high, kind in reversed(spans) if low <= start < high), "")
        result.append(Piece(text[start:end], kind, tone_of.get(kind, "") if kind else ""))
    return tuple(_merge_gaps(result))


def _windows(length: int, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """Character ranges to show: everything when short, else the start and the surroundings of evidence up to SHOWN characters."""
    if length <= SHOWN:
        return [(0, length)]
    windows, budget = [(0, SHOWN if not spans else SHOWN // 4)], SHOWN
    for start, end, _ in spans:
        window = (max(0, start - AROUND), min(length, end + AROUND, start + SHOWN // 2))
        budget -= window[1] - window[0]
        if budget < 0:
            break
        windows.append(window)
    return windows


def _merge_gaps(parts: Sequence[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    left_out = 0
    for part in parts:
        if part.gap:
            left_out += int(part.text.split(" ")[0].replace(",", ""))
            continue
        if left_out:
            merged.append(Piece(f"… {left_out:,} characters left out …", gap=True))
            left_out = 0
        merged.append(part)
    return [*merged, Piece(f"… {left_out:,} characters left out …", gap=True)] if left_out else merged
