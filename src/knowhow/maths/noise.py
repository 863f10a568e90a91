"""The gradient's noise scale B = tr Σ / |G|², from single gradients and from batches of two sizes (McCandlish et al. 2018, appendix A.1).

Shape letters: N rows, P parameters.
"""

from __future__ import annotations

import torch


def direct(gradients_NP: torch.Tensor) -> tuple[float, float]:
    """(tr Σ, |G|²), both unbiased, of the gradients of N ≥ 2 independent rows: the scatter about their mean, and the mean's square less its noise."""
    rows = len(gradients_NP)
    mean_P = gradients_NP.double().mean(0)
    trace = float((gradients_NP.double() - mean_P).square().sum()) / (rows - 1)
    return trace, float(mean_P.square().sum()) - trace / rows


def two_batch(small: float, large: float, sizes: tuple[float, float]) -> tuple[float, float]:
    """(tr Σ, |G|²), unbiased, from E|G_b|² = |G|² + tr Σ/b at two batch sizes (small one first)."""
    few, many = sizes
    return (small - large) / (1 / few - 1 / many), (many * large - few * small) / (many - few)
