"""A model replaced by its first-order expansion in the weights, and how soon the second order is felt.

Weights and directions are dicts by parameter name. Shape letters: B batch, C outputs (any trailing shape).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.func import functional_call, jvp

Weights = dict[str, torch.Tensor]


def outputs(found: Any) -> torch.Tensor:
    """The numbers that a loss reads: what a plain net returns, or the logits of a language model."""
    logits: torch.Tensor = found if isinstance(found, torch.Tensor) else found.logits
    return logits


def like(found: Any, numbers: torch.Tensor) -> Any:
    """`numbers` in the form in which a model returned `found`."""
    return numbers if isinstance(found, torch.Tensor) else SimpleNamespace(logits=numbers)


def along_tangent(call: Callable[[Weights], torch.Tensor], at: Weights, along: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """(call(at), its derivative along `along`)."""
    with warnings.catch_warnings():
        # torch's own forward mode compiles some derivatives at its first use by a function that torch deprecates
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        value, tangent = jvp(call, (at,), (along,))
    return value, tangent


class Linearised(torch.nn.Module):
    """f(θ₀) + J(θ₀)Δ, with Δ by parameter name; differentiable in Δ, and called as the model is: with its inputs alone. The parameters not named in
    `start` stay what they are."""

    def __init__(self, model: torch.nn.Module, start: Mapping[str, torch.Tensor], moved: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.start, self.moved = [model], dict(start), dict(moved)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        model, form = self.inner[0], []

        def called(weights: Weights) -> torch.Tensor:
            form.append(_call(model, weights, input_ids))
            return outputs(form[-1])

        base, along = along_tangent(called, self.start, self.moved)
        return like(form[-1], base + along)


class Given(torch.nn.Module):
    """Answers whatever it is asked with the numbers it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return self.answer


def _call(model: torch.nn.Module, weights: Weights, inputs: torch.Tensor) -> Any:
    return functional_call(model, weights, (inputs,))


@dataclass(frozen=True, slots=True)
class Bend:
    """`drift`: relative gap per unit of Ση, to lowest order, between the function that gradient descent reaches and the one that its linearisation
    reaches; `pace`: by how much per unit of Ση the gradient's own direction is used up, gᵀJᵀℓ″Jg / |g|²; `turn`: by how much the bending of the model
    turns the gradient, |Rg| / |g| with R = ℓ′·f″. All in 1/learning rate."""

    drift: float
    pace: float
    turn: float


def bend(call: Callable[[Weights], torch.Tensor], loss: Callable[[torch.Tensor], torch.Tensor], weights: Mapping[str, torch.Tensor]) -> Bend:
    """Where a model and its linearisation part, from the start alone. `call`: weights → outputs; `loss`: outputs → mean loss.

    With g = ∇L, θ(T) = θ₀ − Tg + ½T²Hg: the outputs' second order is ½T²(f″[g,g] + J H g), the linear model's ½T² J H_GN g; H − H_GN = R = ℓ′·f″.
    So the gap is ½T²(f″[g,g] + J R g) beside a change T J g."""
    start = {name: value.detach() for name, value in weights.items()}
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    answer = call(free)
    leaf = answer.detach().requires_grad_()
    slope = torch.autograd.grad(loss(leaf), leaf)[0]
    gradient = dict(zip(free, torch.autograd.grad((answer * slope).sum(), list(free.values()), allow_unused=True, materialize_grads=True), strict=True))

    def first(at: Weights) -> torch.Tensor:
        along: torch.Tensor = along_tangent(call, at, gradient)[1]
        return along

    along, second = along_tangent(first, start, gradient)
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    turned = torch.autograd.grad((first(free) * slope).sum(), list(free.values()), allow_unused=True, materialize_grads=True)
    back = along_tangent(call, start, dict(zip(start, turned, strict=True)))[1]
    size = sum(float(part.square().sum()) for part in gradient.values())
    turn = (sum(float(part.square().sum()) for part in turned) / size) ** 0.5
    return Bend(float((second + back).norm() / 2 / along.norm()), _curvature(loss, leaf, along.detach()) / size, turn)


def _curvature(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, along: torch.Tensor) -> float:
    """alongᵀ ℓ″ along."""
    point = at.detach().requires_grad_()
    slope = torch.autograd.grad(loss(point), point, create_graph=True)[0]
    product = torch.autograd.grad((slope * along).sum(), point)[0]
    return float((product * along).sum())
