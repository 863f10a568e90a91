"""At which steps an observer looks."""

from __future__ import annotations

from collections.abc import Callable

When = Callable[[int], bool]


def every(period: int, *, first: int = 1) -> When:
    """Steps `first`, `first` + period, …"""
    return lambda step: step >= first and (step - first) % period == 0


def log_spaced(steps: int, looks: int) -> When:
    """About `looks` of the steps 1 … `steps`, evenly in the logarithm, both ends among them; early ones that fall together count once, and the looks
    saved there go to the later ones."""
    chosen: set[int] = {1, steps}
    points = looks
    while len(chosen) < min(looks, steps) and points < 50 * looks:
        chosen = {1, steps} | {round(steps ** (k / max(1, points - 1))) for k in range(points)}
        points += max(1, looks // 8)
    return lambda step: step in chosen
