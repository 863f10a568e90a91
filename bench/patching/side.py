"""What a side does with what it is asked, whichever library it uses; plain torch and numpy, so that every environment can run it."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Side = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def answer(tasks: Mapping[str, Side]) -> None:
    """Runs the task named in the JSON file of the command line on one thread and prints its answer as a line of JSON."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    print(json.dumps(dict(tasks[asked["task"]](asked)) | {"threads": torch.get_num_threads()}))


def rows(asked: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Base and source tokens, 1T each."""
    return torch.tensor([asked["base"]]), torch.tensor([asked["source"]])


def keep(asked: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
    """Writes arrays to the asked file."""
    np.savez(asked["output"], **{name: value.detach().float().numpy() for name, value in values.items()})
    return {"values": len(values)}


def measured(run: Callable[[], torch.Tensor]) -> dict[str, Any]:
    """Seconds of `run` (by the clock, and of processor time) and the peak of resident memory above what was there before it (weights, warmed libraries)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    begun, used = time.perf_counter(), time.process_time()
    values_LP = run()
    seconds, processor = time.perf_counter() - begun, time.process_time() - used
    memory = {"peak_bytes": _resident("VmHWM") - before, "resident_bytes": before}
    return {"seconds": seconds, "cpu_seconds": processor, "result": values_LP.tolist()} | memory


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
