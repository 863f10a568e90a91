"""The same regression learnt with two batch sizes side by side, each at many learning rates.

Shape letters: S sizes (the batch, twice the batch), E rates, R replicas, B rows, D inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from knowhow.experiments.system import Drawn, System
from knowhow.maths.noise import direct
from knowhow.types import Batch

RATES = 18


class Racers(torch.nn.Module):
    """What is still to be learnt, `weights` SERD: outputs are x·w, 0 when all is learnt."""

    def __init__(self, start_D: torch.Tensor, replicas: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(start_D.expand(2, RATES, replicas, len(start_D)).clone())

    def forward(self, inputs_RBD: torch.Tensor, size: int) -> torch.Tensor:
        return torch.einsum("rbd,erd->erb", inputs_RBD, self.weights[size])


@dataclass(frozen=True)
class Race:
    """Σ over members of rate · mean square/2 on the member's rows: with plain descent at rate 1 every member takes its own rate. A member whose loss
    has grown `cap`-fold stands still. Metrics `race.small.e`, `race.large.e`: the exact expected loss, mean over replicas, before the step."""

    batch: int
    spread_D: torch.Tensor
    rates: tuple[float, ...]
    cap: float
    name: str = "race"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        assert isinstance(model, Racers), "a race is run by racers"
        rates_E = torch.tensor(self.rates)
        total = torch.zeros(())
        metrics: dict[str, torch.Tensor] = {}
        for size, (name, rows) in enumerate((("small", self.batch), ("large", 2 * self.batch))):
            risk_ER = (model.weights[size].detach().square() * self.spread_D).sum(-1) / 2
            running_ER = risk_ER < self.cap
            each_ER = model(batch.tokens_BT[:, :rows], size).square().mean(-1) / 2
            total = total + torch.where(running_ER, each_ER * rates_E[:, None], torch.zeros(())).sum()
            metrics |= {f"race.{name}.{at}": risk for at, risk in enumerate(risk_ER.mean(-1))}
        return total, metrics

    def units(self, batch: Batch) -> float:
        return 1.0


def batch_race(seed: int, *, batch: int, width: int = 64, replicas: int = 48, slope: float = 1.0, even: bool = True) -> System:
    """Linear regression without label noise; input i has variance ∝ i^−slope, mean 1; `even`: as much to learn of each input, with random sign, else a
    normal number of each. Facts: `batch`, `noise_scale` from the gradients of 8192 rows at the start."""
    generator = torch.Generator().manual_seed(seed)
    spread_D = torch.arange(1.0, width + 1) ** -slope
    spread_D = spread_D / spread_D.mean()
    start_D = torch.randn(width, generator=generator) / width**0.5
    start_D = start_D.sign() / width**0.5 if even else start_D
    inputs_ND = torch.randn(8192, width, generator=generator) * spread_D.sqrt()
    trace, square = direct((inputs_ND @ start_D)[:, None] * inputs_ND)
    rates = tuple((torch.logspace(-1.9, 0.29, RATES) / spread_D.max()).tolist())
    loss = float((start_D.square() * spread_D).sum()) / 2

    def draw(made: torch.Generator) -> Batch:
        inputs_RBD = torch.randn(replicas, 2 * batch, width, generator=made) * spread_D.sqrt()
        return Batch(inputs_RBD, torch.ones(replicas, 2 * batch, dtype=torch.long))

    objective = Race(batch, spread_D, rates, 20 * loss)
    return System(Racers(start_D, replicas), objective, Drawn(draw, seed), {"batch": batch, "noise_scale": trace / square})
