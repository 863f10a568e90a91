"""Rows that are the same, or nearly, within and across the parts of a data set.

Shapes: N rows of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from knowhow.data import dedupe
from knowhow.data.store import text_of
from knowhow.protocols import Progress
from knowhow.types import Example

SHOWN, CUT = 5, 200


@dataclass(frozen=True)
class Clusters:
    """Cluster numbers of the N rows of one part, shared by all parts: `exact` (same normalised input) and `near` (similar inputs, exact ones included)."""

    exact: np.ndarray
    near: np.ndarray


def input_text(example: Example) -> str:
    """Everything that an answer may depend on: the prompt and, for a pair, the second text."""
    return text_of(example) if example.pair is None else f"{text_of(example)} \u241f {example.pair}"


def find(splits: Mapping[str, Sequence[Example]], *, seed: int = 0, progress: Progress | None = None) -> dict[str, Clusters]:
    """Clusters of every part; numbers mean the same in all of them."""
    total = sum(len(examples) for examples in splits.values())

    def texts() -> Iterator[str]:
        for examples in splits.values():
            yield from map(input_text, examples)

    exact, near = dedupe.exact_and_near(texts(), seed=seed, seen=lambda done: progress("duplicates", done, total) if progress else None)
    cuts = np.cumsum([len(examples) for examples in splits.values()])[:-1]
    return {name: Clusters(one, two) for name, one, two in zip(splits, np.split(exact, cuts), np.split(near, cuts))}


def duplicates(splits: Mapping[str, Sequence[Example]], found: Mapping[str, Clusters]) -> dict[str, Any]:
    """Rows that repeat an earlier row of their own part: {exact, near, splits, examples}; a row counted as exact is not counted as near."""
    counts = {name: _repeats(part) for name, part in found.items()}
    shown = [pair for name, part in found.items() for pair in _shown_repeats(splits[name], part, name)]
    return {
        "exact": sum(exact for exact, _ in counts.values()),
        "near": sum(near for _, near in counts.values()),
        "splits": {name: {"exact": exact, "near": near} for name, (exact, near) in counts.items()},
        "examples": shown[:SHOWN],
    }


def leakage(splits: Mapping[str, Sequence[Example]], found: Mapping[str, Clusters]) -> dict[str, Any]:
    """{"a/b": {exact, near, groups, rows, examples}} for each two parts: rows of b (of `rows`) whose input, or group, also occurs in a."""
    groups = {name: _groups(examples) for name, examples in splits.items()}
    report = {}
    for first, second in combinations(splits, 2):
        exact = np.isin(found[second].exact, found[first].exact)
        near = np.isin(found[second].near, found[first].near) & ~exact
        shared = groups[first].keys() & groups[second].keys()
        report[f"{first}/{second}"] = {
            "exact": int(exact.sum()),
            "near": int(near.sum()),
            "groups": sum(groups[second][name] for name in shared),
            "rows": len(exact),
            "examples": _shown_leaks(splits, found, (first, second), exact, near),
        }
    return report


def shown(example: Example, split: str, row: int) -> dict[str, Any]:
    """A row as the audit shows it; the text is cut."""
    text = input_text(example)
    return {"split": split, "row": row, "id": example.id, "text": text if len(text) <= CUT else text[: CUT - 1] + "…"}


def _repeats(part: Clusters) -> tuple[int, int]:
    rows, exact, near = len(part.exact), len(np.unique(part.exact)), len(np.unique(part.near))
    return rows - exact, exact - near


def _shown_repeats(examples: Sequence[Example], part: Clusters, name: str) -> list[dict[str, Any]]:
    """A row and the first of its cluster: near ones first, which are the ones to look at."""
    pairs = []
    for kind, keys in (("near", part.near), ("exact", part.exact)):
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        partner = first[inverse.reshape(-1)]
        differs = part.exact != part.exact[partner] if kind == "near" else np.arange(len(keys)) != partner
        for row in np.flatnonzero(differs)[:SHOWN]:
            rows = (int(partner[row]), int(row))
            pairs.append({"kind": kind, "rows": [shown(examples[index], name, index) for index in rows]})
    return pairs[: SHOWN - 2] + pairs[SHOWN : SHOWN + 2] if len(pairs) > SHOWN else pairs


def _shown_leaks(
    splits: Mapping[str, Sequence[Example]], found: Mapping[str, Clusters], names: tuple[str, str], exact: np.ndarray, near: np.ndarray
) -> list[dict[str, Any]]:
    first, second = names
    pairs = []
    for kind, hits, keys in (("exact", exact, "exact"), ("near", near, "near")):
        left, right = (found[name].exact if keys == "exact" else found[name].near for name in names)
        for row in np.flatnonzero(hits)[:SHOWN]:
            partner = int(np.flatnonzero(left == right[row])[0])
            pairs.append({"kind": kind, "rows": [shown(splits[first][partner], first, partner), shown(splits[second][int(row)], second, int(row))]})
    return pairs[:SHOWN]


def _groups(examples: Sequence[Example]) -> dict[str, int]:
    """Rows per group."""
    counts: dict[str, int] = {}
    for example in examples:
        if example.group is not None:
            counts[example.group] = counts.get(example.group, 0) + 1
    return counts
