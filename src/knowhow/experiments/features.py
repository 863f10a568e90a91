"""More features than dimensions: the toy of Elhage 2022, which must rebuild sparse features from a narrow layer.

Shape letters: B batch, N features, M dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from knowhow.experiments.system import Drawn, System, numbers
from knowhow.types import Batch


class Toy(torch.nn.Module):
    """x ↦ ReLU(WᵀWx + b), W of shape MN: its columns are the features' directions; `rectified` False: without the ReLU."""

    def __init__(self, features: int, dims: int, *, rectified: bool = True) -> None:
        super().__init__()
        self._rectified = rectified
        self.weight = torch.nn.Parameter(torch.randn(dims, features) / features**0.5)
        self.bias = torch.nn.Parameter(torch.zeros(features))

    def forward(self, inputs_BN: torch.Tensor) -> torch.Tensor:
        outputs_BN = inputs_BN @ self.weight.T @ self.weight + self.bias
        return torch.relu(outputs_BN) if self._rectified else outputs_BN


@dataclass(frozen=True)
class Weighted:
    """Σ_i importance_i (x̂_i − x_i)² summed over rows, importance_i = `decay`^i."""

    decay: float
    name: str = "weighted-square"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        importance_N = self.decay ** torch.arange(batch.labels.shape[1], dtype=torch.float32)
        return (importance_N * (model(batch.tokens_BT) - batch.labels).square()).sum(), {}

    def units(self, batch: Batch) -> float:
        return float(len(batch.tokens_BT))


def sparse_features(
    seed: int, *, features: int = 5, dims: int = 2, probability: float = 0.05, decay: float = 1.0, rows: int = 1024, rectified: bool = True
) -> System:
    """Each feature is present with `probability`, then uniform on 0…1; new rows at every step. Facts: `features`, `dims`, `probability`, `importance_decay`."""
    torch.manual_seed(seed)
    model = Toy(features, dims, rectified=rectified)

    def draw(generator: torch.Generator) -> Batch:
        present_BN = torch.rand(rows, features, generator=generator) < probability
        inputs_BN = torch.rand(rows, features, generator=generator) * present_BN
        return numbers(inputs_BN, inputs_BN)

    facts = {"features": features, "dims": dims, "probability": probability, "importance_decay": decay}
    return System(model, Weighted(decay), Drawn(draw, seed), facts)
