"""How well the next update's effect is foreseen: the loss's second-order expansion along the optimizer's own step, on rows of the step's batch.

What laws/one_step.py reads: `one_step.first` g·u, `one_step.second` g·u + ½uᵀHu, `one_step.measured` L(θ+u) − L(θ), all per supervised unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths import hvp
from knowhow.observe.looking import head_rows, trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo


class OneStep:
    """Satisfies Observer. `rows`: how many rows of the first microbatch are looked at (None: all of it); cost: four passes of them and one loss."""

    name = "one_step"

    def __init__(self, due: When, rows: int | None = None) -> None:
        self.due = due
        self._limit = rows
        self._rows: list[dict[str, float]] = []
        self._before: list[torch.Tensor] = []

    def before(self, info: StepInfo) -> None:
        self._before = [p.detach().clone() for p in list(trained(info.model).values())]

    def after(self, info: StepInfo) -> None:
        parameters = list(trained(info.model).values())
        batch = head_rows(info.batches[0], self._limit)
        objective, units = info.objective, info.objective.units(batch)
        update = [p.detach() - old for p, old in zip(parameters, self._before, strict=True)]

        def loss() -> torch.Tensor:
            return objective(info.model, batch)[0] / units

        with unnoticed(info.model):
            with torch.no_grad():
                new = float(loss())
            with hvp.placed(parameters, self._before):
                with torch.no_grad():
                    old = float(loss())
                first = hvp.dot(hvp.gradient(loss, parameters), update)
                curvature = hvp.dot(hvp.differenced(loss, parameters, update, step=0.25), update)
        self._before = []
        row = {"step": info.step, "lr": info.lr, "one_step.first": first, "one_step.second": first + curvature / 2, "one_step.curvature": curvature}
        self._rows.append(row | {"one_step.measured": new - old, "one_step.loss": old})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
