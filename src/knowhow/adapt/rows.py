"""Examples to rows of an objective: which tokens, which targets, which weight. Shape letters: N rows, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from knowhow.data.batch import Rows, rows
from knowhow.data.chat import prompt_text, sft_text
from knowhow.errors import UsageError
from knowhow.model.infer import Cut
from knowhow.types import DISTRACTOR, Example, Task

Weights = Literal["rows", "sqrt", "distinct"]


def reweighted(weights_N: np.ndarray, kind: Weights) -> np.ndarray:
    """How copies count: each (`rows`), by their square root, or once."""
    return {"rows": weights_N, "sqrt": np.sqrt(weights_N), "distinct": np.ones_like(weights_N)}[kind]


def class_rows(
    examples: Sequence[Example], task: Task, tokens: Sequence[Sequence[int]], *, weights: Weights, onsets: np.ndarray | None = None, together: bool = False
) -> Rows:
    """Rows of a classifier or regressor: labels are an index N, a 0/1 matrix NC (many labels) or a number N. Weights have mean 1.

    `together`: rows of a group are read in one step, as far as their lengths are alike."""
    index = {label: place for place, label in enumerate(task.labels)}
    if task.many:
        labels = np.zeros((len(examples), len(index)), np.float32)
        for row, example in enumerate(examples):
            labels[row, [index[label] for label in example.label or ()]] = 1.0
    elif index:
        labels = np.array([index[example.label] for example in examples], np.int64)
    else:
        labels = np.array([example.label for example in examples], np.float32)
    named = [example.group or example.id for example in examples] if together else ()
    return rows(tokens, [example.id for example in examples], labels=labels, onsets=onsets, weights=_weights(examples, weights), groups=named)


def label_onsets(
    examples: Sequence[Example], task: Task, lengths: Sequence[int], pieces: Callable[[Sequence[str]], list[list[int]]], *, start: int, truncate: Cut
) -> np.ndarray:
    """Token position NK from which each label holds: that of the last token of its evidence, 0 without evidence, the row's length for an absent label.

    K = C for many labels, whose spans are told apart by `Span.kind`; else 1. `lengths` are those of the rows, cut to the context at their
    `truncate`; `pieces` makes tokens of bare texts, before which a row has `start` tokens."""
    index = {label: place for place, label in enumerate(task.labels)} if task.many else {}
    onsets_NK = np.zeros((len(examples), len(index) or 1), np.int64)
    places, before, after = [], [], []
    for row, example in enumerate(examples):
        if task.many:
            onsets_NK[row] = lengths[row]
            onsets_NK[row, [index[label] for label in example.label or ()]] = 0
        text = prompt_text(example, task)
        shift = text.find(example.prompt.rstrip()) if isinstance(example.prompt, str) else -1
        for column, end in _last_spans(example, index).items() if shift >= 0 else ():
            places.append((row, column))
            before.append(text[: shift + end])
            after.append(text[shift + end :])
    for (row, column), head, tail in zip(places, pieces(before), pieces(after), strict=True):
        onsets_NK[row, column] = _after_cut(start + len(head) - 1, start + len(head) + len(tail), lengths[row], truncate)
    return onsets_NK


def _last_spans(example: Example, index: Mapping[str, int]) -> dict[int, int]:
    """End of the last span of each of the row's labels, by the label's column."""
    ends: dict[int, int] = {}
    held = set(example.label or ()) if index else set()
    for span in example.evidence:
        if (not index or span.kind in held) and span.kind != DISTRACTOR:
            column = index.get(span.kind, 0)
            ends[column] = max(span.end, ends.get(column, 0))
    return ends


def _after_cut(at: int, whole: int, length: int, truncate: Cut) -> int:
    """Where token `at` of a row of `whole` tokens is once it was cut to `length`: itself, or the next that was kept."""
    lost = max(0, whole - length)
    front = {"tail": length, "head": 0, "middle": (length + 1) // 2}[truncate] if lost else length
    return min(at if at < front else max(front, at - lost), length - 1)


def lm_rows(examples: Sequence[Example], tokens: Sequence[Sequence[int]], end: int, *, weights: Weights) -> Rows:
    """Every token is a target; each text ends with `end`."""
    return rows([[*row, end] for row in tokens], [example.id for example in examples], weights=_weights(examples, weights))


def sft_rows(
    examples: Sequence[Example],
    task: Task,
    pieces: Callable[[Sequence[str]], list[list[int]]],
    *,
    start: Sequence[int],
    end: int,
    context: int,
    weights: Weights,
) -> Rows:
    """Completions are targets, prompts are not; a row that is too long loses the beginning of its prompt.

    Raises UsageError when a completion alone passes the context."""
    segments = [sft_text(example, task) for example in examples]
    flat = iter(pieces([text for row in segments for text, _ in row]))
    tokens, marks = [], []
    for example, row in zip(examples, segments):
        ids, supervised = list(start), [False] * len(start)
        for _, is_target in row:
            piece = next(flat)
            ids += piece
            supervised += [is_target] * len(piece)
        ids, supervised = [*ids, end], [*supervised, True]
        if sum(supervised) > context - len(start) - 1:
            got, fix = f"the answer of row {example.id} has {sum(supervised)} tokens", "shorten it, or choose a base with a longer context"
            raise UsageError(got, allowed=f"fewer than the context of {context}", fix=fix)
        tokens.append(list(start) + ids[len(ids) - context + len(start) :] if len(ids) > context else ids)
        marks.append([False] * len(start) + supervised[len(supervised) - context + len(start) :] if len(ids) > context else supervised)
    return rows(tokens, [example.id for example in examples], supervised=marks, weights=_weights(examples, weights))


def class_weights(labels: np.ndarray, weights_N: np.ndarray, classes: int, kind: Literal["none", "sqrt", "balanced"]) -> torch.Tensor | None:
    """Weight C of each class (`labels`: index N, or 0/1 NC): the inverse of its mass (`balanced`) or of its root (`sqrt`), scaled so that the rows' mean
    weight stays 1."""
    if kind == "none":
        return None
    mass_C = weights_N @ labels if labels.ndim == 2 else np.bincount(labels, weights_N, minlength=classes)
    weight_C = np.where(mass_C > 0, mass_C, np.inf) ** (-1.0 if kind == "balanced" else -0.5)
    return torch.from_numpy(weight_C * mass_C.sum() / (weight_C * mass_C).sum()).float()


def _weights(examples: Sequence[Example], kind: Weights) -> np.ndarray:
    weights_N = reweighted(np.array([example.weight for example in examples], np.float64), kind)
    return weights_N / weights_N.mean()
