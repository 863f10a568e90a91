"""The local learning coefficient at the weights of a step: how many effective weights the loss feels there, by Langevin sampling round them.

What laws/local_learning_coefficient.py reads: `llc.value`, its standard error over chains `llc.error`, `llc.loss` at the weights, `llc.temperature` nβ.
Shape letters: K chains, P weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths import hvp
from knowhow.maths.sgld import Langevin, Losses, learning_coefficient
from knowhow.observe.looking import head_rows, trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo


class LocalLearningCoefficient:
    """Satisfies Observer. `since`: looks before this step are left out; `rows`: of the first microbatch (None: all); `n`: rows that the posterior stands for
    (None: those looked at). The step size is `fineness` / (nβ × the largest curvature at the weights), found by Lanczos; `localisation`, `chains`, `burn`
    and `draws` as in maths.sgld. Cost: chains × (burn + draws) passes of the rows, on weights beside the model's own."""

    name = "llc"

    def __init__(
        self,
        due: When,
        since: int = 1,
        rows: int | None = None,
        n: float | None = None,
        fineness: float = 0.1,
        localisation: float = 1.0,
        chains: int = 24,
        draws: tuple[int, int] = (800, 500),
    ) -> None:
        """`draws`: steps thrown away and steps kept."""
        self._due, self._since, self._limit, self._n = due, since, rows, n
        self._fineness, self._localisation, self._chains, self._draws = fineness, localisation, chains, draws
        self._rows: list[dict[str, float]] = []

    def due(self, step: int) -> bool:
        return step >= self._since and self._due(step)

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        batch = head_rows(info.batches[0], self._limit)
        start_P = hvp.flat(list(trained(info.model).values())).clone()
        n = self._n or info.objective.units(batch)
        with unnoticed(info.model):
            losses = chained(info, batch)
            spec = Langevin(n, 1.0, self._localisation, chains=self._chains, burn=self._draws[0], draws=self._draws[1])
            step = self._fineness / (spec.temperature * _curvature(losses, start_P) + self._localisation)
            spec = Langevin(n, step, self._localisation, chains=self._chains, burn=self._draws[0], draws=self._draws[1])
            generator = torch.Generator().manual_seed(torch.initial_seed() + info.step)
            value, error = learning_coefficient(losses, start_P, spec, generator)
            now = float(losses(start_P[None])[0])
        row = {"step": info.step, "llc.value": value, "llc.error": error, "llc.loss": now, "llc.temperature": spec.temperature, "llc.step": step}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


class _Scored(torch.nn.Module):
    """A model's loss as a module's forward, so that it can be called at other weights."""

    def __init__(self, info: StepInfo, batch: Batch) -> None:
        super().__init__()
        self.model = info.model
        self._info, self._batch = info, batch

    def forward(self) -> torch.Tensor:
        loss: torch.Tensor = self._info.objective(self.model, self._batch)[0] / self._info.objective.units(self._batch)
        return loss


def chained(info: StepInfo, batch: Batch) -> Losses:
    """The objective's loss per unit, and its gradient, at many weights at once."""
    scored = _Scored(info, batch)
    parameters = trained(info.model)
    shapes = list(parameters.values())

    def loss(weights_P: torch.Tensor) -> torch.Tensor:
        at = {f"model.{name}": part for name, part in zip(parameters, hvp.like(weights_P, shapes), strict=True)}
        value: torch.Tensor = torch.func.functional_call(scored, at, ())
        return value

    both = torch.func.vmap(torch.func.grad_and_value(loss))

    def losses(weights_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient_KP, loss_K = both(weights_KP)
        return loss_K.detach(), gradient_KP.detach()

    return losses


def _curvature(losses: Losses, start_P: torch.Tensor) -> float:
    """The Hessian's largest eigenvalue, by differences of gradients; 0 where the loss is flat or curves down only."""

    def product(vector_P: torch.Tensor) -> torch.Tensor:
        ends_2P = losses(torch.stack([start_P + 1e-2 * vector_P, start_P - 1e-2 * vector_P]))[1]
        return (ends_2P[0] - ends_2P[1]) / 2e-2

    first_P = torch.randn(start_P.shape, generator=torch.Generator().manual_seed(0)).to(start_P)
    return max(0.0, float(hvp.lanczos(product, first_P, 20)[0][-1]))
