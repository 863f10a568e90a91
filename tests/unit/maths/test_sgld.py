"""Langevin sampling against what is known of Gaussian and quartic wells."""

from __future__ import annotations

import math

import pytest
import torch

from knowhow.maths.sgld import Langevin, learning_coefficient, sampled


def quadratic(weights_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weights_KP.square().sum(1) / 2, weights_KP


def product(weights_KP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ab)²/2, whose learning coefficient is ½ with multiplicity 2."""
    both_K = weights_KP.prod(1)
    return both_K.square() / 2, both_K[:, None] * weights_KP.flip(1)


def test_a_regular_model_has_half_its_weights() -> None:
    spec = Langevin(1000, 0.1 / 145, 1e-3, chains=64, burn=200, draws=400)
    value, error = learning_coefficient(quadratic, torch.zeros(12), spec, torch.Generator().manual_seed(0))
    assert value == pytest.approx(6 / (1 - 0.1 / 4), abs=4 * error)
    assert error < 0.2


def test_a_large_step_samples_too_wide_as_the_formula_says() -> None:
    spec = Langevin(1000, 2 / 144.765, 0.0, chains=64, burn=50, draws=400)
    value, error = learning_coefficient(quadratic, torch.zeros(12), spec, torch.Generator().manual_seed(0))
    assert value == pytest.approx(6 / (1 - 2 / 4), abs=4 * error)


def test_a_singular_well_counts_less_than_its_weights() -> None:
    spec = Langevin(1000, 2e-3, 1.0, chains=64, burn=500, draws=1500)
    value, error = learning_coefficient(product, torch.zeros(2), spec, torch.Generator().manual_seed(0))
    assert 0.2 < value < 0.55
    assert error < 0.05


def test_the_same_seed_gives_the_same_and_a_wild_step_is_refused() -> None:
    spec = Langevin(100, 1e-3, chains=4, burn=5, draws=5)
    first, again = (sampled(quadratic, torch.ones(3), spec, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert spec.temperature == pytest.approx(100 / math.log(100))
    with pytest.raises(FloatingPointError, match="infinity"):
        sampled(quadratic, torch.ones(3), Langevin(1000, 1e3, chains=2, burn=0, draws=50), torch.Generator().manual_seed(1))
