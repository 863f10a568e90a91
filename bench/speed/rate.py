"""This machine's bf16 matrix rate; plain torch, so that a peer's environment can run it too."""

from __future__ import annotations

import time

import torch

SIDES = (1024, 2048)


def matmul_rate(seconds: float = 1.0) -> float:
    """Operations per second of square bf16 products: the best of the sides, each at its median over `seconds`."""
    return max(_rate(side, seconds / len(SIDES)) for side in SIDES)


def _rate(side: int, seconds: float) -> float:
    left = torch.randn(side, side).to(torch.bfloat16)
    left @ left
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begun = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - begun)
    return 2 * side**3 / sorted(times)[len(times) // 2]
