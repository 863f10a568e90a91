"""The store: what goes in comes out, as a sequence, with the same bytes every time."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knowhow.data import store
from knowhow.errors import ResourceError, UsageError
from knowhow.types import Completion, Example, Message, Span

KINDS = [
    Example("a", "plain", label="x", group="g", time=1.5, slice="s", origin="o", weight=3.0),
    Example("b", (Message("user", "hi"), Message("assistant", "yo")), (Completion("one", "chosen", 1.0), Completion("two", "rejected")), pair="second"),
    Example("c", "many", label=("p", "q"), evidence=(Span(0, 4, "word"),)),
    Example("d", "none of many", label=()),
    Example("e", "number", label=2.5),
    Example("f", ""),
]


def numbered(count: int) -> Iterator[Example]:
    return (Example(f"r{n}", f"text {n}", label="ab"[n % 2]) for n in range(count))


def test_every_kind_of_example_comes_back(tmp_path: Path) -> None:
    assert store.write(tmp_path / "deep" / "a.arrow", KINDS) == len(KINDS)
    found = store.Examples(tmp_path / "deep" / "a.arrow")
    assert list(found) == KINDS
    assert [found[n] for n in range(len(found))] == KINDS
    assert list(found.column("label")) == [example.label for example in KINDS]
    assert found.texts()[:2] == ["plain", "hi\nyo"]


def test_it_is_a_sequence_across_batches(tmp_path: Path) -> None:
    rows = list(numbered(20_000))
    store.write(tmp_path / "a.arrow", rows)
    found = store.Examples(tmp_path / "a.arrow")
    assert len(found) == 20_000
    assert found[-1] == rows[-1]
    assert list(found[8190:8195]) == rows[8190:8195]
    assert list(found[::-4000]) == rows[::-4000]
    picked = [19_999, 0, 8192, 8191, 0]
    view = found.select(picked)
    assert list(view) == [rows[n] for n in picked]
    assert list(view.select([1, 2])) == [rows[0], rows[8192]]
    assert list(view[1:3]) == [rows[0], rows[8192]]
    assert view.texts() == [rows[n].prompt for n in picked]
    assert view.texts([2]) == found.texts([8192]) == ["text 8192"]
    assert list(view.column("id")) == [f"r{n}" for n in picked]
    assert list(found.select(np.array([], int))) == []
    with pytest.raises(IndexError):
        found[20_000]


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.write(tmp_path / name, numbered(10_000))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    def broken() -> Iterator[Example]:
        yield from numbered(10_000)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        store.write(tmp_path / "a.arrow", broken())
    with pytest.raises(UsageError, match="'bad'"):
        store.write(tmp_path / "a.arrow", [*KINDS, Example("bad", "half a pair \ud800")])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        store.write(tmp_path / "a.arrow", KINDS)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 no")
    for name in ("a.arrow", "gone.arrow"):
        with pytest.raises(UsageError, match="not a file of examples"):
            len(store.Examples(tmp_path / name))


def test_an_empty_store(tmp_path: Path) -> None:
    assert store.write(tmp_path / "a.arrow", []) == 0
    assert list(store.Examples(tmp_path / "a.arrow")) == []


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        store.write(tmp_path / "a.arrow", numbered(count))
        assert sum(1 for _ in store.Examples(tmp_path / "a.arrow")) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    monkeypatch.setattr(store, "_ROWS", 500)
    assert peak(4000) < 1.5 * peak(1000)
