"""Long cases are read whole: every unit is in a window, neighbours together, and what tells something in the digest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knowhow.team.views import views, windows
from knowhow.types import Item


def item(count: int, tail: str = "", telling: tuple[bool, ...] | None = None) -> Item:
    lines = [f"Call{at} a" for at in range(count)]
    ranges, at = [], 0
    for line in lines:
        ranges.append((at, at + len(line)))
        at += len(line) + 1
    return Item("x", "\n".join(lines) + "\n" + tail, tuple(ranges), telling)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(5, 60))
def test_every_unit_is_in_a_window_and_every_window_fits_or_is_one_unit(sizes: list[int], room: int) -> None:
    found = windows(range(len(sizes)), sizes, room)
    assert {unit for window in found for unit in window} == set(range(len(sizes)))
    assert all(len(window) == 1 or sum(sizes[unit] for unit in window) <= room for window in found)
    assert all(window == list(range(window[0], window[-1] + 1)) for window in found)


def test_windows_overlap_by_half() -> None:
    found = windows(range(40), [1] * 40, 10)
    assert [window[0] for window in found] == [0, 5, 10, 15, 20, 25, 30]


def test_a_case_that_fits_is_one_view_of_the_same_text() -> None:
    made = item(5, "EmulationEnd Fault\n")
    (only,) = views(made, [2] * 5, 100)
    assert only.parts.text == made.text
    assert [only.parts.text[start:end] for start, end in only.parts.ranges] == made.lines()


def test_the_digest_joins_what_lies_far_apart_and_the_end_stands_in_its_last_view() -> None:
    telling = tuple(at in (0, 49) for at in range(50))
    found = views(item(50, "EmulationEnd Fault\n", telling), [2] * 50, 20)
    digest = [view for view in found if view.digest]
    assert [view.units for view in digest] == [(0, 49)]
    assert digest[0].parts.text == "Call0 a\nCall49 a\nEmulationEnd Fault\n"
    assert not any({0, 49} <= set(view.units) for view in found if not view.digest)
    assert sum("EmulationEnd" in view.parts.text for view in found if not view.digest) == 1


def test_no_unit_no_view() -> None:
    assert views(Item("x", "", ()), [], 10) == []
