"""How far a model of (a + b) mod p computes with waves of a + b − c, and how far it only remembers the pairs it was shown.

What laws/grokking.py reads: `fourier.explained` (share of the centred logits' variance that Σ_k α_k cos(2πk(a+b−c)/p) takes), `fourier.difference` (the same
for a−b−c), `fourier.seen` and `fourier.unseen` (accuracy on the step's batch, by its labels, and on all other pairs, by the sum), `fourier.single` (median
over hidden units of the share of a unit's power at one frequency), `fourier.norm` (sum of squared weights). Shape letters: N = p² pairs, P = p answers, K =
(p−1)/2 frequencies, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from knowhow.observe.looking import trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Fourier:
    """Satisfies Observer. `prime`: p. Cost: one pass over the p² pairs."""

    name = "fourier"

    def __init__(self, due: When, prime: int) -> None:
        self.due = due
        self._prime = prime
        self._pairs_N2 = torch.cartesian_prod(torch.arange(prime), torch.arange(prime))
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        left_N, right_N = self._pairs_N2.T
        with unnoticed(info.model), torch.inference_mode():
            logits_NP = info.model(self._pairs_N2).float()
        shown, labels = info.batches[0].tokens_BT, info.batches[0].labels
        seen_N = torch.zeros(len(self._pairs_N2), dtype=torch.bool)
        seen_N[shown[:, 0] * self._prime + shown[:, 1]] = True
        answers_N = (left_N + right_N) % self._prime
        answers_N[shown[:, 0] * self._prime + shown[:, 1]] = labels.argmax(1) if labels.ndim == 2 else labels
        right = (logits_NP.argmax(1) == answers_N).float()
        tables = [module.weight.detach() for module in info.model.modules() if isinstance(module, torch.nn.Embedding)]
        row = {
            "fourier.explained": float(waves(logits_NP, left_N + right_N).sum()),
            "fourier.difference": float(waves(logits_NP, left_N - right_N).sum()),
            "fourier.seen": float(right[seen_N].mean()),
            "fourier.unseen": float(right[~seen_N].mean()),
            "fourier.single": float(torch.cat([one_frequency(table_PH) for table_PH in tables]).median()),
            "fourier.norm": sum(float(p.detach().square().sum()) for p in trained(info.model).values()),
        }
        self._rows.append({"step": info.step, **row})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def waves(logits_NP: torch.Tensor, phase_N: torch.Tensor) -> torch.Tensor:
    """Share of the variance of the logits, centred over answers, along cos(2πk(phase − c)/p), for each k = 1 … (p−1)/2: K, summing to at most 1.

    The K directions are orthogonal and each has squared length N·p/2, so a share is ⟨L, wave⟩² / (N p/2 · |L|²)."""
    N, P = logits_NP.shape
    centred_NP = logits_NP - logits_NP.mean(1, keepdim=True)
    offset_NP = (phase_N[:, None] - torch.arange(P)) % P
    sums_P = torch.zeros(P).index_add_(0, offset_NP.flatten(), centred_NP.flatten())
    cosine_KP = torch.cos(2 * math.pi / P * torch.arange(1, (P - 1) // 2 + 1)[:, None] * torch.arange(P))
    share_K: torch.Tensor = (cosine_KP @ sums_P).square() / (N * P / 2) / centred_NP.square().sum().clamp(min=1e-12)
    return share_K


def one_frequency(table_PH: torch.Tensor) -> torch.Tensor:
    """For each hidden unit, the largest share of its power (as a function of the number, without its mean) at one frequency: H."""
    power_KH = torch.fft.rfft(table_PH, dim=0)[1:].abs().square()
    share_H: torch.Tensor = power_KH.amax(0) / power_KH.sum(0).clamp(min=1e-12)
    return share_H
