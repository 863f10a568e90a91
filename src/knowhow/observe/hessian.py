"""The largest eigenvalues of the loss's Hessian on rows of a step's batch, by Lanczos.

What laws/hessian_outliers.py reads: `hessian.loss` of those rows per unit, and `hessian.value.1` … the largest eigenvalues, falling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from knowhow.maths import hvp
from knowhow.observe.looking import head_rows, trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Hessian:
    """Satisfies Observer. `largest`: how many eigenvalues are kept; `lanczos`: steps, some times as many; `rows`: of the first microbatch (None: all).

    `between`: losses of the step between which it looks at all; `step`: None takes the exact Hessian-vector product, which needs a loss that can be
    differentiated twice; a number takes differences of gradients at that distance. Cost: 2 to 4 passes of the rows and one vector of weights held per Lanczos
    step."""

    name = "hessian"

    def __init__(
        self, due: When, largest: int = 20, lanczos: int = 60, rows: int | None = None, between: tuple[float, float] | None = None, step: float | None = None
    ) -> None:
        self.due = due
        self._largest, self._lanczos, self._limit, self._step = largest, lanczos, rows, step
        self._between = between or (-math.inf, math.inf)
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        if not self._between[0] <= info.loss <= self._between[1]:
            return
        parameters = list(trained(info.model).values())
        batch = head_rows(info.batches[0], self._limit)
        objective, units = info.objective, info.objective.units(batch)

        def loss() -> torch.Tensor:
            return objective(info.model, batch)[0] / units

        def product(vector_P: torch.Tensor) -> torch.Tensor:
            direction = hvp.like(vector_P, parameters)
            if self._step is None:
                return hvp.flat(hvp.exact(loss, parameters, direction))
            return hvp.flat(hvp.differenced(loss, parameters, direction, step=self._step))

        with unnoticed(info.model):
            with torch.no_grad():
                now = float(loss())
            first = hvp.flat(parameters)
            start_P = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
            values_K, _ = hvp.lanczos(product, start_P, self._lanczos)
        falling = values_K.flip(0)[: self._largest].tolist()
        self._rows.append({"step": info.step, "hessian.loss": now} | {f"hessian.value.{k}": value for k, value in enumerate(falling, 1)})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
