"""A first look at data: which column is what, and which task its labels ask for."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from knowhow.data import fields
from knowhow.data.sources import open_source
from knowhow.errors import UsageError
from knowhow.reading import overrides, problems
from knowhow.reading.text import Document
from knowhow.recipe import DataSpec
from knowhow.types import TaskKind

PEEK = 1000
FEW = 20
"""Numbers with more distinct values than this are a quantity, not classes."""


@dataclass(frozen=True, slots=True)
class Look:
    """`columns`: what was recognised ({role: column}); `labels`: those seen in the first rows with their counts; `length`: characters of a text on average."""

    kind: TaskKind
    many: bool
    columns: Mapping[str, str]
    labels: Mapping[str, int]
    rows: int
    length: float
    present: Sequence[str]


def data_spec(where: str, sets: Sequence[str]) -> DataSpec:
    """`data` of a recipe as the command line gives it: the rows are `train`, then `--set fields.text=body` and the like."""
    raw: dict[str, Any] = {"train": where}
    document = overrides.apply(Document(raw), [("--set", text.removeprefix("data.")) for text in sets])
    try:
        return DataSpec.model_validate(document.value)
    except ValidationError as error:
        raise problems.explain(error, document, DataSpec.model_json_schema()) from None


def look(spec: DataSpec) -> Look:
    """Reads the first rows of `spec.train`. Raises UsageError when they cannot be read or hold no text."""
    rows = list(itertools.islice(open_source(str(spec.train)).rows(), PEEK))
    found = fields.recognise(rows, fields.FieldMap(**spec.fields.model_dump()))
    values = [row[found.label] for row in rows if found.label and row.get(found.label) is not None]
    many = any(isinstance(value, list | tuple) for value in values)
    kind = _kind(found, values, many)
    named = [str(value) for item in values for value in (item if isinstance(item, list | tuple) else [item])]
    labels = dict(Counter(named).most_common()) if kind in ("classify", "score") and not _quantity(values) else {}
    texts = [str(row.get(found.text or found.messages or "", "")) for row in rows]
    columns = {role: name for role, name in dataclasses.asdict(found).items() if name}
    return Look(kind, many, columns, labels, len(rows), sum(map(len, texts)) / max(1, len(texts)), list(dict.fromkeys(name for row in rows for name in row)))


def _kind(found: fields.FieldMap, values: Sequence[Any], many: bool) -> TaskKind:
    if found.label is None:
        if found.completion or found.chosen or found.messages:
            return "generate"
        raise UsageError(
            "no column that reads like a label or an answer",
            allowed="a column such as label, class, category, completion, output",
            fix="--set fields.label=NAME",
        )
    if found.pair:
        return "score"
    return "regress" if _quantity(values) and not many else "classify"


def _quantity(values: Sequence[Any]) -> bool:
    numbers = [number for value in values if (number := _number(value)) is not None]
    if not values or len(numbers) < len(values):
        return False
    return any(number != int(number) for number in numbers) or len(set(numbers)) > FEW


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        return None
