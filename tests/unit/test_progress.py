"""Progress: honest time left, one line now and then, JSON lines, nothing when quiet."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from knowhow.progress import Bars, JsonLines, Lines, Meter, _rich, duration, json_line, quiet, showing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter: Meter, clock: Clock, pairs: list[tuple[float, int]], total: int) -> None:
    for seconds, done in pairs:
        clock.now += seconds
        meter.update(done, total)


def test_time_left_takes_the_slower_rate() -> None:
    clock = Clock()
    meter = Meter(clock)
    run(meter, clock, [(0, 0)] + [(1, done) for done in range(10, 510, 10)], 1000)
    assert meter.seconds_left() == pytest.approx(50)
    run(meter, clock, [(10, 510 + 10 * i) for i in range(25)], 1000)  # slowed down: the recent rate is 1 per second
    assert meter.seconds_left() == pytest.approx(1000 - 750, rel=0.05)
    run(meter, clock, [(0.1, 751 + 5 * i) for i in range(25)], 1000)  # faster again: the overall rate still counts
    gone = clock.now - 100
    assert meter.seconds_left() == pytest.approx((1000 - 871) * gone / 871, rel=0.05)


def test_time_left_of_resumed_work_counts_what_was_seen() -> None:
    clock = Clock()
    meter = Meter(clock)
    run(meter, clock, [(0, 900), (10, 910)], 1000)
    assert meter.seconds_left() == pytest.approx(90)


def test_time_left_unknown() -> None:
    clock = Clock()
    meter = Meter(clock)
    assert meter.seconds_left() is None
    run(meter, clock, [(0, 0), (5, 3)], 0)
    assert meter.seconds_left() is None
    run(meter, clock, [(0, 0)], 10)
    assert meter.seconds_left() is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (0.2, "1 s"), (59, "59 s"), (59.5, "1:00 min"), (75, "1:15 min"), (4000, "1:06 h")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_rare() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    for done in range(101):
        lines("train", done, 100)
        clock.now += 0.5
    shown = stream.getvalue().splitlines()
    assert len(shown) == 5
    assert shown[0] == "train: 20 of 100, 40 s left"
    assert shown[-1] == "train: 100 of 100, done in 50 s"


def test_stages_are_named_and_short_work_is_not() -> None:
    clock, stream, rows = Clock(), io.StringIO(), list[Mapping[str, Any]]()
    for progress in (Lines(stream, clock=clock), JsonLines(rows.append, clock=clock)):
        progress("stage data", 0, 2)
        progress("quick", 1, 1)
        progress("stage adapt", 1, 2)
        progress("stage report", 2, 2)
    assert stream.getvalue() == "[1 of 2] data\n[2 of 2] adapt\n"
    assert [row["stage"] for row in rows if row["event"] == "stage"] == ["data", "adapt"]


def test_a_description_whose_numbers_change_is_one_piece_of_work() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    for done in range(101):
        lines(f"phase 1 of 1, lr 1e-3, loss {1 / (done + 1):.4f}", done, 100)
        clock.now += 0.5
    assert stream.getvalue().splitlines()[-1] == "phase 1 of 1, lr 1e-3, loss 0.0099: 100 of 100, done in 50 s"
    assert len(stream.getvalue().splitlines()) == 5


def test_bars_of_an_earlier_stage_go() -> None:
    with _rich() as shown:
        bars = Bars(shown, clock=Clock())
        bars("stage data", 0, 2)
        bars("reading", 5, 0)
        bars("loss 0.5", 1, 10)
        bars("loss 0.25", 3, 10)
        assert [task.description for task in shown.tasks] == ["reading", "loss 0.5"], "one bar though the loss changed"
        bars("stage adapt", 1, 2)
        assert not shown.tasks


def test_work_of_unknown_size() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock=clock)
    for done in range(30):
        lines("read", done * 1000, 0)
        clock.now += 1
    assert stream.getvalue() == "read: 10,000, 10 s so far\nread: 20,000, 20 s so far\n"


def test_json_lines() -> None:
    clock, rows = Clock(), list[Mapping[str, Any]]()
    lines = JsonLines(rows.append, clock=clock)
    for done in range(11):
        lines("train", done, 10)
        clock.now += 0.3
    assert rows[0] == {"event": "progress", "what": "train", "done": 0, "total": 10, "seconds_left": None}
    assert rows[-1] == {"event": "progress", "what": "train", "done": 10, "total": 10, "seconds_left": 0}
    assert len(rows) == 4


def test_bars_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with _rich() as shown:
        bars = Bars(shown, clock=clock)
        for done in range(10):
            bars("train [1/2]", done, 10)
            clock.now += 1
        (task,) = shown.tasks
        assert (task.description, task.completed, task.total, task.fields["left"]) == ("train [1/2]", 9, 10, "1 s left")
        bars("train [1/2]", 10, 10)
        bars("quick", 1, 1)
        bars("read", 5, 0)
        assert [(task.description, task.total) for task in shown.tasks] == [("read", None)]
    said = capsys.readouterr().err
    assert "    train [1/2]: 10 of 10, done in 10 s" in said
    assert "quick" not in said


def test_showing_fits_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Mapping[str, Any]] = []
    with showing(as_json=True, silent=False, emit=rows.append) as progress:
        progress("a", 1, 1)
    assert rows
    with showing(as_json=False, silent=True, emit=rows.append) as progress:
        assert progress is quiet
    with showing(as_json=False, silent=False, emit=rows.append) as progress:
        assert isinstance(progress, Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with showing(as_json=False, silent=False, emit=rows.append) as progress:
        assert isinstance(progress, Bars)


def test_json_line_survives_any_text() -> None:
    assert json.loads(json_line({"a": "\ud800 €\n"})) == {"a": "\ud800 €\n"}
    assert json_line({"a": "\ud800 €\n"}).isascii()
