"""How a matrix spreads over its directions, and how heavy the tails of many numbers are. Pure functions.

Shape letters: O outputs, I inputs, R the smaller of the two, N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

HUGE = 1e15
"""Values whose squares float32 cannot hold are scaled before they are decomposed."""


@dataclass(frozen=True, slots=True)
class Spread:
    """`norm`: Frobenius; `stable_rank`: |W|²_F / |W|²_2 (Rudelson & Vershynin 2007); `effective_rank`: exp of the entropy of the singular values' shares
    (Roy & Vetterli 2007). Ranks of a zero matrix are 0."""

    norm: float
    stable_rank: float
    effective_rank: float


def spread(matrix_OI: torch.Tensor) -> Spread:
    """From all singular values in float32. A matrix with values that are no numbers gives NaN."""
    matrix_OI = matrix_OI.detach().float()
    if not bool(torch.isfinite(matrix_OI).all()):
        return Spread(float("nan"), float("nan"), float("nan"))
    largest = float(matrix_OI.abs().max())
    scale = largest if largest > HUGE else 1.0
    values_R = torch.linalg.svdvals(matrix_OI / scale)
    if not float(values_R[0]) > 0:
        return Spread(0.0, 0.0, 0.0)
    shares_R = values_R.double() / values_R.double().sum()
    entropy = -torch.special.xlogy(shares_R, shares_R).sum()
    return Spread(scale * float(values_R.norm()), float((values_R.norm() / values_R[0]) ** 2), float(entropy.exp()))


def kurtosis(values: torch.Tensor) -> float:
    """Fourth central moment ÷ squared variance over all numbers (3: normal); NaN where they are all the same."""
    values_N = values.detach().double().flatten()
    centred_N = values_N - values_N.mean()
    variance = centred_N.square().mean()
    return float((centred_N**4).mean() / variance**2) if float(variance) > 0 else float("nan")


def participation(energies: torch.Tensor) -> torch.Tensor:
    """(Σe)² / (n Σe²) along the last axis: the share of the n places over which a sum of non-negative energies is spread (1: evenly; 1/n: one has all;
    0: there is none)."""
    energies = energies.double()
    total, squares = energies.sum(-1), energies.square().sum(-1)
    return total.square() / (energies.shape[-1] * squares).clamp(min=1e-300) * (squares > 0)
