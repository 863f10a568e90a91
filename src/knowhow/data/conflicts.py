"""Identical inputs with different labels, and the best score that any function of the input can then reach.

Shapes: N rows, U inputs, C labels. A row's weight counts copies of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knowhow.types import Example, Task


@dataclass(frozen=True)
class Answers:
    """What N rows are labelled with. `codes` int64 indexes `names` (-1: no label); `weights` N; `values` N numbers (NaN where there is none)."""

    names: tuple[Any, ...]
    codes: np.ndarray
    weights: np.ndarray
    values: np.ndarray


def answers(examples: Sequence[Example]) -> Answers:
    """One pass over the examples. A label is a text, a tuple (many) or a number; without one, the first completion is the answer."""
    known: dict[Any, int] = {}
    codes, weights, values = (np.empty(len(examples), kind) for kind in (np.int64, np.float64, np.float64))
    for row, example in enumerate(examples):
        answer = example.label
        if answer is None and example.completions:
            answer = _short(example.completions[0].text)
        codes[row] = -1 if answer is None else known.setdefault(answer, len(known))
        weights[row] = example.weight
        values[row] = answer if isinstance(answer, float | int) else np.nan
    return Answers(tuple(known), codes, weights, values)


def _short(text: str) -> str:
    """A name for a long answer, so that a million of them are not held: its beginning and its digest."""
    return text if len(text) <= 120 else f"{text[:100]}… {hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def conflicts(inputs: np.ndarray, given: Answers, task: Task) -> dict[str, Any]:
    """{inputs, rows, ceiling_accuracy, ceiling_macro_f1, ceiling_r2}: inputs (N cluster numbers) that carry different labels, and weighted ceilings.

    Accuracy (for many labels and texts: exact match): the share of the weight that lies on each input's commonest label. Macro-F1: the mean over
    labels of the best F1 of that label alone, an upper bound (reached when labels do not compete). R²: one minus the share of the variance within
    inputs. A ceiling that means nothing for the task is None."""
    labelled = given.codes >= 0
    inputs, codes, weights, values = inputs[labelled], given.codes[labelled], given.weights[labelled], given.values[labelled]
    numeric = task.kind in ("regress", "score") and len(values) > 0 and not np.isnan(values).any()
    pairs, inverse = np.unique(np.stack([inputs, codes]), axis=1, return_inverse=True) if len(codes) else (np.zeros((2, 0), np.int64), codes)
    mass = np.bincount(inverse.reshape(-1), weights, minlength=pairs.shape[1])
    owner, kinds = np.unique(pairs[0], return_counts=True)
    torn = owner[kinds > 1]
    return {
        "inputs": len(torn),
        "rows": int(np.isin(inputs, torn).sum()),
        "ceiling_accuracy": None if numeric or not len(codes) else _accuracy(pairs[0], mass),
        "ceiling_macro_f1": _macro_f1(pairs, mass, given.names, task) if task.kind != "generate" and not numeric and len(codes) else None,
        "ceiling_r2": _r2(inputs, values, weights) if numeric else None,
    }


def _accuracy(owner: np.ndarray, mass: np.ndarray) -> float:
    """`owner` P inputs (sorted), `mass` P weights of one label each."""
    starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    return float(np.maximum.reduceat(mass, starts).sum() / mass.sum())


def _macro_f1(pairs: np.ndarray, mass: np.ndarray, names: Sequence[Any], task: Task) -> float:
    """Mean over labels of max F1 = 2·TP / (predicted + actual). The best set of inputs to answer with a label is a prefix of the inputs ordered by
    the label's share there, because F1 of a union lies between the F1-like ratios of its parts."""
    total = np.bincount(pairs[0], mass)
    if task.many:
        singles = sorted({name for label in names for name in label})
        owners = [(pairs[0], mass * np.array([single in names[code] for code in pairs[1]], float)) for single in singles]
    else:
        owners = [(pairs[0][pairs[1] == code], mass[pairs[1] == code]) for code in np.unique(pairs[1])]
    best = []
    for owner, own in owners:
        hits = np.bincount(owner, own, minlength=len(total))
        held = np.flatnonzero(hits)
        order = held[np.argsort(-hits[held] / total[held], kind="stable")]
        best.append(float(np.max(2 * np.cumsum(hits[order]) / (np.cumsum(total[order]) + hits.sum()))))
    return float(np.mean(best))


def _r2(inputs: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float | None:
    _, owner = np.unique(inputs, return_inverse=True)
    owner = owner.reshape(-1)
    means = np.bincount(owner, weights * values) / np.bincount(owner, weights)
    spread = np.average((values - np.average(values, weights=weights)) ** 2, weights=weights)
    return float(1 - np.average((values - means[owner]) ** 2, weights=weights) / spread) if spread > 0 else None
