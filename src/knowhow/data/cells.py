"""One cell of a row to one value of an Example: texts, labels, numbers, times. Every error names field and row."""

from __future__ import annotations

import datetime
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.errors import UsageError
from knowhow.types import Task

Label = str | tuple[str, ...] | float


def text(cell: Any, field: str, where: str) -> str:
    """A text that is not blank; a list of words is joined by spaces."""
    if isinstance(cell, list) and cell and all(isinstance(word, str) for word in cell):
        cell = " ".join(cell)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        raise _wrong(f"no {field} (missing)", where, "a text", "fill it in, or remove the row")
    if not isinstance(cell, str):
        raise _wrong(
            f"field {field!r} holds {kind_of(cell)} {str(cell)[:60]!r}", where, "a text in every row", "name a field of texts, or write the value as text"
        )
    if not cell.strip():
        raise _wrong(f"an empty {field}", where, "a text that is not blank", "fill it in, or remove the row")
    return cell


def optional_text(cell: Any) -> str | None:
    """Blank and missing cells are None; anything else as text."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip()):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def number(cell: Any, field: str, where: str) -> float:
    """A finite number."""
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        raise _wrong(f"field {field!r} holds {cell!r}"[:200], where, "a finite number", "correct or remove the row") from None
    if not math.isfinite(value):
        raise _wrong(f"field {field!r} holds {cell!r}", where, "a finite number", "correct or remove the row")
    return value


def weight(cell: Any, field: str, where: str) -> float:
    """A finite number above 0."""
    value = number(cell, field, where)
    if value <= 0:
        raise _wrong(f"a weight of {value:g}", where, "a number above 0", "remove the row, or correct its weight")
    return value


def time(cell: Any, field: str, where: str) -> float | None:
    """Seconds since 1970 from ISO 8601 (no zone: UTC), or the number as it stands; None where blank."""
    if optional_text(cell) is None:
        return None
    try:
        return number(cell, field, where)
    except UsageError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(str(cell).strip())
    except ValueError:
        raise _wrong(f"field {field!r} holds {str(cell)[:60]!r}", where, "ISO 8601 (2024-03-31 or 2024-03-31T12:00:00Z) or a number", "correct it") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def label(cell: Any, task: Task, field: str, where: str) -> Label:
    """The label that `task` asks for: one of its labels, a sorted tuple of them (many), or a number.

    A pair score without `labels` is a number when it reads like one. Raises UsageError for NaN, blanks and labels that the task does not have."""
    if not task.many and missing(cell):
        raise _wrong(f"no label: field {field!r} holds {cell!r}", where, "a label in every row", "fill it in, or remove the row")
    if task.kind == "regress" or (task.kind == "score" and not task.labels and _reads_like_a_number(cell)):
        return number(cell, field, where)
    if task.many:
        names = {_class(part, task.labels, field, where) for part in _parts(cell)}
        return tuple(sorted(names, key=task.labels.index if task.labels else None))
    return _class(cell, task.labels, field, where)


def missing(cell: Any) -> bool:
    """None, NaN (also as text) and blanks."""
    if isinstance(cell, str):
        return cell.strip().lower() in ("", "nan")
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def misfit(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Why the columns `names` cannot be the text after all: ` ('text' holds a number, 3.5, in row 31)`, or nothing when there are none."""
    for name in names:
        for place, row in enumerate(rows, start=1):
            if not missing(cell := row.get(name)) and not isinstance(cell, str):
                return f" ({name!r} holds {kind_of(cell)}, {str(cell)[:40]}, in row {place})"
    return f" ({names[0]!r} is blank in every row)" if names else ""


def kind_of(cell: Any) -> str:
    """`text`, `a number`, `true/false`, `a list`, …: what a column should have throughout."""
    names = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object", type(None): "nothing"}
    return names.get(type(cell), type(cell).__name__)


def nearest(word: str, known: Sequence[str]) -> str:
    """` (did you mean …?)`, or nothing."""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def _class(cell: Any, labels: Sequence[str], field: str, where: str) -> str:
    name = _class_name(cell, field, where)
    if isinstance(cell, bool) and name not in labels and name.capitalize() in labels:
        name = name.capitalize()
    if labels and name not in labels:
        shown = ", ".join(labels[:20]) + (f", … ({len(labels)} in all)" if len(labels) > 20 else "")
        fix = "correct the row, or add the label to task.labels"
        raise _wrong(f"the label {name[:80]!r}, which the task does not have{nearest(name, labels)}", where, shown, fix)
    return name


def _class_name(cell: Any, field: str, where: str) -> str:
    if missing(cell):
        raise _wrong(f"an empty label in field {field!r}", where, "labels that are not blank", "fill it in, or remove the row")
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and not cell.is_integer():
        raise _wrong(f"the number {cell!r} as a class", where, "names or whole numbers", "set task.kind to regress to predict numbers")
    if isinstance(cell, int | float):
        return str(int(cell))
    if not isinstance(cell, str):
        raise _wrong(f"field {field!r} holds {kind_of(cell)} {str(cell)[:60]!r}", where, "one label", "set task.many to true if rows carry several labels")
    return cell.strip()


def _parts(cell: Any) -> Sequence[Any]:
    """Several labels of one cell: a list, JSON text of a list, or a text parted by | or by commas."""
    if isinstance(cell, list | tuple):
        return cell
    if missing(cell):
        return ()
    if not isinstance(cell, str):
        return (cell,)
    if cell.lstrip().startswith("["):
        try:
            parsed = json.loads(cell)
            return parsed if isinstance(parsed, list) else (cell,)
        except (ValueError, RecursionError):
            return (cell,)
    return [part for part in cell.split("|" if "|" in cell else ",") if part.strip()]


def _reads_like_a_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return not isinstance(cell, bool)


def _wrong(got: str, where: str, allowed: str, fix: str) -> UsageError:
    return UsageError(got, where=where, allowed=allowed, fix=fix)
