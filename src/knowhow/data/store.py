"""Examples on disk: one memory-mapped Arrow file that behaves as a sequence, so that a million rows cost no memory until they are looked at."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from knowhow.data.streams import holds_surrogate
from knowhow.errors import UsageError
from knowhow.files import writing
from knowhow.types import Completion, Example, Message, Span

_ROWS, _BYTES = 8192, 16 * 2**20
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_COMPLETION = pa.struct([("text", pa.string()), ("role", pa.string()), ("reward", pa.float64())])
_SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("kind", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("prompt", pa.string()), ("messages", pa.list_(_MESSAGE)), ("completions", pa.list_(_COMPLETION)),
        ("label", pa.string()), ("labels", pa.list_(pa.string())), ("value", pa.float64()), ("pair", pa.string()), ("group", pa.string()),
        ("time", pa.float64()), ("slice", pa.string()), ("origin", pa.string()), ("weight", pa.float64()), ("evidence", pa.list_(_SPAN)),
    ]
)  # fmt: skip
"""A prompt is in `prompt` (a text) or `messages`; a label in `label` (one), `labels` (many) or `value` (a number)."""


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write examples in order and return how many; the same examples give the same bytes. The file appears whole or not at all.

    Raises UsageError for text that is not Unicode (a lone surrogate), ResourceError when the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                written = _write(file, examples)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return written


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """A file written by `write`, as a sequence. Slices and `select` give views; nothing is copied.

    Raises UsageError when the file is missing or is not such a file."""

    path: Path

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"not a file of examples: {error}", where=str(self.path), fix="remove it and run the data stage again") from error
        if reader.schema != SCHEMA:
            raise UsageError("a file of examples of another version", where=str(self.path), fix="remove it and run the data stage again")
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]

    @cached_property
    def _starts(self) -> list[int]:
        """First row of each batch, then the number of rows."""
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Example]:
        for batch in self._batches:
            yield from _decode(batch)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> View: ...
    def __getitem__(self, index: int | slice) -> Example | View:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        row = range(len(self))[index]
        part = bisect_right(self._starts, row) - 1
        return next(_decode(self._batches[part].slice(row - self._starts[part], 1)))

    def at(self, indices: np.ndarray) -> Iterator[Example]:
        """The rows `indices` (int64) in that order, decoded together as long as they lie in one batch."""
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        cuts = np.flatnonzero(np.diff(parts)) + 1
        for run in np.split(indices, cuts):
            for start in range(0, len(run), _ROWS):
                part = bisect_right(self._starts, run[start]) - 1
                local = pa.array(run[start : start + _ROWS] - self._starts[part])
                yield from _decode(self._batches[part].take(local))

    def select(self, indices: Sequence[int] | np.ndarray) -> View:
        """The rows `indices` (negative ones not allowed) in that order."""
        return View(self, np.asarray(indices, dtype=np.int64))

    def column(self, name: str) -> np.ndarray:
        """One column as N objects (`label` also serves `labels` and `value`); the names are those of SCHEMA."""
        return np.array([value for batch in self._batches for value in _column(batch, name)], dtype=object)

    def texts(self, indices: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Prompts as texts (messages joined by newlines) of the rows `indices`, or of all."""
        if indices is not None:
            return [text_of(example) for example in self.at(np.asarray(indices, dtype=np.int64))]
        if all(batch.column("messages").null_count == batch.num_rows for batch in self._batches):
            return [text for batch in self._batches for text in batch.column("prompt").to_pylist()]
        return [text_of(example) for example in self]


@dataclass(frozen=True)
class View(Sequence[Example]):
    """Rows `indices` (int64) of a store, in that order."""

    base: Examples
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Example]:
        return self.base.at(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> View: ...
    def __getitem__(self, index: int | slice) -> Example | View:
        if isinstance(index, slice):
            return View(self.base, self.indices[index])
        return self.base[int(self.indices[index])]

    def select(self, indices: Sequence[int] | np.ndarray) -> View:
        return View(self.base, self.indices[np.asarray(indices, dtype=np.int64)])

    def column(self, name: str) -> np.ndarray:
        return self.base.column(name)[self.indices]

    def texts(self, indices: Sequence[int] | np.ndarray | None = None) -> list[str]:
        return self.base.texts(self.indices if indices is None else self.indices[np.asarray(indices, dtype=np.int64)])


def text_of(example: Example) -> str:
    """The prompt as one text; messages joined by newlines."""
    return example.prompt if isinstance(example.prompt, str) else "\n".join(message.content for message in example.prompt)


def _write(file: Any, examples: Iterable[Example]) -> int:
    """Rows are flushed after _ROWS of them or about _BYTES of text, so that memory does not grow with the data."""
    written, rows, size = 0, [], 0
    with pa.ipc.new_file(file, SCHEMA) as writer:
        for example in examples:
            rows.append(_encode(example))
            size += _size(example)
            written += 1
            if len(rows) >= _ROWS or size >= _BYTES:
                writer.write_batch(_batch(rows))
                rows, size = [], 0
        if rows:
            writer.write_batch(_batch(rows))
    return written


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    try:
        return pa.record_batch([pa.array(values, kind.type) for values, kind in zip(zip(*rows), SCHEMA)], schema=SCHEMA)
    except UnicodeEncodeError as error:
        broken = next(row[0] for row in rows if holds_surrogate(list(row)))
        fix = "remove the half of a surrogate pair from its text"
        raise UsageError(
            f"text that is not Unicode: {error.reason}", where=f"example {broken!r}", allowed="text that can be written as UTF-8", fix=fix
        ) from error


def _size(example: Example) -> int:
    prompt = len(example.prompt) if isinstance(example.prompt, str) else sum(len(message.content) for message in example.prompt)
    return prompt + len(example.pair or "") + sum(len(completion.text) for completion in example.completions)


def _encode(example: Example) -> tuple[Any, ...]:
    text = example.prompt if isinstance(example.prompt, str) else None
    messages = None if text is not None else [{"role": message.role, "content": message.content} for message in example.prompt]
    completions = [{"text": completion.text, "role": completion.role, "reward": completion.reward} for completion in example.completions]
    label = example.label
    one, many = label if isinstance(label, str) else None, list(label) if isinstance(label, tuple) else None
    value = None if label is None or one is not None or many is not None else float(label)
    spans = [{"start": span.start, "end": span.end, "kind": span.kind} for span in example.evidence]
    return (
        example.id, text, messages, completions or None, one, many, value, example.pair, example.group,
        example.time, example.slice, example.origin, example.weight, spans or None,
    )  # fmt: skip


def _column(batch: pa.RecordBatch, name: str) -> Iterable[Any]:
    column = batch.column(name)
    if name == "label" and column.null_count:
        found = zip(column.to_pylist(), _values(batch, "labels"), _values(batch, "value"))
        return (one if one is not None else tuple(many) if many is not None else value for one, many, value in found)
    return _values(batch, name)


def _values(batch: pa.RecordBatch, name: str) -> Iterable[Any]:
    column = batch.column(name)
    return repeat(None, batch.num_rows) if column.null_count == batch.num_rows else column.to_pylist()


def _decode(batch: pa.RecordBatch) -> Iterator[Example]:
    columns = (_values(batch, name) for name in ("id", "prompt", "messages", "completions"))
    rest = (_values(batch, name) for name in ("pair", "group", "time", "slice", "origin", "weight", "evidence"))
    for id, prompt, messages, completions, label, pair, group, time, part, origin, weight, spans in zip(*columns, _column(batch, "label"), *rest):
        yield Example(
            id,
            prompt if messages is None else tuple(Message(message["role"], message["content"]) for message in messages),
            tuple(Completion(completion["text"], completion["role"], completion["reward"]) for completion in completions or ()),
            label,
            pair,
            group,
            time,
            part,
            origin,
            weight,
            tuple(Span(span["start"], span["end"], span["kind"]) for span in spans or ()),
        )
