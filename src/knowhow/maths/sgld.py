"""Langevin sampling of weights round a point, and the local learning coefficient from it.

Shape letters: K chains, P weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Losses = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Weights KP → loss K and its gradient KP, per row."""


@dataclass(frozen=True, slots=True)
class Langevin:
    """`n`: rows that the posterior stands for; `beta`: inverse temperature (None: 1/ln n, Watanabe 2013); `step` ε; `localisation` γ: precision of the
    Gaussian that ties chains to where they start; `burn` steps are thrown away, `draws` kept, in each of `chains`."""

    n: float
    step: float
    localisation: float = 1.0
    beta: float | None = None
    chains: int = 8
    burn: int = 500
    draws: int = 1000

    @property
    def temperature(self) -> float:
        """nβ."""
        return self.n * (1 / math.log(self.n) if self.beta is None else self.beta)


def sampled(losses: Losses, start_P: torch.Tensor, spec: Langevin, generator: torch.Generator) -> torch.Tensor:
    """Mean loss K of each chain over its draws from exp(−nβ L(w) − ½γ|w − w*|²): w ← w − ½ε(nβ∇L + γ(w − w*)) + √ε·noise (Welling and Teh 2011; with
    the gradient of all rows nothing is stochastic but the noise). A quadratic direction of curvature h is sampled 1/(1 − ¼ε nβ h) too wide.

    Raises FloatingPointError when a chain leaves for infinity (the step is too large)."""
    weights_KP = start_P.repeat(spec.chains, 1)
    total_K = torch.zeros(spec.chains, dtype=torch.float64)
    for step in range(spec.burn + spec.draws):
        loss_K, gradient_KP = losses(weights_KP)
        if step >= spec.burn:
            total_K += loss_K.double().cpu()
        drift_KP = spec.temperature * gradient_KP + spec.localisation * (weights_KP - start_P)
        noise_KP = torch.randn(weights_KP.shape, generator=generator).to(weights_KP)
        weights_KP = weights_KP - spec.step / 2 * drift_KP + math.sqrt(spec.step) * noise_KP
    if not bool(torch.isfinite(total_K).all()):
        raise FloatingPointError(f"a chain left for infinity at step size {spec.step}")
    return total_K / spec.draws


def learning_coefficient(losses: Losses, start_P: torch.Tensor, spec: Langevin, generator: torch.Generator) -> tuple[float, float]:
    """λ̂ = nβ(E[L] − L(w*)) (Lau 2023, eq. 5 after Watanabe's WBIC) and the standard error of its mean over chains."""
    found_K = spec.temperature * (sampled(losses, start_P, spec, generator) - losses(start_P[None])[0].double().cpu())
    return float(found_K.mean()), float(found_K.std() / math.sqrt(spec.chains))
