"""How far two subspaces lie in each other.

Shape letters: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import torch


def leading(matrix_OI: torch.Tensor, rank: int) -> torch.Tensor:
    """The `rank` leading left singular vectors OR, float64."""
    left_OK: torch.Tensor = torch.linalg.svd(matrix_OI.double(), full_matrices=False)[0]
    return left_OK[:, :rank]


def overlap(columns_OR: torch.Tensor, basis_OR: torch.Tensor) -> float:
    """|QᵀU|²_F / rank: the share of the span of `columns_OR` that lies in the span of the orthonormal `basis_OR` (the mean squared cosine of the
    principal angles, Björck & Golub 1973). 1 for the same space, R / O on average for a random one, 0 for no columns."""
    left_OK, values_K, _ = torch.linalg.svd(columns_OR.double(), full_matrices=False)
    span = left_OK[:, values_K > 1e-7 * values_K.max().clamp(min=1e-300)]
    return float((span.T @ basis_OR).square().sum() / span.shape[1]) if span.shape[1] else 0.0
