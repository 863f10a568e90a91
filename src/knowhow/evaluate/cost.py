"""What a model costs: parameters, bytes, tokens per second, latency, energy where the machine tells. Measured here, never assumed.

Times and energy belong in `measured.json`: they differ from run to run and stay outside every digest. Every result is plain JSON.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Json = dict[str, float]
RAPL = Path("/sys/class/powercap")


def size(model: torch.nn.Module) -> Json:
    """Parameters (tied ones once), those that train, and their bytes as held in memory."""
    unique = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in unique),
        "trainable": sum(parameter.numel() for parameter in unique if parameter.requires_grad),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in unique),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def throughput(call: Callable[[Sequence[Any]], Any], batches: Iterable[Sequence[Any]], tokens: Sequence[int], *, warmup: int = 1) -> Json:
    """Rows and tokens per second over `batches` (`tokens[i]` in batch i), the first `warmup` run once more before the clock starts.

    With readable RAPL counters also joules of the whole machine's packages: {rows_per_second, tokens_per_second, seconds, rows, joules?, …}."""
    batches = list(batches)
    for batch in batches[:warmup]:
        call(batch)
    energy, start = _energy(), time.perf_counter()
    for batch in batches:
        call(batch)
    seconds, spent = time.perf_counter() - start, _spent(energy, _energy())
    rows = sum(len(batch) for batch in batches)
    result = {"seconds": seconds, "rows": rows, "rows_per_second": rows / seconds, "tokens_per_second": sum(tokens) / seconds}
    return result if spent is None else {**result, "joules": spent, "joules_per_row": spent / max(rows, 1)}


def latency(call: Callable[[Sequence[Any]], Any], rows: Sequence[Any], *, warmup: int = 2) -> Json:
    """One row at a time: median, 90th and 99th percentile and mean, in milliseconds."""
    for row in rows[:warmup]:
        call([row])
    times = []
    for row in rows:
        start = time.perf_counter()
        call([row])
        times.append(1000 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return {"latency_ms_p50": float(p50), "latency_ms_p90": float(p90), "latency_ms_p99": float(p99), "latency_ms_mean": float(np.mean(times)), "n": len(times)}


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _energy() -> dict[str, tuple[int, int]]:
    """{package: (microjoules counted, where the counter wraps)}; empty where the machine does not tell."""
    counters: dict[str, tuple[int, int]] = {}
    for zone in sorted(RAPL.glob("intel-rapl:?")) if RAPL.is_dir() else []:
        try:
            counters[zone.name] = int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
    return counters


def _spent(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """Joules between two readings; a counter that wrapped counts once."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[name][0] - count) % (wrap + 1) for name, (count, wrap) in before.items()) / 1e6
