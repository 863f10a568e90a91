"""A case that is longer than a specialist's context, as views that each fit: windows over its units, and a digest of the units that matter.

Nothing is cut off: every unit is in a window, and each window overlaps the one before by half, so that what belongs together is seen together somewhere.
What lies further apart than a window is seen in the digest, which leaves out units that the domain says carry nothing. Shape letters: U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from knowhow.explain.evidence import Units
from knowhow.types import Item


@dataclass(frozen=True, slots=True)
class View:
    """Some units of a case. `units`: their positions in the case."""

    units: tuple[int, ...]
    parts: Units
    digest: bool = False


def views(item: Item, sizes: Sequence[int], room: int) -> list[View]:
    """`sizes` U: tokens of each unit; `room`: the most of a view. One view of the whole where it fits; else windows, and the digest where it is shorter."""
    if not item.ranges:
        return []
    whole = range(len(item.ranges))
    if sum(sizes) <= room:
        return [_view(item, whole)]
    found = [_view(item, window) for window in windows(list(whole), sizes, room)]
    if item.telling is not None:
        kept = [unit for unit in whole if item.telling[unit]]
        if 0 < len(kept) < len(whole):
            found += [_view(item, window, digest=True) for window in windows(kept, sizes, room)]
    return found


def windows(units: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """Runs of units within `room` tokens (one unit at least), each beginning at the middle of the one before."""
    found: list[list[int]] = []
    start = 0
    while start < len(units):
        end, used = start, 0
        while end < len(units) and (end == start or used + sizes[units[end]] <= room):
            used += sizes[units[end]]
            end += 1
        found.append(list(units[start:end]))
        if end == len(units):
            break
        start = max(start + 1, (start + end) // 2)
    return found


def _view(item: Item, units: Sequence[int], *, digest: bool = False) -> View:
    lines, ranges, at = [], [], 0
    for unit in units:
        start, end = item.ranges[unit]
        lines.append(item.text[start:end])
        ranges.append((at, at + end - start))
        at += end - start + len(item.between)
    tail = item.text[item.ranges[-1][1] :].removeprefix(item.between) if units[-1] == len(item.ranges) - 1 else ""
    return View(tuple(units), Units(item.between.join(lines) + item.between + tail, tuple(ranges)), digest)
