"""Rows from CSV and TSV files, with or without a header line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from knowhow.data import streams
from knowhow.errors import UsageError

_PEEK = 200
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NAME = re.compile(r"[^\W\d][\w .\-/()#]{0,63}|\w+")
_WORDS_IN_A_NAME = 4


@dataclass(frozen=True)
class Table:
    """CSV (quoted, delimiter found in the first lines) or TSV (a cell is quoted only when it begins and ends with a quote).

    A first line that is no header (its cells recur below, are numbers, or read like sentences) is a row; the columns are then column1, column2, …"""

    path: Path
    tabs: bool = False
    row_limit: int = streams.ROW_LIMIT
    encoding: str = "utf-8"

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError for a row with another number of cells than the first, and for an open quote."""
        peek = list(islice(self._records(self._delimiter()), _PEEK))
        if not peek:
            return
        first = peek[0][1]
        named = is_header(first, [cells for _, cells in peek[1:]])
        names = [(named and cell.strip()) or f"column{index + 1}" for index, cell in enumerate(first)]
        for number, cells in islice(self._records(self._delimiter()), int(named), None):
            if len(cells) != len(names):
                got = f"{len(cells)} cells where {'the header has' if named else 'the first row has'} {len(names)}: {' | '.join(cells)[:120]!r}"
                raise UsageError(
                    got, where=f"{self.path}:{number}", allowed=", ".join(names)[:300], fix="quote cells that hold the delimiter, or add the missing cells"
                )
            yield dict(zip(names, cells))

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        numbered = streams.lines(self.path, limit=self.row_limit, encoding=self.encoding)
        return self._tabbed(numbered) if self.tabs else self._quoted(numbered, delimiter)

    def _tabbed(self, numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
        for number, line in numbered:
            if line:
                yield number, [_unquoted(cell) for cell in line.split("\t")]

    def _quoted(self, numbered: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
        spent, last = 0, 0

        def counted() -> Iterator[str]:
            nonlocal spent, last
            for number, line in numbered:
                spent, last = spent + len(line) + 1, number
                if spent > self.row_limit:
                    raise streams.row_too_long(f"{self.path}:{start}", self.row_limit)
                yield line + "\n"

        csv.field_size_limit(max(csv.field_size_limit(), 4 * self.row_limit))
        start, reader = 1, csv.reader(counted(), delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UsageError(
                    f"not CSV: {error}",
                    where=f"{self.path}:{start}",
                    allowed='cells with quotes doubled inside: "a ""b"" c"',
                    fix="close the quote that was opened on this line",
                ) from error
            if cells is None:
                return
            if cells:
                yield start, cells
            start, spent = last + 1, 0

    def _delimiter(self) -> str:
        """The one of , ; tab | that cuts the first lines into the same number of cells, and the most of them."""
        if self.tabs:
            return "\t"
        first = [line for _, line in islice(streams.lines(self.path, limit=self.row_limit, encoding=self.encoding), 20)]
        return max(",;\t|", key=lambda mark: _regular_cells(first, mark))


def is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """True when `first` reads like column names: distinct, short, and none recurs in its own column below.

    Numbers are names only beside real ones and in a run (0, 1, …); an empty name is one at the ends (an index column, spare columns)."""
    cells = [cell.strip() for cell in first]
    filled = [cell for cell in cells if cell]
    inside = cells[1 : max((index for index, cell in enumerate(cells) if cell), default=0) + 1]
    numbers = [cell for cell in filled if _NUMBER.fullmatch(cell)]
    in_a_run = all(cell.isdecimal() for cell in numbers) and all(int(after) == int(before) + 1 for before, after in pairwise(numbers))
    if len(set(filled)) < len(filled) or len(numbers) == len(filled) or "" in inside or len(numbers) == 1 or not in_a_run:
        return False
    if not all(_NAME.fullmatch(cell) and len(cell.split()) <= _WORDS_IN_A_NAME for cell in filled):
        return False
    below = [{row[index].strip() for row in rest if index < len(row)} for index in range(len(cells))]
    return not any(cell and cell in seen for cell, seen in zip(cells, below))


def _regular_cells(lines: Sequence[str], mark: str) -> int:
    """Cells per line when most lines agree, else 1."""
    counts = []
    for line in lines:
        try:
            counts.append(len(next(csv.reader([line], delimiter=mark), [])))
        except csv.Error:
            continue
    usual = max(set(counts), key=counts.count, default=1)
    return usual if 2 * counts.count(usual) > len(counts) else 1


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return cell
