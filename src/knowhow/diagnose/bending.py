"""How soon the features stop being linear in the weights: whether a fine-tune is a linear regression on what the base has, or makes something new.

Features are what the stack hands to the head, at every real token. f(θ + Δ) is held against f(θ) + JΔ; JΔ is a central difference, so any kernel will do.
Shape letters: N real tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from knowhow.diagnose.gradients import Gradients
from knowhow.diagnose.line import DISTANCES
from knowhow.diagnose.subject import Subject, measured
from knowhow.maths import hvp
from knowhow.model.loaded import without_adapter
from knowhow.types import Batch, Measurement

NEAR = 1e-2
"""Share of a whole training's way at which JΔ is differenced: float32 still tells the two sides apart there."""


@torch.no_grad()
def features_ND(model: torch.nn.Module, batches: Sequence[Batch]) -> torch.Tensor:
    stack = without_adapter(model).base_model
    seen = [stack(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long()).last_hidden_state[batch.mask_BT.bool()] for batch in batches]
    return torch.cat(seen).double()


@torch.no_grad()
def gaps(
    model: torch.nn.Module, weights: Sequence[torch.Tensor], way: Sequence[torch.Tensor], shares: Sequence[float], near: float, batches: Sequence[Batch]
) -> list[float]:
    """|f(θ + sΔ) − f(θ) − sJΔ| / |sJΔ| for each share s of the way Δ; JΔ is the central difference over ± `near` of it, off by about near²."""

    def at(share: float) -> torch.Tensor:
        with hvp.moved(weights, way, share):
            return features_ND(model, batches)

    slope_ND = (at(near) - at(-near)) / (2 * near)
    start_ND, size = features_ND(model, batches), float(slope_ND.norm())
    return [float((at(share) - start_ND - share * slope_ND).norm()) / max(share * size, 1e-30) for share in shares]


def along_signs(subject: Subject, found: Gradients) -> list[Measurement]:
    """The gap at each of DISTANCES along −sign(G), the direction of Adam's first step (site: the distance)."""
    batches = subject.fresh[:1]
    ways = [-part.sign() for part in found.mean.values()]
    values = gaps(subject.model, list(subject.trained().values()), ways, DISTANCES, DISTANCES[0], batches)
    return [measured(f"{d:.3g}", "bend", value, "share of the change", len(batches)) for d, value in zip(DISTANCES, values, strict=True)]


def between(before: torch.nn.Module, after: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """The gap over the whole way from one model to another that was trained from it; parameters that only one has (a head) are left out."""
    weights, ends = dict(before.named_parameters()), dict(after.named_parameters())
    shared = [name for name in weights if name in ends and weights[name].shape == ends[name].shape]
    ways = [ends[name].detach() - weights[name].detach() for name in shared]
    return gaps(before, [weights[name] for name in shared], ways, [1.0], NEAR, batches)[0]
