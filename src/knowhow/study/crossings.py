"""When a measured curve passes a threshold, and where it moves the most: pure functions on looks (step, value), oldest first.

A look says nothing about the steps between it and the one before: every answer carries both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Series = Sequence[tuple[int, float]]
Row = Mapping[str, float]

CONFIRM = 2
"""A passing counts when so many later looks are past the threshold too."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """`step`: the first look past the threshold, `before`: the look before it (None: it was past it from the first look on), `value` at `step`;
    `confirmed`: how many of the next CONFIRM looks agree (fewer than CONFIRM: the run ended)."""

    step: int
    before: int | None
    value: float
    confirmed: int


@dataclass(frozen=True, slots=True)
class Change:
    """The largest change between two neighbouring looks, per e-fold of steps where `per_log`."""

    before: int
    step: int
    change: float


def series(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever `name` was kept and is a number."""
    return [(int(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]


def combined(rows: Sequence[Row], names: Sequence[str], how: Callable[[Sequence[float]], float]) -> list[tuple[int, float]]:
    """(step, how(values)) at looks that hold every one of `names` as numbers."""
    found = []
    for row in rows:
        values = [row.get(name) for name in names]
        numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
        if names and len(numbers) == len(names):
            found.append((int(row["step"]), how(numbers)))
    return found


def crossing(looks: Series, threshold: float, *, above: bool = True) -> Crossing | None:
    """The first look past `threshold` that the next CONFIRM looks do not take back; None where there is none."""
    past = [(value >= threshold) if above else (value <= threshold) for _, value in looks]
    for at, (step, value) in enumerate(looks):
        after = past[at + 1 : at + 1 + CONFIRM]
        if past[at] and all(after):
            return Crossing(step, looks[at - 1][0] if at else None, value, len(after))
    return None


def steepest(looks: Series, *, fall: bool = False, per_log: bool = True) -> Change | None:
    """Where the curve rises (or falls) most between two neighbouring looks; None when it never does."""
    best: Change | None = None
    best_rate = 0.0
    for (before, old), (step, new) in itertools.pairwise(looks):
        change = new - old
        width = math.log(step / before) if per_log and before > 0 else float(step - before)
        rate = (-change if fall else change) / width if width > 0 else 0.0
        if rate > best_rate:
            best, best_rate = Change(before, step, change), rate
    return best


def lowest(looks: Series) -> tuple[int, float]:
    return min(looks, key=lambda look: (look[1], look[0]))


def highest(looks: Series) -> tuple[int, float]:
    return max(looks, key=lambda look: (look[1], -look[0]))
