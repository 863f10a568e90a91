"""`python bad_runner.py [+MEGABYTES] WORDS…`: the command line in a process of its own, on a machine that says it has room enough.

MEGABYTES: so much memory may be taken and no more."""

from __future__ import annotations

import importlib
import re
import resource
import sys
from pathlib import Path

from knowhow.cli import main
from knowhow.commands import sizing
from knowhow.estimate import Machine

MACHINE = Machine(cores=1, float32_rate=5e10, bf16_rate=0.0, memory_free=8 << 30, disk_free=50 << 30)


def limit(megabytes: int) -> None:
    """What is mapped now, and so much more. Modules that are opened late are opened first: their size is not the question."""
    for name in ("run", "commands.build", "commands.models", "specialist"):
        importlib.import_module(f"knowhow.{name}")
    now = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))


if __name__ == "__main__":
    sizing.machine = lambda runs: MACHINE
    words = sys.argv[1:]
    if words[0].startswith("+"):
        limit(int(words.pop(0)))
    raise SystemExit(main(words))
