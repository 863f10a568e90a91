"""The linearised model, trained beside the model on the same batches: what laws/kernel_regime.py reads.

f(θ₀) + J(θ₀)Δ starts at Δ = 0 where the observer first looks and takes the run's own plain steps. On the rows of the first look, after the update:
`kernel.gain_share` (loss gained by the linear model) / (loss gained by the model), `kernel.cosine` between the two changes of the outputs,
`kernel.gap` |f − f_linear| / |f_linear − f₀|, `kernel.time` Ση so far, `kernel.plain` 1 where every step was plain gradient descent and looked at.
Works with models that are called with their inputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from knowhow.maths.kernel import Given, Linearised, like, outputs
from knowhow.observe.looking import trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo


class Kernel:
    """Satisfies Observer. Look at every step: the linear model needs each. Cost: about two to four times the training."""

    name = "kernel"

    def __init__(self, due: When) -> None:
        self.due = due
        self._start: dict[str, torch.Tensor] = {}
        self._moved: dict[str, torch.Tensor] = {}
        self._kept: Batch | None = None
        self._first: Any = None
        self._seen, self._time, self._plain = 0, 0.0, 1.0
        self._push: dict[str, torch.Tensor] = {}
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        with unnoticed(info.model):
            if self._kept is None:
                self._start = {name: p.detach().clone() for name, p in trained(info.model).items()}
                self._moved = {name: torch.zeros_like(p) for name, p in self._start.items()}
                self._kept, self._seen = info.batches[0], info.step - 1
                with torch.no_grad():
                    self._first = info.model(self._kept.tokens_BT)
            self._push = self._gradient(info)

    def after(self, info: StepInfo) -> None:
        assert self._kept is not None, "after before before"
        rates = info.rates
        usual = all(rate.rule == "sgd" and not rate.momentum for rate in rates.values()) and info.clipped == 1.0 and info.step == self._seen + 1
        self._plain = min(self._plain, float(usual))
        self._seen = info.step
        self._time += max(rate.lr for rate in rates.values())
        for name, push in self._push.items():
            rate = rates[name]
            self._moved[name] = self._moved[name] - rate.lr * (push + rate.decay * (self._start[name] + self._moved[name]))
        with unnoticed(info.model), torch.no_grad():
            model, linear = info.model(self._kept.tokens_BT), self._linear(info)(self._kept.tokens_BT)
            losses = [self._loss(info, form) for form in (self._first, model, linear)]
        row = {"step": info.step, "kernel.time": self._time, "kernel.plain": self._plain}
        self._rows.append(row | compare(outputs(self._first), outputs(model), outputs(linear), losses))

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows

    def _linear(self, info: StepInfo) -> Linearised:
        return Linearised(info.model, self._start, self._moved)

    def _loss(self, info: StepInfo, form: Any) -> float:
        assert self._kept is not None, "a loss before the first look"
        return float(info.objective(Given(like(form, outputs(form))), self._kept)[0])

    def _gradient(self, info: StepInfo) -> dict[str, torch.Tensor]:
        """∇ of the linear model's loss on this step's batches, by Δ."""
        free = {name: value.clone().requires_grad_() for name, value in self._moved.items()}
        with torch.enable_grad():
            linear = Linearised(info.model, self._start, free)
            loss = sum(info.objective(linear, batch)[0] for batch in info.batches) / info.units
            found = torch.autograd.grad(loss, list(free.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(free, found, strict=True))


def compare(first: torch.Tensor, model: torch.Tensor, linear: torch.Tensor, losses: Sequence[float]) -> dict[str, float]:
    """The columns of a look; `losses` at the start, of the model and of the linear model. Numbers that are not defined are left out."""
    true, foreseen = (model - first).double().flatten(), (linear - first).double().flatten()
    row = {}
    if float(foreseen.norm()) > 0 and float(true.norm()) > 0:
        row["kernel.cosine"] = float(true @ foreseen / true.norm() / foreseen.norm())
        row["kernel.gap"] = float((true - foreseen).norm() / foreseen.norm())
    if losses[0] != losses[1]:
        row["kernel.gain_share"] = (losses[0] - losses[2]) / (losses[0] - losses[1])
    return {name: value for name, value in row.items() if math.isfinite(value)}
