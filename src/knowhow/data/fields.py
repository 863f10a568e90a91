"""Which column is what, and rows to Examples: label, chat, instruction and preference formats."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from knowhow.data import cells, conversation
from knowhow.errors import UsageError
from knowhow.types import Completion, Example, Message, Task


@dataclass(frozen=True)
class FieldMap:
    """Column names. `pair` is a second text (also alpaca's `input`); `completion`, or `chosen` and `rejected`, is what should be answered."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    slice: str | None = None
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    messages: str | None = None
    id: str | None = None


_PAIRS = (
    ("text", "pair"), ("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("claim", "evidence"), ("query", "passage"), ("query", "document"), ("question", "passage"), ("question", "context"),
    ("question", "sentence"), ("instruction", "input"), ("instruction", "context"),
)  # fmt: skip
_TEXTS = (
    "text", "sentence", "content", "instruction", "prompt", "input", "question", "query", "utterance", "review", "comment", "document", "article",
    "body", "claim", "tokens", "title", "sentence1", "source",
)  # fmt: skip
_COMPLETIONS = ("completion", "output", "response", "answer", "target_text", "summary")
_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "intent",
    "sentiment",
    "family",
    "tags",
    "tag",
    "score",
    "rating",
    "relevance",
    "gold",
    "stars",
    "y",
)
_PLACES = {
    "group": ("group", "group_id", "groups", "session_id", "user_id", "cluster"),
    "time": ("time", "timestamp", "datetime", "date", "created_at"),
    "weight": ("weight", "sample_weight"),
    "slice": ("slice", "subset"),
    "id": ("id", "uid", "guid", "example_id", "row_id", "_id"),
}  # fmt: skip
_UNNAMED = re.compile(r"column\d+")


def recognise(rows: Sequence[Mapping[str, Any]], given: FieldMap | None = None) -> FieldMap:
    """Which column is what, from names and values of some first rows; what `given` names is taken as it is.

    Raises UsageError when a given column does not exist (with the nearest that does), or when no column is a text."""
    given = given or FieldMap()
    present = list(dict.fromkeys(name for row in rows for name in row))
    for role, name in dataclasses.asdict(given).items():
        if name is not None and name not in present:
            got = f"data.fields.{role} is {name!r}, but no row has that field{cells.nearest(name, present)}"
            raise UsageError(got, allowed=", ".join(present), fix="name one of these fields")
    used = {name for name in dataclasses.asdict(given).values() if name}
    columns = _Columns(rows, {name.lower(): name for name in reversed(present) if name not in used})
    found = _inputs(columns, given)
    if not (found.text or found.messages):
        allowed = f"a text in one of: {', '.join(_TEXTS)}; or messages, conversations"
        why = cells.misfit(rows, [name for name in present if name.lower() in _TEXTS])
        raise UsageError(f"no column that reads like a text among: {', '.join(present)}{why}", allowed=allowed, fix="name it under data.fields.text")
    return _places(columns, found)


def examples(rows: Iterable[Mapping[str, Any]], fields: FieldMap, task: Task, *, origin: str, need_label: bool = False) -> Iterator[Example]:
    """Rows as Examples, streamed; `origin` (a file's name) is named in errors and in the ids of rows without one.

    `need_label`: a task of labels or numbers whose label column is unknown is an error. Raises UsageError for a wrong field, mixed types, NaN or
    unknown labels, and missing or blank texts, with the row's number (from 1)."""
    source = fields.label or (fields.completion if task.kind != "generate" else None)
    if need_label and task.kind != "generate" and source is None:
        raise UsageError(
            "no column that reads like a label", where=origin, allowed=f"a column named {', '.join(_LABELS)}", fix="name it under data.fields.label"
        )
    fields = dataclasses.replace(fields, label=source)
    if task.kind == "score" and fields.pair is None:
        got = "a task of pairs (score), but no column holds the second text"
        raise UsageError(got, where=origin, allowed="two columns of texts, like claim and evidence", fix="name the second under data.fields.pair")
    kinds: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{origin}, row {number}"
        _refuse_missing(row, fields, where)
        _refuse_mixed(row, fields, kinds, number, where)
        yield _example(row, fields, task, where=where, fallback_id=f"{origin}#{number}", origin=origin)


def infer_labels(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels that occur, sorted (as numbers where all are whole numbers). Raises UsageError when no example has one."""
    found = {name for example in examples for name in _names(example.label)}
    if not found:
        raise UsageError("no row has a label", allowed="a label in every training row", fix="name the column under data.fields.label")
    whole = all(re.fullmatch(r"-?\d{1,9}", name) for name in found)
    return tuple(sorted(found, key=(lambda name: (int(name), name)) if whole else None))


@dataclass(frozen=True)
class _Columns:
    """Peeked rows, and {lower-case name: name} of the columns still free."""

    rows: Sequence[Mapping[str, Any]]
    free: dict[str, str]

    def take(self, candidates: Iterable[str], fits: Callable[[Any], bool]) -> str | None:
        """The first free column with one of these names whose filled values fit; it is free no longer."""
        for candidate in candidates:
            name = self.free.get(candidate)
            if name is not None and self.fit(name, fits):
                del self.free[candidate]
                return name
        return None

    def fit(self, name: str, fits: Callable[[Any], bool]) -> bool:
        values = [value for row in self.rows if not cells.missing(value := row.get(name))]
        return bool(values) and all(fits(value) for value in values)


def _inputs(columns: _Columns, given: FieldMap) -> FieldMap:
    """Text, pair, messages, completion, preference and label."""
    messages = given.messages or (
        None if given.text else columns.take(("messages", "conversations", "conversation", "chat", "dialog"), conversation.is_conversation)
    )
    text, pair = given.text, given.pair
    if not (messages or text or pair):
        both = next((names for names in _PAIRS if all(name in columns.free and columns.fit(columns.free[name], _is_text) for name in names)), None)
        if both and not ("text" in columns.free and "text" not in both):
            text, pair = (columns.free.pop(name) for name in both)
    given = dataclasses.replace(given, messages=messages, text=text, pair=pair)
    if not (messages or text) and columns.free and all(_UNNAMED.fullmatch(name) for name in columns.free):
        given = _unnamed(columns, given)
    return dataclasses.replace(
        given,
        text=given.text or (None if messages else columns.take(_TEXTS, _is_text)),
        chosen=given.chosen or columns.take(("chosen",), lambda value: isinstance(value, str | dict | list)),
        rejected=given.rejected or columns.take(("rejected",), lambda value: isinstance(value, str | dict | list)),
        label=given.label or columns.take(_LABELS, lambda value: not isinstance(value, dict)),
        completion=given.completion or (None if messages else columns.take(_COMPLETIONS, _is_scalar)),
    )


def _unnamed(columns: _Columns, given: FieldMap) -> FieldMap:
    """A table without a header: the longest column is the text, the one with the fewest values (they must recur) the label."""
    lengths = {name: sum(len(str(row.get(name, ""))) for row in columns.rows) for name in columns.free.values()}
    text = max(lengths, key=lambda name: lengths[name])
    variety = {name: len({str(row.get(name)) for row in columns.rows}) for name in lengths if name != text}
    label = min(variety, key=lambda name: variety[name], default=None)
    if label is None or given.label or 2 * variety[label] > max(2, len(columns.rows)):
        label = given.label
    for name in (text, label):
        columns.free.pop(name or "", None)
    return dataclasses.replace(given, text=text, label=label)


def _places(columns: _Columns, found: FieldMap) -> FieldMap:
    """Group, time, weight, slice and id."""
    fits = {"time": _is_time, "weight": _is_weight}
    known = dataclasses.asdict(found)
    taken = {role: known[role] or columns.take(names, fits.get(role, _is_scalar)) for role, names in _PLACES.items()}
    return dataclasses.replace(found, group=taken["group"], time=taken["time"], weight=taken["weight"], slice=taken["slice"], id=taken["id"])


def _example(row: Mapping[str, Any], fields: FieldMap, task: Task, *, where: str, fallback_id: str, origin: str) -> Example:
    prompt, completions = _prompt(row, fields, task, where)
    pair = row.get(fields.pair) if fields.pair else None
    return Example(
        id=(cells.optional_text(row.get(fields.id)) if fields.id else None) or fallback_id,
        prompt=prompt,
        completions=completions,
        label=cells.label(row.get(fields.label), task, fields.label, where) if fields.label and task.kind != "generate" else None,
        pair=cells.text(pair, fields.pair or "", where) if task.kind == "score" else cells.optional_text(pair),
        group=cells.optional_text(row.get(fields.group)) if fields.group else None,
        time=cells.time(row.get(fields.time), fields.time, where) if fields.time else None,
        slice=cells.optional_text(row.get(fields.slice)) if fields.slice else None,
        origin=origin,
        weight=cells.weight(row.get(fields.weight), fields.weight, where) if fields.weight else 1.0,
    )


def _prompt(row: Mapping[str, Any], fields: FieldMap, task: Task, where: str) -> tuple[str | tuple[Message, ...], tuple[Completion, ...]]:
    if fields.messages is None:
        prompt: str | tuple[Message, ...] = cells.text(row.get(fields.text or ""), fields.text or "text", where)
        if task.kind != "generate":
            return prompt, ()
        if fields.chosen or fields.rejected:
            return _preferred(row, fields, (Message("user", prompt),), where, plain=prompt)
        if not fields.completion:
            return prompt, ()
        return prompt, _judged(cells.text(cells.optional_text(row.get(fields.completion)), fields.completion, where), row, fields)
    turns = conversation.with_context(conversation.messages(row.get(fields.messages), where), row)
    if task.kind != "generate":
        return turns, ()
    if fields.chosen or fields.rejected:
        return _preferred(row, fields, turns, where)
    before, said = conversation.parted(turns, where)
    return before, () if said is None else _judged(said, row, fields)


def _preferred(
    row: Mapping[str, Any], fields: FieldMap, prompt: tuple[Message, ...], where: str, plain: str | None = None
) -> tuple[str | tuple[Message, ...], tuple[Completion, ...]]:
    """Chosen and rejected answers to one prompt; texts stay texts (`plain`)."""
    completions, before = [], None
    for role, name in (("chosen", fields.chosen), ("rejected", fields.rejected)):
        if name is not None:
            led_by, said = conversation.answer(row.get(name), prompt, f"{where}, field {name!r}")
            if before is not None and before != led_by:
                raise UsageError(
                    "chosen and rejected answer different prompts", where=where, allowed="two answers to one prompt", fix="correct or remove the row"
                )
            before = led_by
            completions.append(Completion(said, "chosen" if role == "chosen" else "rejected"))
    return plain if plain is not None and before == prompt else before or prompt, tuple(completions)


def _judged(said: str, row: Mapping[str, Any], fields: FieldMap) -> tuple[Completion, ...]:
    """An answer with a verdict in the label column (KTO: true or false, as reward 1 or 0), or a plain target."""
    verdict = row.get(fields.label) if fields.label else None
    verdict = {"true": True, "false": False}.get(verdict.strip().lower()) if isinstance(verdict, str) else verdict
    if not isinstance(verdict, bool):
        return (Completion(said),)
    return (Completion(said, "chosen" if verdict else "rejected", float(verdict)),)


def _refuse_missing(row: Mapping[str, Any], fields: FieldMap, where: str) -> None:
    needed = (fields.text, fields.messages, fields.label, fields.chosen, fields.rejected)
    absent = next((name for name in needed if name is not None and name not in row), None)
    if absent is not None:
        present = [str(name) for name in row]
        got = f"no field {absent!r}{cells.nearest(absent, present)}"
        raise UsageError(got, where=where, allowed=f"the row has: {', '.join(present)}", fix="correct the row, or name the right field under data.fields")


def _refuse_mixed(row: Mapping[str, Any], fields: FieldMap, kinds: dict[str, tuple[str, int]], number: int, where: str) -> None:
    """Labels must be of one type throughout: 1 and "1" in one column are two classes to some readers and one to others."""
    cell = row.get(fields.label) if fields.label else None
    if cells.missing(cell):
        return
    kind = cells.kind_of(cell)
    first, seen_at = kinds.setdefault("label", (kind, number))
    if kind != first:
        got = f"field {fields.label!r} holds {kind} ({str(cell)[:60]!r}), but row {seen_at} holds {first}"
        raise UsageError(got, where=where, allowed="labels of one type in all rows", fix="write all labels the same way")


def _names(label: Any) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_time(value: Any) -> bool:
    try:
        return cells.time(value, "", "") is not None
    except UsageError:
        return False


def _is_weight(value: Any) -> bool:
    try:
        return cells.weight(value, "", "") > 0
    except UsageError:
        return False
