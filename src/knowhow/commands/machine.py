"""This machine, measured: cores and memory that a container leaves us, disk, and the rate of a large matrix product."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil
import torch

from knowhow.estimate import Machine
from knowhow.files import existing_parent

SMALL, SIDE, REPEATS = 128, 1024, 5
PATIENCE = 0.2
"""Seconds that one large product may take."""
CGROUP = Path("/sys/fs/cgroup")


def machine(folder: Path) -> Machine:
    """`folder`: where the run will be written. Takes about half a second."""
    return Machine(cores(), matmul_rate(torch.float32), matmul_rate(torch.bfloat16), memory_free(), shutil.disk_usage(existing_parent(folder)).free)


def cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: the scheduler's mask, and a container's quota."""
    allowed = len(psutil.Process().cpu_affinity() or [0]) if psutil.LINUX or psutil.WINDOWS else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return min(allowed, max(1, round(int(quota) / int(period)))) if quota.isdecimal() and period.isdecimal() else allowed


def memory_total(cgroup: Path = CGROUP) -> int:
    """Bytes of memory, or a container's limit where that is smaller."""
    limit = _read(cgroup / "memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdecimal() else total


def memory_free(cgroup: Path = CGROUP) -> int:
    """Bytes that can still be taken without swapping."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    return min(free, max(0, int(limit) - int(used))) if limit.isdecimal() and used.isdecimal() else free


def matmul_rate(kind: torch.dtype) -> float:
    """Operations per second of the fastest of a few products of two square matrices on this machine's default device. A kind that it does not multiply in
    hardware (bf16 on many processors) is a thousand times slower: small matrices say so, and large ones are not tried."""
    rate = _rate(kind, SMALL)
    return max(rate, _rate(kind, SIDE)) if 2 * SIDE**3 / rate < PATIENCE else rate


def _rate(kind: torch.dtype, side: int) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.ones(side, side, dtype=kind, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        float((left @ left)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
