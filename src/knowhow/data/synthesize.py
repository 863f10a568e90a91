"""More rows where data is scarce: from templates with slots, or asked of a teacher. Nothing that repeats training or leaks from a test is kept."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from knowhow.data import cells, dedupe, teacher
from knowhow.data.chat import rendered
from knowhow.data.overlap import input_text
from knowhow.errors import UsageError
from knowhow.protocols import Progress
from knowhow.types import Completion, Example, Task

_SLOT = re.compile(r"\{(\w+)\}")
_TRIES = 20
"""Draws per wanted row before the templates count as exhausted."""
_SHOWN = 3
_ROUND = 512
"""Templates are filled so many at a time, until enough differ."""
_FATES = ("made", "kept", "repeats", "in_train", "in_held_out", "invalid")


@dataclass(frozen=True)
class Synthesis:
    """New examples and what became of the candidates: {made, kept, repeats, in_train, in_held_out, invalid}."""

    examples: tuple[Example, ...]
    counts: Mapping[str, int]


def from_templates(
    templates: Sequence[str],
    slots: Mapping[str, Sequence[str]],
    *,
    label: str | None,
    rows: int,
    seed: int,
    train: Sequence[Example] = (),
    held_out: Sequence[Example] = (),
) -> Synthesis:
    """Up to `rows` examples (origin `templates`) with each `{slot}` filled from its values; templates take turns, values are drawn.

    `held_out`: rows of validation and test, whose near copies are dropped. Fewer rows come back when the templates give no more that differ.
    Raises UsageError for a slot without values, and for a template without slots beside others that repeat it."""
    _check_templates(templates, slots)
    rng = np.random.Generator(np.random.PCG64(seed))
    texts = dict.fromkeys(_filled(templates, slots, rows, rng))
    made = (Example(f"templates#{number}", text, label=label, origin="templates") for number, text in enumerate(texts, start=1))
    counts: Counter[str] = Counter(dict.fromkeys(_FATES, 0))
    kept: list[Example] = []
    while len(kept) < rows and (some := list(islice(made, _ROUND))):
        new = novel(some, rows - len(kept), train=[*train, *kept], held_out=held_out, own=len(kept))
        kept += new.examples
        counts.update(new.counts)
    return Synthesis(tuple(kept), dict(counts))


def from_teacher(
    ask: teacher.Teacher, task: Task, *, rows: int, seed: int, train: Sequence[Example], held_out: Sequence[Example] = (), progress: Progress | None = None
) -> Synthesis:
    """Up to `rows` examples (origin `teacher`) like those of `train`, asked of an OpenAI-compatible endpoint a handful at a time.

    Labels take turns, so that rare ones grow; a few training rows are shown each time, never held-out ones. Answers that are not the JSON asked for
    count as invalid. Ends early when the teacher's budget is spent, its answers bring nothing new, or it fails after some rows. Raises UsageError when it
    fails before the first."""
    rng = np.random.Generator(np.random.PCG64(seed))
    counts: Counter[str] = Counter(dict.fromkeys(_FATES, 0))
    labels: Sequence[str | None] = task.labels or (None,)
    kept: list[Example] = []
    idle = turn = 0
    while len(kept) < rows and idle < max(3, len(labels)):
        label = labels[turn % len(labels)]
        turn += 1
        try:
            answer = ask.reply(_request(task, label, _shown(train, label, rng), min(10, rows)))
        except UsageError:
            if not kept:
                raise
            break
        if answer is None:
            break
        made, invalid = _rows_of(answer, task, label, turn)
        new = novel(made, rows - len(kept), train=[*train, *kept], held_out=held_out, own=len(kept))
        kept += new.examples
        counts.update({**new.counts, "invalid": invalid})
        idle = 0 if new.examples else idle + 1
        if progress:
            progress("teacher", len(kept), rows)
    return Synthesis(tuple(kept), dict(counts))


def novel(made: Sequence[Example], rows: int, *, train: Sequence[Example], held_out: Sequence[Example], own: int = 0, threshold: float = 0.8) -> Synthesis:
    """The first `rows` of `made` that are no near copies of held-out rows, of training rows or of one kept before (Jaccard ≥ `threshold`).

    The last `own` rows of `train` are made ones kept earlier: a copy of them counts as a repeat."""
    known, theirs = len(held_out) + len(train), len(held_out) + len(train) - own
    pairs = dedupe.near_pairs([input_text(example) for example in (*held_out, *train, *made)], threshold=threshold, first=known)
    partners: dict[int, list[int]] = {}
    for left, right in pairs.tolist():
        partners.setdefault(right, []).append(left)
    counts, kept, taken = dict.fromkeys(_FATES, 0), [], set(range(theirs, known))
    for row, example in enumerate(made, start=known):
        near = partners.get(row, [])
        if len(kept) == rows:
            break
        counts["made"] += 1
        if any(other < len(held_out) for other in near):
            counts["in_held_out"] += 1
        elif any(other < theirs for other in near):
            counts["in_train"] += 1
        elif any(other in taken for other in near):
            counts["repeats"] += 1
        else:
            kept.append(example)
            taken.add(row)
            counts["kept"] += 1
    return Synthesis(tuple(kept), counts)


def _check_templates(templates: Sequence[str], slots: Mapping[str, Sequence[str]]) -> None:
    if not templates or not all(template.strip() for template in templates):
        raise UsageError("no template, or a blank one", where="data.synthesize.templates", allowed="texts with {slots}", fix="write at least one")
    wanted = {name for template in templates for name in _SLOT.findall(template)}
    for name in sorted(wanted):
        if not slots.get(name):
            got = f"the slot {{{name}}} has no values{cells.nearest(name, list(slots))}"
            raise UsageError(
                got, where="data.synthesize.slots", allowed=", ".join(sorted(slots)) or "a list of values per slot", fix=f"give values for {name!r}"
            )
    unused = sorted(set(slots) - wanted)
    if unused:
        got = f"no template uses the slots {', '.join(unused)}"
        raise UsageError(got, where="data.synthesize.slots", allowed=", ".join(f"{{{name}}}" for name in sorted(wanted)), fix="use them or remove them")


def _filled(templates: Sequence[str], slots: Mapping[str, Sequence[str]], rows: int, rng: np.random.Generator) -> Iterator[str]:
    """Filled templates in turn: every combination once in random order where there are few, random draws where there are many."""
    streams = [_combinations(template, slots, _TRIES * rows, rng) for template in templates]
    while streams:
        alive = []
        for stream in streams:
            text = next(stream, None)
            if text is not None:
                yield text
                alive.append(stream)
        streams = alive


def _combinations(template: str, slots: Mapping[str, Sequence[str]], most: int, rng: np.random.Generator) -> Iterator[str]:
    names = list(dict.fromkeys(_SLOT.findall(template)))
    sizes = [len(slots[name]) for name in names]
    total = math.prod(sizes)
    chosen = rng.permutation(total) if total <= most else (None for _ in range(most))
    for number in chosen:
        picks = [int(rng.integers(size)) for size in sizes] if number is None else _digits(int(number), sizes)
        values = {name: slots[name][pick] for name, pick in zip(names, picks)}
        yield _SLOT.sub(lambda match, values=values: values[match[1]], template)


def _digits(number: int, sizes: Sequence[int]) -> list[int]:
    digits = []
    for size in sizes:
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits


def _request(task: Task, label: str | None, shown: Sequence[Example], count: int) -> list[dict[str, str]]:
    """What the teacher is asked: so many new rows as JSON, with some training rows as a pattern."""
    kind = {"classify": "text", "regress": "text with a number", "score": "pair of texts", "generate": "prompt with its answer"}[task.kind]
    fields = {"generate": '{"text": "…", "completion": "…"}', "score": '{"text": "…", "pair": "…"}', "regress": '{"text": "…", "label": 0.0}'}
    shape = fields.get(task.kind, '{"text": "…"}')
    lines = [f"Write {count} new examples for a data set. Each is a {kind}.", task.instruction, f"Every example must have the label: {label}" if label else ""]
    if shown:
        lines += ["Examples that exist already; do not repeat or rephrase them:", *(_pattern(example) for example in shown)]
    lines += ["Vary topic, length and wording.", f'Answer with JSON alone: {{"rows": [{shape}, …]}}']
    return [{"role": "system", "content": "You write data sets. You answer with JSON alone."}, {"role": "user", "content": "\n".join(filter(None, lines))}]


def _pattern(example: Example) -> str:
    answer = f" → {example.completions[0].text[:300]}" if example.completions else ""
    return f"- {rendered(example.prompt)[:300]}{f' / {example.pair[:300]}' if example.pair else ''}{answer}"


def _shown(train: Sequence[Example], label: str | None, rng: np.random.Generator) -> list[Example]:
    """A few training rows of the label (of any, when it has none)."""
    rows = [
        row for row, example in enumerate(train) if label is None or example.label == label or (isinstance(example.label, tuple) and label in example.label)
    ]
    picked = rng.permutation(rows)[:_SHOWN] if rows else []
    return [train[int(row)] for row in picked]


def _rows_of(answer: str, task: Task, label: str | None, turn: int) -> tuple[list[Example], int]:
    """(examples, invalid rows) of one answer."""
    found, invalid = [], 0
    rows = teacher.rows_of(answer)
    if rows is None:
        return [], 1
    for row in rows:
        try:
            found.append(_example(row, task, label, f"teacher#{turn}.{len(found) + 1}"))
        except UsageError:
            invalid += 1
    return found, invalid


def _example(row: Mapping[str, object], task: Task, label: str | None, name: str) -> Example:
    """Raises UsageError when a part that the task needs is missing or of the wrong type, or when the teacher gave another label than asked."""
    if label is not None and row.get("label", label) != label:
        raise UsageError(f"the label {row.get('label')!r}", allowed=label)
    given = cells.number(row.get("label"), "label", name) if task.kind == "regress" or (task.kind == "score" and not task.labels) else label
    return Example(
        name,
        cells.text(row.get("text"), "text", name),
        (Completion(cells.text(row.get("completion"), "completion", name)),) if task.kind == "generate" else (),
        (str(given),) if task.many else given,
        pair=cells.text(row.get("pair"), "pair", name) if task.kind == "score" else None,
        origin="teacher",
    )
