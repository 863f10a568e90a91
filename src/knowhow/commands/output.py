"""What a command says: results on stdout, everything else on stderr; with --json, stdout holds JSON lines and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from knowhow.progress import json_line, showing
from knowhow.protocols import Progress


@dataclass(frozen=True, slots=True)
class Output:
    """`as_json`: for machines; `quiet`: results and errors only."""

    as_json: bool = False
    quiet: bool = False

    def row(self, record: Mapping[str, Any]) -> None:
        """A record for machines; people do not see it."""
        if self.as_json:
            _write(json_line(record))

    def result(self, record: Mapping[str, Any], text: str) -> None:
        """What was asked for: `record` for machines, `text` for people."""
        _write(json_line(record) if self.as_json else text.rstrip("\n") + "\n")

    def note(self, text: str) -> None:
        """What helps a person on the way; stderr."""
        if not (self.as_json or self.quiet):
            sys.stderr.write(text.rstrip("\n") + "\n")
            sys.stderr.flush()

    def progress(self) -> AbstractContextManager[Progress]:
        return showing(as_json=self.as_json, silent=self.quiet, emit=self.row)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as their widest cell; numbers on the right."""
    cells = [list(map(str, head)), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    right = [all(isinstance(row[column], int | float) for row in rows) and bool(rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(row, widths, right)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def size(count: float) -> str:
    """Bytes as people read them: 13.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        sys.stdout.write(text.encode("ascii", "backslashreplace").decode())
    sys.stdout.flush()
