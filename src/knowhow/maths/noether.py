"""Charges of symmetries of a loss, and how one step of descent changes them, exactly.

Let a one-parameter group θ → e^{sM}θ leave the loss L alone whatever the data, M symmetric. Differentiating at s = 0 gives Noether's identity

    ∇L(θ)·Mθ = 0        at every θ, on every batch.                                              (1)

The charge is C = θᵀMθ. Along gradient flow dC/dt = −2 ∇L·Mθ = 0. One step θ' = (1−ηλ)θ − ηg, g any mixture of such gradients at θ (microbatches,
clipped or not), has

    C' = (1−ηλ)²C − 2η(1−ηλ) g·Mθ + η² g·Mg = (1−ηλ)²C + η² g·Mg,                               (2)

exact at any learning rate, since the middle term is (1). An antisymmetric M (a rotation) has (1) but no charge, as θᵀMθ is 0.

For two factors A RN, B RP of which the loss sees S A and S⁻ᵀB alike (S any R × R matrix of a group), M is S on the left and −Sᵀ on the right, and all charges
together are the matrix AAᵀ − BBᵀ; where S must be diagonal, equal within sets of rows, they are its diagonal, summed over each set (`labels`).
A pair (A, None) is one factor that the loss does not see the size of: charges |A|² by set.

With momentum v' = μv + g + λθ, θ' = θ − ηv' (torch's SGD: decay inside the velocity) and ⟨x,y⟩ = xᵀMy:

    C' = C − 2η(μ⟨v,θ⟩ + λC) + η²⟨v',v'⟩,                                                         (3)

because ⟨v',θ⟩ = μ⟨v,θ⟩ + λC by (1). Put K = ⟨v,θ⟩, so K' = ⟨v',θ'⟩ = μK + λC − η⟨v',v'⟩. At λ = 0 the combination of weights and velocity

    Q = C − 2ημ/(1−μ) K        changes by        Q' − Q = η²(1+μ)/(1−μ) ⟨v',v'⟩                   (4)

only: what momentum conserves is Q, to second order in η, not C. A preconditioned step θ' = (1−ηλ)θ − ηu (AdamW, Muon) has

    C' = (1−ηλ)²C − 2η(1−ηλ)⟨u,θ⟩ + η²⟨u,u⟩,                                                      (5)

driven at first order in η, as u is not ∇L and (1) says nothing of it. What (1) still says with Adam's mean m' = β₁m + (1−β₁)g is, for D = √v̂ + ε and u =
m'/((1−β₁ᵗ) D),

    (1−β₁ᵗ) ⟨Du,θ⟩ = ⟨m',θ⟩ = β₁⟨m,θ⟩,                                                            (6)

the work of the preconditioned step is that of the old mean: 0 at β₁ = 0, where the drive is the spread of D alone.
Source: Kunin et al. 2021 (arXiv 2012.04728) and Du et al. 2018 (1806.00900) for flow; (2)–(6) follow from (1) as written.
Shape letters: R rows of a factor, N and P its columns, S sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor | None]
"""Left factor RN and right factor RP, or their gradients, velocities or steps; None: no right factor."""
Labels = Sequence[int] | None
"""Which set each row belongs to, R; None: the whole matrix."""


def product(x_RN: Tensor, y_RN: Tensor, labels: Labels) -> Tensor:
    """The symmetric part of x yᵀ, RR; with labels, its diagonal summed over sets, S."""
    if labels is None:
        both_RR = x_RN @ y_RN.T
        return (both_RR + both_RR.T) / 2
    sets, count = _sets(tuple(labels))
    rows_R = torch.einsum("rn,rn->r", x_RN, y_RN)
    return x_RN.new_zeros(count).index_add_(0, sets.to(x_RN.device), rows_R)


def halves(x: Pair, y: Pair, labels: Labels) -> Pair:
    """Both terms of ⟨x,y⟩, the left factors' and the right ones'."""
    return product(x[0], y[0], labels), None if x[1] is None or y[1] is None else product(x[1], y[1], labels)


def difference(terms: Pair) -> Tensor:
    return terms[0] if terms[1] is None else terms[0] - terms[1]


def charge(x: Pair, y: Pair, labels: Labels) -> Tensor:
    """⟨x,y⟩ = xᵀMy, RR or S: of weights with themselves the charge, of weights and gradients what (1) says is 0."""
    return difference(halves(x, y, labels))


def descended(weights: Pair, gradients: Pair, labels: Labels, rate: float, decay: float) -> Tensor:
    """Equation (2): the charge after a step of SGD."""
    return (1 - rate * decay) ** 2 * charge(weights, weights, labels) + rate**2 * charge(gradients, gradients, labels)


def with_velocity(weights: Pair, gradients: Pair, velocity: Pair, labels: Labels, rate: float, decay: float, momentum: float) -> Tensor:
    """Equation (3): the charge after a step of SGD with momentum; `velocity` is the one before the step."""
    new = combined((momentum, velocity), (1.0, gradients), (decay, weights))
    drive = momentum * charge(velocity, weights, labels) + decay * charge(weights, weights, labels)
    return charge(weights, weights, labels) - 2 * rate * drive + rate**2 * charge(new, new, labels)


def kept_by_momentum(weights: Pair, velocity: Pair, labels: Labels, rate: float, momentum: float) -> Tensor:
    """Q of equation (4), of weights and the velocity that brought them there."""
    return charge(weights, weights, labels) - 2 * rate * momentum / (1 - momentum) * charge(velocity, weights, labels)


def driven(weights: Pair, step: Pair, labels: Labels, rate: float, decay: float) -> Tensor:
    """Equation (5): the charge after θ' = (1−ηλ)θ − η·`step`, whatever made the step."""
    left = 1 - rate * decay
    return left**2 * charge(weights, weights, labels) - 2 * rate * left * charge(step, weights, labels) + rate**2 * charge(step, step, labels)


def combined(*terms: tuple[float, Pair]) -> Pair:
    """Σ number · pair."""
    left = torch.stack([number * pair[0] for number, pair in terms]).sum(0)
    rights = [number * pair[1] for number, pair in terms if pair[1] is not None]
    return left, torch.stack(rights).sum(0) if rights else None


def turnover(before: Pair, after: Pair, labels: Labels) -> float:
    """|ΔA| + |ΔB|: how far both halves of the charge moved, the measure of a residual; `before` are the weights that decay alone would have left, so that
    a decay larger than the step hides nothing. One factor alone has no second half to cancel, and its own change is what must vanish: there
    2|A||A' − A| by set, what a step of that length could have changed."""
    if before[1] is None or after[1] is None:
        return 2 * float((_sizes(before[0], labels) * _sizes(after[0] - before[0], labels)).norm())
    return spread(halves(before, before, labels), halves(after, after, labels))


def spread(first: Pair, second: Pair) -> float:
    """`turnover` of two factors from the terms of their charges."""
    return sum(float((new - old).norm()) for old, new in zip(first, second, strict=True) if old is not None and new is not None)


def unrounded(stored: Tensor, reached: Tensor, step: Tensor, eps: float) -> Tensor:
    """Weights as they were before they were rounded to their format, as far as rounding goes: `reached` where it is within eps (|stored| + 2|step|) of
    `stored`, moved that far towards it elsewhere. What is left of a residual after this is no matter of arithmetic."""
    slack = eps * (stored.abs() + 2 * step.abs())
    return stored - (stored - reached).clamp(-slack, slack)


def asymmetry(weights: Pair, gradients: Pair, labels: Labels) -> float:
    """How far equation (1) is from holding, 0 to 1 about: |⟨g,θ⟩| over the sizes of its two halves (one factor: over |g||θ| by set). NaN where the
    gradient has no part in it."""
    terms = halves(gradients, weights, labels)
    if terms[1] is None:
        scale = float((_sizes(weights[0], labels) * _sizes(gradients[0], labels)).norm())
    else:
        scale = float(terms[0].norm()) + float(terms[1].norm())
    return float(difference(terms).norm()) / scale if scale else float("nan")


def _sizes(x_RN: Tensor, labels: Labels) -> Tensor:
    """Frobenius norm by set (whole matrix: by row)."""
    squares_R = x_RN.square().sum(1)
    return (squares_R if labels is None else product(x_RN, x_RN, labels)).sqrt()


@cache
def _sets(labels: tuple[int, ...]) -> tuple[Tensor, int]:
    return torch.tensor(labels), max(labels) + 1
