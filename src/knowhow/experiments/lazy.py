"""Models whose training is linear in the weights or not, as one number says: a net with scaled outputs, and a decoder that meets another chain.

Shape letters: B batch, D inputs, H hidden, C outputs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.func import functional_call

from knowhow.experiments.language import Language, chain, next_token, walks
from knowhow.experiments.lora import VOCAB, taught
from knowhow.experiments.system import MeanSquare, System, fixed, numbers
from knowhow.maths.kernel import Given, bend, like, outputs
from knowhow.protocols import Objective
from knowhow.types import Batch


class Scaled(torch.nn.Module):
    """α(h(x) − h₀(x)), h₀ the net at its start (Chizat 2019): outputs of the same size at any α, from weights that move by 1/α."""

    def __init__(self, inner: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.start = copy.deepcopy(inner).requires_grad_(False)

    def forward(self, inputs_BD: torch.Tensor) -> torch.Tensor:
        return self.scale * (self.inner(inputs_BD) - self.start(inputs_BD))


@dataclass(frozen=True)
class Relative:
    """½|f − y|²/α² summed over rows: with it the linear dynamics are the same at every α and the same learning rate."""

    scale: float
    name: str = "relative-square"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return MeanSquare()(model, batch)[0] / self.scale**2, {}

    def units(self, batch: Batch) -> float:
        return float(len(batch.tokens_BT))


def scaled_net(seed: int, *, scale: float, width: int = 8, hidden: int = 64, rows: int = 32) -> System:
    """A tanh net of two layers on a fixed batch of a teacher's outputs.

    Facts: `output_scale`, `kernel_drift`, `kernel_pace`, `kernel_turn` (maths/kernel.bend)."""
    torch.manual_seed(seed)
    inner = torch.nn.Sequential(torch.nn.Linear(width, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1))
    inputs_BD = torch.randn(rows, width)
    targets_B1 = torch.tanh(inputs_BD @ torch.randn(width, 3)).sum(-1, keepdim=True)
    return _known(Scaled(inner, scale), Relative(scale), numbers(inputs_BD, targets_B1), scale)


def lazy_decoder(seed: int, *, rows: int = 16, taught_steps: int = 100) -> System:
    """A small decoder that knows one chain, on a fixed batch of another. Facts as in `scaled_net`."""
    batch = next_token(walks(chain(seed + 500, VOCAB), rows, 25, torch.Generator().manual_seed(seed)))
    return _known(taught(seed, taught_steps), Language(), batch)


def _known(model: torch.nn.Module, objective: Objective, batch: Batch, scale: float = 1.0) -> System:
    found = model(batch.tokens_BT)

    def loss(numbers: torch.Tensor) -> torch.Tensor:
        return objective(Given(like(found, numbers)), batch)[0] / objective.units(batch)

    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    bent = bend(lambda at: outputs(functional_call(model, at, (batch.tokens_BT,))), loss, weights)
    return System(model, objective, fixed(batch), {"output_scale": scale, "kernel_drift": bent.drift, "kernel_pace": bent.pace, "kernel_turn": bent.turn})
