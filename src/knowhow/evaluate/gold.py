"""What is true of the rows: the right answers as arrays, copies as weights, and which rows stand or fall together.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from knowhow.errors import UsageError
from knowhow.types import Example, Predictions, Task

AnswerKind = Literal["one", "many", "number", "text"]


@dataclass(frozen=True, slots=True)
class Gold:
    """`values`: int N (index in task.labels), NC 0/1 (many labels), float N (regress) or a list of N texts (generate).

    `weights_N` counts identical rows; `clusters_N` names the independent unit of each row: its group, or else its distinct input."""

    values: Any
    weights_N: np.ndarray
    clusters_N: np.ndarray


def answer_kind(task: Task) -> AnswerKind:
    """One label, many labels, a number or a text."""
    if task.labels:
        return "many" if task.many else "one"
    return "text" if task.kind == "generate" else "number"


def gold_of(examples: Sequence[Example], task: Task) -> Gold:
    """The right answers of N examples. Raises UsageError naming the row whose label is missing or not one of the task's."""
    kind = answer_kind(task)
    weights_N = np.array([example.weight for example in examples], dtype=np.float64)
    clusters_N = numbered([example.group if example.group is not None else input_key(example) for example in examples])
    if kind == "text":
        return Gold([reference(example) for example in examples], weights_N, clusters_N)
    if kind == "number":
        return Gold(np.array([_number(example) for example in examples], dtype=np.float64), weights_N, clusters_N)
    index = {label: place for place, label in enumerate(task.labels)}
    if kind == "one":
        return Gold(np.array([_place(example, example.label, index) for example in examples], dtype=np.int64), weights_N, clusters_N)
    values_NC = np.zeros((len(examples), len(index)), dtype=np.int64)
    for row, example in enumerate(examples):
        for label in _labels(example):
            values_NC[row, _place(example, label, index)] = 1
    return Gold(values_NC, weights_N, clusters_N)


def take(values: Any, rows_N: np.ndarray) -> Any:
    """Rows of gold values, whichever form they have."""
    return [values[row] for row in rows_N] if isinstance(values, list) else values[rows_N]


def take_predictions(predictions: Predictions, rows_N: np.ndarray) -> Predictions:
    """Rows of a model's answers, in the order of `rows_N`."""

    def some(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[rows_N]

    return Predictions(
        model=predictions.model,
        ids=tuple(predictions.ids[row] for row in rows_N),
        probs_NC=some(predictions.probs_NC),
        values_N=some(predictions.values_N),
        texts=None if predictions.texts is None else tuple(predictions.texts[row] for row in rows_N),
        nll_N=some(predictions.nll_N),
        logits_NC=some(predictions.logits_NC),
        thresholds_C=predictions.thresholds_C,
    )


def text_of(example: Example) -> str:
    """The input as one text: messages joined by newlines, the second text of a pair after a line of its own."""
    prompt = example.prompt if isinstance(example.prompt, str) else "\n".join(message.content for message in example.prompt)
    return prompt if example.pair is None else f"{prompt}\n\n{example.pair}"


def input_key(example: Example) -> str:
    """Digest of the distinct input; runs of white space do not make a different input."""
    return hashlib.blake2b(" ".join(text_of(example).split()).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def reference(example: Example) -> str:
    """The text a generated answer is held against: the target, else the chosen completion."""
    for role in ("target", "chosen"):
        for completion in example.completions:
            if completion.role == role:
                return completion.text
    raise UsageError(f"row {example.id} has no answer to hold a generated one against", allowed="a completion in every row", where=f"row {example.id}")


def numbered(names: Sequence[str]) -> np.ndarray:
    """Names → int N, numbered in order of first appearance."""
    place: dict[str, int] = {}
    return np.array([place.setdefault(name, len(place)) for name in names], dtype=np.int64)


def _labels(example: Example) -> tuple[str, ...]:
    if isinstance(example.label, tuple):
        return example.label
    if isinstance(example.label, str):
        return (example.label,)
    allowed = "a list of labels in every row (an empty list where none applies)"
    raise UsageError(f"row {example.id} has label {example.label!r}", allowed=allowed, where=f"row {example.id}")


def _place(example: Example, label: object, index: dict[str, int]) -> int:
    if isinstance(label, str) and label in index:
        return index[label]
    got, allowed = f"row {example.id} has label {label!r}", "one of " + ", ".join(index)
    raise UsageError(got, allowed=allowed, fix="name it in task.labels, or correct the row", where=f"row {example.id}")


def _number(example: Example) -> float:
    if isinstance(example.label, int | float) and np.isfinite(example.label):
        return float(example.label)
    raise UsageError(f"row {example.id} has label {example.label!r}", allowed="a finite number in every row", where=f"row {example.id}")
