"""How much of the machine others take while something is timed."""

from __future__ import annotations

import resource
import time

import psutil


class Others:
    """Counts from its making; `children`: the timed work is in finished child processes instead of this one."""

    def __init__(self, *, children: bool = False) -> None:
        self.who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
        self.began, self.taken = time.perf_counter(), self._taken()

    def share(self) -> float:
        """Share of all processor time since the making that went to other processes, or to other guests of the host."""
        return max(0.0, self._taken() - self.taken) / ((time.perf_counter() - self.began) * psutil.cpu_count())

    def _taken(self) -> float:
        every, mine = psutil.cpu_times(), resource.getrusage(self.who)
        return float(every.user + every.nice + every.system + every.steal - mine.ru_utime - mine.ru_stime)
