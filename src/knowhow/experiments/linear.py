"""Linear networks and linear attention, whose whole training can be solved on paper.

Shape letters: B rows, D inputs (and outputs), R hidden width, H heads, N examples in context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.experiments.system import Drawn, MeanSquare, System, fixed, numbers
from knowhow.types import Batch, Measurement

Tensor = torch.Tensor
STRENGTHS = (3.0, 2.4, 1.9, 1.5, 1.2, 1.0)
"""Singular values of the map that a deep linear network has to learn."""


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix with orthonormal columns, float64; rows ≥ columns."""
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator))[0]


def stack(matrices: Sequence[Tensor]) -> torch.nn.Sequential:
    """Linear layers without bias that hold `matrices` (out, in), first layer first, in float64."""
    layers = []
    for matrix in matrices:
        layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data.copy_(matrix)
        layers.append(layer)
    return torch.nn.Sequential(*layers)


def deep_linear(
    seed: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    layers: int = 2,
    width: int | None = None,
    start: float = 1e-3,
    aligned: bool = True,
    spread: float = 0.0,
) -> System:
    """A linear network of one or two layers on whitened inputs whose targets are a linear map with singular values `strengths`: L = ½|W − M|².

    `aligned`: the weights start on the map's own singular vectors, every mode at `start`, both layers alike; else they are normal numbers of standard
    deviation `start`, with `width` hidden units (None: as many as modes). `spread`: log-range of the inputs' variances (0: whitened). Facts: `aligned`,
    `curvature` (∂²L/∂W², 1), `overlap`: largest |cosine| of two modes' hidden directions W₁v + W₂ᵀu. Sites mode.1 …, strongest first: `strength` s,
    `start` u₀ (unaligned: |W₁v + W₂ᵀu|²/4, the part that grows)."""
    generator = torch.Generator().manual_seed(seed)
    size = len(strengths)
    left_DD, right_DD = orthogonal(size, size, generator), orthogonal(size, size, generator)
    map_DD = left_DD @ torch.diag(torch.tensor(strengths, dtype=torch.float64)) @ right_DD.T
    inputs_BD = math.sqrt(2 * size) * orthogonal(2 * size, size, generator) * torch.exp(torch.linspace(-spread / 4, spread / 4, size, dtype=torch.float64))
    shapes = [(size, size)] if layers == 1 else [(width or size, size), (size, width or size)]
    weights = [start * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    if aligned:
        weights = [start * left_DD @ right_DD.T] if layers == 1 else [math.sqrt(start) * right_DD.T, math.sqrt(start) * left_DD]
    if layers == 1:
        begun, overlap = (left_DD.T @ weights[0] @ right_DD).diagonal().tolist(), 0.0
    else:
        growing_RD = weights[0] @ right_DD + weights[1].T @ left_DD
        begun = (growing_RD.square().sum(0) / 4).tolist()
        overlap = _overlap(growing_RD)
    sites = [
        Measurement(f"mode.{k + 1}", metric, float(value), "", 1)
        for k, both in enumerate(zip(strengths, begun, strict=True))
        for metric, value in zip(("strength", "start"), both, strict=True)
    ]
    batches = fixed(numbers(inputs_BD, inputs_BD @ map_DD.T))
    return System(stack(weights), MeanSquare(), batches, {"aligned": float(aligned), "curvature": 1.0, "overlap": overlap}, sites)


def _overlap(directions_RD: Tensor) -> float:
    """Largest |cosine| between two columns."""
    unit_RD = directions_RD / directions_RD.norm(dim=0)
    return float((unit_RD.T @ unit_RD - torch.eye(unit_RD.shape[1], dtype=unit_RD.dtype)).abs().max())


class LinearAttention(torch.nn.Module):
    """Linear attention that regresses in context: ŷ = β·M x with β = 1/N Σ yₙxₙ and M = Σ_heads value · key queryᵀ. `merged`: each head holds one
    matrix DD for key and query together; else a key D and a query D of its own."""

    def __init__(self, heads: int, size: int, start: float, generator: torch.Generator, *, merged: bool = False) -> None:
        super().__init__()

        def drawn(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(start * torch.randn(*shape, dtype=torch.float64, generator=generator))

        self.value_H = drawn(heads)
        self.keys_HD = torch.nn.ParameterList([drawn(heads, size, size)] if merged else [drawn(heads, size), drawn(heads, size)])

    def matrix(self) -> Tensor:
        """M, DD."""
        if len(self.keys_HD) == 1:
            return torch.tensordot(self.value_H, self.keys_HD[0], dims=1)
        return (self.value_H[:, None] * self.keys_HD[0]).T @ self.keys_HD[1]

    def forward(self, rows_BND: Tensor) -> Tensor:
        """ŷ of the last position, B. Rows hold N examples (x, y) and then (x, 0)."""
        examples_BND, asked_BD = rows_BND[:, :-1], rows_BND[:, -1, :-1]
        beta_BD = (examples_BND[..., :-1] * examples_BND[..., -1:]).mean(1)
        return ((beta_BD @ self.matrix()) * asked_BD).sum(-1)


@dataclass(frozen=True)
class InContext:
    """(ŷ − y)² summed over rows, or (`exact`) its expectation over all rows there are; metric `risk`: that expectation.

    x ~ N(0, Λ), w ~ N(0, 1), y = w·x: E(y − ŷ)² = trΛ − 2 tr(ΛMΛ) + tr(E[S²] M Λ Mᵀ), S = 1/N Σ xxᵀ, E[S²] = Λ² + (Λ² + Λ trΛ)/N."""

    eigenvalues_D: Tensor
    context: int
    exact: bool = True
    name: str = "in-context"

    def risk(self, model: torch.nn.Module) -> Tensor:
        spread_D, matrix_DD = self.eigenvalues_D, model.matrix()  # type: ignore[operator]
        second_D = spread_D**2 + (spread_D**2 + spread_D * spread_D.sum()) / self.context
        return spread_D.sum() - 2 * torch.dot(spread_D**2, matrix_DD.diagonal()) + torch.dot(second_D, matrix_DD.square() @ spread_D)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        units = self.units(batch)
        if self.exact:
            loss = units * self.risk(model)
            return loss, {"risk": loss.detach()}
        with torch.no_grad():
            risk = units * self.risk(model)
        return (model(batch.tokens_BT) - batch.labels).square().sum(), {"risk": risk}

    def units(self, batch: Batch) -> float:
        return float(len(batch.tokens_BT))


def in_context_regression(
    seed: int,
    *,
    eigenvalues: Sequence[float] = (1.0667, 0.5333, 0.2667, 0.1333),
    context: int = 31,
    heads: int = 8,
    start: float = 0.05,
    merged: bool = False,
    rows: int = 0,
) -> System:
    """Linear attention on regressions in context. `rows`: fresh sequences a step; 0: the expectation over all of them, exactly. Facts: `context` N,
    `sampled`.
    Sites direction.1 … : `eigenvalue`."""
    eigenvalues_D = torch.tensor(eigenvalues, dtype=torch.float64)
    model = LinearAttention(heads, len(eigenvalues), start, torch.Generator().manual_seed(seed), merged=merged)

    def draw(generator: torch.Generator) -> Batch:
        inputs_BND = torch.randn(rows, context + 1, len(eigenvalues), dtype=torch.float64, generator=generator) * eigenvalues_D.sqrt()
        answers_BN = torch.einsum("bnd,bd->bn", inputs_BND, torch.randn(rows, len(eigenvalues), dtype=torch.float64, generator=generator))
        shown_BN = torch.cat([answers_BN[:, :-1], torch.zeros(rows, 1, dtype=torch.float64)], 1)
        return numbers(torch.cat([inputs_BND, shown_BN[..., None]], -1), answers_BN[:, -1])

    nothing = numbers(torch.zeros(1, context + 1, len(eigenvalues) + 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    sites = [Measurement(f"direction.{k + 1}", "eigenvalue", float(value), "", 1) for k, value in enumerate(eigenvalues)]
    batches = Drawn(draw, seed) if rows else fixed(nothing)
    return System(model, InContext(eigenvalues_D, context, exact=not rows), batches, {"context": float(context), "sampled": float(bool(rows))}, sites)
