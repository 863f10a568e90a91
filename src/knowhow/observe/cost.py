"""What an observer costs: the same observer, with a clock round every look."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from knowhow.protocols import Observer
from knowhow.types import StepInfo


class Timed:
    """Satisfies Observer. `seconds`: spent in looks so far."""

    def __init__(self, inner: Observer) -> None:
        self.inner, self.name, self.due = inner, inner.name, inner.due
        self.seconds = 0.0

    def before(self, info: StepInfo) -> None:
        clock = time.perf_counter()
        self.inner.before(info)
        self.seconds += time.perf_counter() - clock

    def after(self, info: StepInfo) -> None:
        clock = time.perf_counter()
        self.inner.after(info)
        self.seconds += time.perf_counter() - clock

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self.inner.rows()
