"""A linear reader fitted to the bottom: logistic for a class or for many labels, least squares for a number.

Shape letters: N rows, D features, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Answer = Literal["one", "many", "number"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Outputs = features · weight_CDᵀ + bias_C."""

    weight_CD: torch.Tensor
    bias_C: torch.Tensor

    def __call__(self, features_ND: torch.Tensor) -> torch.Tensor:
        return features_ND.to(self.weight_CD) @ self.weight_CD.T + self.bias_C


def loss_of(outputs_NC: torch.Tensor, labels: torch.Tensor, kind: Answer) -> torch.Tensor:
    """Mean over rows, in nats: cross-entropy; binary cross-entropy averaged over labels; or half the squared error. `labels`: index N or shares NC (one),
    0/1 NC (many), number N."""
    if kind == "number":
        return (outputs_NC[:, 0] - labels.to(outputs_NC)).square().mean() / 2
    if kind == "many":
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs_NC, labels.to(outputs_NC))
    targets = labels.long() if labels.ndim == 1 else labels.to(outputs_NC)
    return torch.nn.functional.cross_entropy(outputs_NC, targets)


def score_of(outputs_NC: torch.Tensor, labels: torch.Tensor, kind: Answer) -> float:
    """Share of right answers (one), of right labels (many), or the share of variance explained (number)."""
    if kind == "number":
        gold_N = labels.to(outputs_NC)
        return float(1 - (outputs_NC[:, 0] - gold_N).square().sum() / (gold_N - gold_N.mean()).square().sum().clamp(min=1e-12))
    if kind == "many":
        return float(((outputs_NC > 0) == (labels > 0.5)).double().mean())
    gold_N = labels if labels.ndim == 1 else labels.argmax(-1)
    return float((outputs_NC.argmax(-1) == gold_N).double().mean())


def fit(features_ND: torch.Tensor, labels: torch.Tensor, kind: Answer, outputs: int, *, penalty: float = 1e-3, bias: bool = True, steps: int = 50) -> Reader:
    """Minimises the mean loss + penalty/2 · |weight of standardised features|² by L-BFGS in float64. Without `bias` features are scaled, not centred."""
    values_ND = features_ND.detach().double()
    mean_D = values_ND.mean(0) if bias else torch.zeros(values_ND.shape[1], dtype=torch.float64)
    scale_D = (values_ND - mean_D).square().mean(0).sqrt()
    scale_D = torch.where(scale_D > 1e-8, scale_D, torch.ones_like(scale_D))
    ready_ND = (values_ND - mean_D) / scale_D
    weight_CD = torch.zeros(outputs, values_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(outputs, dtype=torch.float64, requires_grad=bias)
    search = torch.optim.LBFGS(
        [weight_CD, bias_C] if bias else [weight_CD],
        max_iter=steps,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = loss_of(ready_ND @ weight_CD.T + bias_C, labels, kind) + penalty / 2 * weight_CD.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    own_CD = (weight_CD / scale_D).detach()
    return Reader(own_CD, (bias_C - own_CD @ mean_D).detach())
