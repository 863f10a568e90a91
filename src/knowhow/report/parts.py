"""What a page is made of: sections of tiles, figures (a chart with one plain sentence) and tables. Data only; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; columns named in `numbers` are set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a figure's legend: `tone` is a CSS class that gives the colour."""

    tone: str
    label: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A Vega-Lite `spec` with one `sentence` that says what it shows; `table` holds the same numbers for readers without scripts."""

    id: str
    sentence: str
    spec: Mapping[str, Any]
    table: Table | None = None
    keys: tuple[Key, ...] = ()
    wide: bool = True


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that stands alone: `tone` is good, bad, warn or empty."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a worked example's text: `kind` names the evidence it shows, `tone` its colour class; `gap` marks text left out;
    `unit`: which unit of the text it is (−1: none), `heat` 0 to 9 how much it speaks for the answer, `told` what is said of it on hover."""

    text: str
    kind: str = ""
    tone: str = ""
    gap: bool = False
    unit: int = -1
    heat: int = 0
    told: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a worked answer's grid: `heat` −9 to 9, `told` is said on hover; `strong`: one of those that the answer needs most."""

    heat: int
    told: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind a worked answer: a row of cells per layer, and `traces`, JSON: for each unit a heat per layer, or null where it was not traced."""

    columns: tuple[str, ...]
    layers: tuple[tuple[str, tuple[Cell, ...]], ...]
    traces: str
    told: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a written answer: `heats`, JSON, is how much each unit of the text speaks for it (0 to 9)."""

    text: str
    heats: str
    told: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A worked example: what it is, what was said, how surely, and in `note` what was found by asking again."""

    id: str
    gold: str
    predicted: str
    confidence: float | None
    sure: str
    right: bool
    pieces: tuple[Piece, ...]
    note: str = ""
    behind: Behind | None = None
    tokens: tuple[Token, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """`missing` says in one line why there is nothing to show; everything else is then empty."""

    id: str = ""
    title: str = ""
    lead: str = ""
    tiles: tuple[Tile, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    samples: tuple[tuple[str, tuple[Sample, ...]], ...] = ()
    missing: str = ""
