"""Right answers to explain, each with what is known of its truth and with the twin that tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knowhow.data.chat import prompt_text
from knowhow.explain.asking import Asked
from knowhow.explain.evidence import Units, units
from knowhow.explain.writing import Written
from knowhow.model.load import Loaded
from knowhow.recipe import BaseSpec
from knowhow.stages.common import Build, context, load_predictions
from knowhow.stages.evaluate import specialist
from knowhow.types import DISTRACTOR, Example, Task


@dataclass(frozen=True, slots=True)
class Case:
    """A right answer: one label that a text has and that the model gives. `decoy_U`: lines that look like
    evidence and are none; `edited_U`: lines in which its twin differs, a text of the same group and
    as many lines that has not the label and is not given it (`twin`; none: no such text)."""

    example: Example
    parts: Units
    label: int
    truth_U: np.ndarray
    decoy_U: np.ndarray
    edited_U: np.ndarray
    twin: str | None = None


def cases(asked: Asked, build: Build, part: str, most: int) -> Iterator[Case]:
    """The first right answers of a split, one per text; plain texts alone (a conversation or a pair has no lines of its own)."""
    task, found = build.task, 0
    rows = [row for row in build.rows(part) if isinstance(row.prompt, str) and row.pair is None]
    mates: dict[str, list[Example]] = {}
    for row in rows:
        if row.group:
            mates.setdefault(row.group, []).append(row)
    for first in range(0, len(rows), 32):
        some = rows[first : first + 32]
        for row, said_C in zip(some, asked.said([str(row.prompt) for row in some]), strict=True):
            right = [at for at, label in enumerate(task.labels) if said_C[at] and label in _gold(row)]
            parts = units(str(row.prompt))
            if found < most and right and len(parts.ranges) > 1:
                label = right[found % len(right)]
                truth_U = parts.of([span for span in row.evidence if span.kind == task.labels[label]])
                decoy_U = parts.of([span for span in row.evidence if span.kind == DISTRACTOR])
                yield Case(row, parts, label, truth_U, decoy_U, *_edited(asked, parts, mates.get(row.group or "", []), label, task.labels[label]))
                found += 1
        if found >= most:
            return


def written(build: Build, part: str, most: int) -> tuple[Written, list[Case]]:
    """The first answers that a language model wrote, right ones where there are as many, each a case whose label is its place. Plain prompts alone, and
    answers that greedy decoding gives again (a sampler's or a cut one's would not)."""
    task, spec = build.task, build.recipe.base
    loaded, room = specialist(build), 4 * most
    given = load_predictions(build.run.path("evaluate", "predictions", part))
    rows = [(row, text) for row, text in zip(build.rows(part), given.texts or ()) if isinstance(row.prompt, str) and row.pair is None and text]
    rows.sort(key=lambda one: one[1] not in {said.text.strip() for said in one[0].completions if said.role in ("target", "chosen")})
    asked = writing(loaded, task, spec, [text for _, text in rows[:room]])
    found = []
    for at, (row, _) in enumerate(rows[:room]):
        parts = units(str(row.prompt))
        if len(found) < most and len(parts.ranges) > 1 and asked.scorer()([parts.text], at)[0] > 0:
            nothing_U = np.zeros(len(parts.ranges), bool)
            truth_U = parts.of([span for span in row.evidence if span.kind != DISTRACTOR])
            found.append(Case(row, parts, at, truth_U, parts.of([span for span in row.evidence if span.kind == DISTRACTOR]), nothing_U))
    return asked, found


def writing(loaded: Loaded, task: Task, spec: BaseSpec, answers: Sequence[str]) -> Written:
    """A language model and what it wrote, as evidence asks it."""
    return Written(loaded, context(loaded, spec), lambda text: prompt_text(Example("", text), task), tuple(answers))


def _gold(row: Example) -> tuple[Any, ...]:
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _edited(asked: Asked, parts: Units, mates: Sequence[Example], label: int, name: str) -> tuple[np.ndarray, str | None]:
    """Which lines differ from those of the nearest twin, and the twin; none without one."""
    lines = [parts.text[start:end] for start, end in parts.ranges]
    best, twin = np.zeros(len(lines), bool), None
    for mate in mates:
        theirs = units(str(mate.prompt))
        if name in _gold(mate) or len(theirs.ranges) != len(lines):
            continue
        differs_U = np.array([line != theirs.text[start:end] for line, (start, end) in zip(lines, theirs.ranges, strict=True)])
        if differs_U.any() and (not best.any() or differs_U.sum() < best.sum()) and not asked.said([str(mate.prompt)])[0, label]:
            best, twin = differs_U, str(mate.prompt)
    return best, twin
