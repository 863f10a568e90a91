"""What is behind one worked answer: its text line by line, and a grid of layers and parts; the page's script joins them on hover."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.report.numbers import decimal, items, number
from knowhow.report.parts import Behind, Cell, Piece, Token
from knowhow.report.text import clean

UNITS, LAYERS, HEADS, TOKENS, LONG = 64, 64, 32, 200, 6000
TOP, STRONG = 9, 3


def behind(row: Mapping[str, Any]) -> Behind | None:
    """The grid of one row of evidence.jsonl; None where it has none, or one of another form."""
    inside = row.get("inside")
    parts, heads = _numbers(inside, "parts", 2), _numbers(inside, "heads", HEADS)
    if not parts or any(len(layer) != 2 for layer in parts) or (heads and len(heads) != len(parts)):
        return None
    lens = [number({"at": value}, "at") for value in items(inside, "lens")[:LAYERS]]
    lens = lens if len(lens) == len(parts) else []
    most = max((abs(value) for grid in (parts, heads) for layer in grid for value in layer), default=0.0)
    widest = max((abs(value) for value in lens if value is not None), default=0.0)
    floor = sorted((value for grid in (parts, heads) for layer in grid for value in layer), reverse=True)[:STRONG][-1]
    count = len(heads[0]) if heads else 0
    columns = (*(["lens"] if lens else []), "attention", "MLP", *(f"h{head}" for head in range(count)))
    layers = []
    for layer, falls in enumerate(parts):
        cells = [Cell(_heat(lens[layer], widest), f"Were layer {layer} the last, the answer's margin would be {decimal(lens[layer], 2)} nats.")] if lens else []
        names = ("the attention", "the MLP", *(f"head {head}" for head in range(count)))
        for name, fall in zip(names, (*falls, *(heads[layer] if heads else ())), strict=True):
            cells.append(Cell(_heat(fall, most), _loss(name, layer, fall), fall >= floor and fall > 0))
        layers.append((f"layer {layer}", tuple(cells)))
    strong = [cell.told for _, cells in layers for cell in cells if cell.strong]
    told = " ".join(["What this answer needs most:", *strong]) if strong else "No part is needed alone."
    return Behind(columns, tuple(layers), json.dumps(_traces(inside, len(parts))), told)


def unit_pieces(text: str, row: Mapping[str, Any], marked: Sequence[tuple[int, int, str]], tone_of: Mapping[str, str]) -> tuple[Piece, ...]:
    """The text unit by unit, with how much each speaks for the answer; nothing for a text too long to show whole, or without units."""
    found = [unit for unit in items(row, "units")[:UNITS] if isinstance(unit, list) and len(unit) == 3]
    units = [(start, end, number({"at": score}, "at")) for start, end, score in found if isinstance(start, int) and isinstance(end, int)]
    in_order = all(a[1] <= b[0] for a, b in itertools.pairwise(units)) and all(0 <= start < end <= len(text) for start, end, _ in units)
    if not units or not in_order or len(text) > LONG or len(items(row, "units")) > UNITS:
        return ()
    best = max((score or 0.0 for _, _, score in units), default=0.0)
    pieces, at = [], 0
    for index, (start, end, score) in enumerate(units):
        if at < start:
            pieces.append(Piece(text[at:start]))
        kind = next((kind for low, high, kind in marked if low < end and start < high), "")
        said = f"{'Marked: ' if kind else ''}line {index + 1} speaks for the answer with {decimal(score, 2)}; the strongest with {decimal(best, 2)}."
        heat = max(_heat(score, best), 0) if best > 0 else 0
        pieces.append(Piece(text[start:end], kind, tone_of.get(kind, "") if kind else "", unit=index, heat=heat, told=said))
        at = end
    return (*pieces, Piece(text[at:])) if at < len(text) else tuple(pieces)


def tokens(row: Mapping[str, Any]) -> tuple[Token, ...]:
    """A written answer token by token, with the lines that each rests on; nothing for answers that are labels."""
    made = []
    for token in items(row, "tokens")[:TOKENS]:
        if not isinstance(token, list) or len(token) != 2 or not isinstance(token[1], list):
            return ()
        falls = [number({"at": value}, "at") or 0.0 for value in token[1][:UNITS]]
        best = max(falls, default=0.0)
        heats = [max(_heat(fall, best), 0) for fall in falls]
        lines = [str(at + 1) for at in sorted(range(len(falls)), key=lambda at: -falls[at])[:STRONG] if heats[at] >= TOP / 3]
        told = f"Its lead falls most without line {', '.join(lines)}: by {decimal(best, 2)} nats." if lines else "No line alone carries this token."
        made.append(Token(str(token[0]), json.dumps(heats), told))
    return tuple(made)


def _numbers(inside: object, key: str, width: int) -> list[list[float]]:
    rows = [row for row in items(inside, key)[:LAYERS] if isinstance(row, list)]
    return [[number({"at": value}, "at") or 0.0 for value in row[:width]] for row in rows] if len({len(row) for row in rows}) == 1 else []


def _traces(inside: object, depth: int) -> list[list[int] | None]:
    """Unit → heat per layer; None for units that were not tried."""
    layers = [row for row in items(inside, "trace") if isinstance(row, list)]
    if len(layers) != depth:
        return []
    found: list[list[int] | None] = []
    for unit in range(min(min(len(row) for row in layers), UNITS)):
        values = [number({"at": row[unit]}, "at") for row in layers]
        found.append(None if any(value is None for value in values) else [_heat(value, 1.0) for value in values])
    return found


def _loss(name: str, layer: int, fall: float) -> str:
    change = "loses" if fall >= 0 else "gains"
    return clean(f"Without {name} of layer {layer} it {change} {decimal(abs(fall), 2)} nats.")


def _heat(value: float | None, most: float) -> int:
    return 0 if value is None or most <= 0 else max(-TOP, min(TOP, round(TOP * value / most)))
