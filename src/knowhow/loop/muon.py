"""Muon (Jordan 2024) as torch has it, its orthogonalisation in the type that the device multiplies fast.

torch.optim.Muon always works in bfloat16, which on a processor without such instructions takes a hundred times longer than float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of Jordan's quintic: steepest at zero."""


class Muon(torch.optim.Optimizer):
    """Matrices only. Nesterov momentum, decoupled decay, update × √max(1, rows ÷ columns); `dtype` is that of the orthogonalisation."""

    def __init__(self, params: Iterable[torch.Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        mean = state["momentum_buffer"]
        mean.lerp_(parameter.grad, 1 - group["momentum"])
        direction = orthogonal(parameter.grad.lerp(mean, group["momentum"]), self.dtype)
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """UVᵀ of a matrix USVᵀ, roughly: five Newton–Schulz steps bring every singular value near 1 (Jordan 2024). In `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
