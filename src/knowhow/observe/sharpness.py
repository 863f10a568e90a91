"""The largest eigenvalue of the loss's Hessian on a step's own batch, plain and as Adam's preconditioner sees it.

What laws/edge_of_stability.py reads: `sharpness.top` λ₁(H); with `beta2` `sharpness.preconditioned` λ₁(P^−½ H P^−½), P = (1 − β₁ᵗ)(√ν̂ + ε), ν̂ the
bias-corrected mean square of the gradients, which the observer keeps by itself. Shape letters: P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths import hvp
from knowhow.observe.looking import head_rows, trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo

EPSILON = 1e-8


class Sharpness:
    """Satisfies Observer. `krylov`: Lanczos steps, a Hessian-vector product each; `rows` of the first microbatch (None: all). With `beta2` it must be due
    at every step, and looks at the Hessian at each `period`-th only. The loss must be twice differentiable. Rows describe the weights before the update.

    Lanczos starts at a fixed vector, so the same weights give the same number."""

    name = "sharpness"

    def __init__(self, due: When, *, krylov: int = 12, rows: int | None = None, beta2: float = 0.0, period: int = 1) -> None:
        self.due = due
        self._krylov, self._limit, self._beta2, self._period = krylov, rows, beta2, period
        self._square_P = torch.zeros(0)
        self._seen = 0
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        moving = trained(info.model)
        parameters = list(moving.values())
        if self._beta2:
            gradient_P = hvp.flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
            self._square_P = self._beta2 * (self._square_P if self._seen else 0.0) + (1 - self._beta2) * gradient_P.square()
        self._seen += 1
        if (self._seen - 1) % self._period:
            return
        row = {"step": info.step, "sharpness.top": self._top(info, parameters, None)}
        if self._beta2:
            momentum = next(iter(info.rates.values())).momentum
            mean_P = self._square_P / (1 - self._beta2**self._seen)
            row["sharpness.preconditioned"] = self._top(info, parameters, (1 - momentum**self._seen) * (mean_P.sqrt() + EPSILON))
        self._rows.append(row)

    def _top(self, info: StepInfo, parameters: list[torch.Tensor], scale_P: torch.Tensor | None) -> float:
        batch = head_rows(info.batches[0], self._limit)
        units = info.objective.units(batch)
        inverse_P = None if scale_P is None else scale_P.rsqrt()

        def loss() -> torch.Tensor:
            found: torch.Tensor = info.objective(info.model, batch)[0] / units
            return found

        def product(vector_P: torch.Tensor) -> torch.Tensor:
            turned_P = vector_P if inverse_P is None else inverse_P * vector_P
            image_P = hvp.flat(hvp.exact(loss, parameters, hvp.like(turned_P, parameters)))
            return image_P if inverse_P is None else inverse_P * image_P

        count = sum(p.numel() for p in parameters)
        start_P = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(parameters[0])
        with unnoticed(info.model):
            values_K, _ = hvp.lanczos(product, start_P, self._krylov)
        return float(values_K[-1])

    def after(self, info: StepInfo) -> None:
        pass

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
