"""What a person or a machine sees of the work: bars on a terminal, a line now and then elsewhere, JSON lines for machines, or nothing.

Everything here goes to stderr, or as JSON lines to stdout; it never touches the work. The time left is over- rather than underestimated.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from knowhow.protocols import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Clock = Callable[[], float]

_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")
WORTH_A_LINE = 2.0
"""Seconds below which the end of a piece of work needs no line."""

RECENT = 20
"""Reports that make up the recent rate."""


class Meter:
    """How far one piece of work is and how long it still takes. Work may be taken up in the middle (a resumed run): only what was seen counts."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.started: tuple[float, int] | None = None
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.total = 0

    def update(self, done: int, total: int) -> None:
        """A count that falls back means that the work began anew."""
        if self.started is None or done < self.recent[-1][1]:
            self.started = (self.clock(), done)
            self.recent.clear()
        self.total = total
        self.recent.append((self.clock(), done))

    def seconds_left(self) -> float | None:
        """By the slower of the recent and the overall rate; None while nothing is known."""
        if self.started is None or not self.total:
            return None
        now, done = self.recent[-1]
        rates = [(done - count) / (now - moment) for moment, count in (self.started, self.recent[0]) if now > moment and done > count]
        return (self.total - done) / min(rates) if rates else None

    def seconds_gone(self) -> float:
        return self.clock() - self.started[0] if self.started else 0.0


def duration(seconds: float) -> str:
    """45 → "45 s", 75 → "1:15 min", 4000 → "1:06 h"."""
    whole = int(seconds + 0.999)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Lines:
    """A line when a stage begins; for each piece of work at most one per `every` seconds, and one at its end when it took long enough to wonder."""

    def __init__(self, stream: TextIO, *, every: float = 10.0, clock: Clock = time.monotonic) -> None:
        self.stream, self.every, self.clock = stream, every, clock
        self.meters: dict[str, Meter] = {}
        self.spoken: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if stage := stage_of(what):
            if done < total:
                self._say(f"[{done + 1} of {total}] {stage}")
            return
        name = constant(what)
        meter = self.meters.setdefault(name, Meter(self.clock))
        meter.update(done, total)
        ended = bool(total) and done >= total
        now = self.clock()
        waited = now - self.spoken.setdefault(name, now) >= self.every
        if waited or (ended and meter.seconds_gone() >= WORTH_A_LINE):
            self.spoken[name] = now
            self._say(f"{what}: {_state(meter, done, total, ended)}")
        if ended:
            del self.meters[name], self.spoken[name]

    def _say(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


class JsonLines:
    """{"event": "stage", "stage", "number", "of"} and {"event": "progress", "what", "done", "total", "seconds_left"}, the latter at most once per `every`
    seconds for each piece of work, and at its end."""

    def __init__(self, emit: Callable[[Mapping[str, Any]], None], *, every: float = 1.0, clock: Clock = time.monotonic) -> None:
        self.emit, self.every, self.clock = emit, every, clock
        self.meters: dict[str, Meter] = {}
        self.spoken: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if stage := stage_of(what):
            if done < total:
                self.emit({"event": "stage", "stage": stage, "number": done + 1, "of": total})
            return
        name = constant(what)
        meter = self.meters.setdefault(name, Meter(self.clock))
        meter.update(done, total)
        ended = bool(total) and done >= total
        now = self.clock()
        if ended or now - self.spoken.get(name, -self.every) >= self.every:
            self.spoken[name] = now
            left = meter.seconds_left()
            self.emit({"event": "progress", "what": what, "done": done, "total": total, "seconds_left": None if left is None else round(left, 1)})
        if ended:
            del self.meters[name], self.spoken[name]


class Bars:
    """One bar per piece of work on a terminal, under the name of its stage; one that took a while leaves a line."""

    def __init__(self, bars: RichProgress, *, every: float = 0.1, clock: Clock = time.monotonic) -> None:
        self.bars, self.every, self.clock = bars, every, clock
        self.meters: dict[str, Meter] = {}
        self.tasks: dict[str, TaskID] = {}
        self.drawn: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if stage := stage_of(what):
            self._begin(stage, done, total)
            return
        name = constant(what)
        meter = self.meters.setdefault(name, Meter(self.clock))
        meter.update(done, total)
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(what, total=total or None, left="")
        ended = bool(total) and done >= total
        now = self.clock()
        if not ended and now - self.drawn.get(name, -self.every) < self.every:
            return
        self.drawn[name] = now
        self.bars.update(self.tasks[name], description=what, completed=done, total=total or None, left=_left(meter, ended))
        if ended:
            self.bars.remove_task(self.tasks[name])
            if meter.seconds_gone() >= WORTH_A_LINE:
                self._say(f"    {what}: {_state(meter, done, total, ended)}")
            del self.meters[name], self.tasks[name], self.drawn[name]

    def _begin(self, stage: str, number: int, count: int) -> None:
        """What an earlier stage left without an end is not shown on."""
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.meters.clear()
        self.tasks.clear()
        self.drawn.clear()
        if number < count:
            self._say(f"[{number + 1} of {count}] {stage}")

    def _say(self, line: str) -> None:
        """A line above the bars that stays."""
        self.bars.console.print(line, markup=False, highlight=False)


def stage_of(what: str) -> str:
    """`stage data` → "data": the flow announces its stages with their number as `done`; nothing for other work."""
    word, _, name = what.partition(" ")
    return name if word == "stage" else ""


def constant(what: str) -> str:
    """The part of a description that stays while its numbers (a loss, say) change."""
    return _NUMBER.sub("#", what)


def quiet(what: str, done: int, total: int) -> None:
    """Says nothing."""


@contextmanager
def showing(*, as_json: bool, silent: bool, emit: Callable[[Mapping[str, Any]], None]) -> Iterator[Progress]:
    """The progress that fits where it is seen: JSON lines through `emit`, nothing, bars on a terminal, lines elsewhere."""
    if as_json:
        yield quiet if silent else JsonLines(emit)
    elif silent:
        yield quiet
    elif sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb":
        with _rich() as bars:
            yield Bars(bars)
    else:
        yield Lines(sys.stderr)


def json_line(row: Mapping[str, Any]) -> str:
    """One record as one line, safe for any terminal encoding."""
    return json.dumps(row, ensure_ascii=True) + "\n"


def _rich() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Shown

    columns = (
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    return Shown(*columns, console=Console(stderr=True), refresh_per_second=4)


def _state(meter: Meter, done: int, total: int, ended: bool) -> str:
    count = f"{done:,} of {total:,}" if total else f"{done:,}"
    return f"{count}, {_left(meter, ended)}"


def _left(meter: Meter, ended: bool) -> str:
    if ended:
        return f"done in {duration(meter.seconds_gone())}"
    left = meter.seconds_left()
    return f"{duration(left)} left" if left is not None else f"{duration(meter.seconds_gone())} so far"
