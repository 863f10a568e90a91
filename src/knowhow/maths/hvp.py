"""Curvature along directions: Hessian-vector products, exact and by differences, and Lanczos on top of them.

Vectors of weights are lists of tensors shaped like the parameters, or flat. Shape letters: P parameters, K Lanczos steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Tensor = torch.Tensor
Loss = Callable[[], Tensor]


def gradient(loss: Loss, parameters: Sequence[Tensor]) -> list[Tensor]:
    """∇L per parameter; zeros where the loss does not depend on one. `.grad` is left alone."""
    with torch.enable_grad():
        found = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Σ left·right in float64."""
    return float(sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)))


def exact(loss: Loss, parameters: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """H·direction by differentiating the gradient (Pearlmutter 1994). Needs a loss that can be differentiated twice."""
    with torch.enable_grad():
        first = torch.autograd.grad(loss(), list(parameters), create_graph=True, allow_unused=True)
        along = sum((g * d).sum() for g, d in zip(first, direction, strict=True) if g is not None)
        second = torch.autograd.grad(along, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, second, strict=True)]


def differenced(loss: Loss, parameters: Sequence[Tensor], direction: Sequence[Tensor], *, step: float) -> list[Tensor]:
    """H·direction = (∇L(θ + step·d) − ∇L(θ − step·d)) / 2·step, error O(step²): for losses whose kernels have no second derivative.

    The weights are moved and put back to the bit. In float32 take `step` so that the two gradients differ by more than 1e-4 of their size."""
    ends = []
    for sign in (1, -1):
        with moved(parameters, direction, sign * step):
            ends.append(gradient(loss, parameters))
    return [(up - down) / (2 * step) for up, down in zip(*ends, strict=True)]


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> Iterator[None]:
    """Weights at θ + step·direction inside; exactly the old ones afterwards, whatever happens."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


@contextmanager
def placed(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Weights at `values` inside; exactly the old ones afterwards, whatever happens."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, value in zip(parameters, values, strict=True):
                p.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


def lanczos(product: Callable[[Tensor], Tensor], start_P: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Ritz values K (ascending) of a symmetric operator on flat vectors, and the weight K that each has in `start_P` (Lanczos 1950, with full
    reorthogonalisation, K·P numbers held). The largest and smallest are eigenvalues to good accuracy after some tens of steps; the weights give the
    spectral density (Ubaru 2017). Stops early where the Krylov space is exhausted."""
    basis = [start_P / start_P.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    for k in range(min(steps, start_P.numel())):
        image = product(basis[-1])
        alphas.append(float(image @ basis[-1]))
        for _ in range(2):
            held_KP = torch.stack(basis)
            image = image - held_KP.T @ (held_KP @ image)
        size = float(image.norm())
        if k + 1 == steps or size < 1e-6 * max(map(abs, alphas)):
            break
        betas.append(size)
        basis.append(image / size)
    small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    off = torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64)
    small = small + torch.diag(off, 1) + torch.diag(off, -1)
    values_K, vectors_KK = torch.linalg.eigh(small)
    return values_K, vectors_KK[0] ** 2


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def like(vector_P: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors shaped like `parts`."""
    return [piece.view_as(part) for piece, part in zip(vector_P.split([part.numel() for part in parts]), parts, strict=True)]
