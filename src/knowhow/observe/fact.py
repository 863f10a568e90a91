"""How near each linear layer is to the stationarity that L2 asks for, read from the products of its weight with itself and with its gradient.

What laws/fact.py reads, per layer with weight W, gradient G = ∂L/∂W and decay λ: `fact.cosine:<layer>` of WᵀW and −WᵀG; `fact.error:<layer>`
|WᵀW + WᵀG/λ| ÷ |WᵀW| (where λ > 0); with `outputs` `fact.ansatz:<layer>` cosine of WᵀW and the square root of the average outer product of the model's
gradients by the layer's inputs. Shape letters: B rows, D a layer's inputs, O the model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo

Tensor = torch.Tensor


class Fact:
    """Satisfies Observer. `outputs`: the model gives BO for an input BD, and its gradients are averaged too (a backward pass an output). Reads the
    gradients of the step's batch before clipping; rows describe the weights before the update."""

    name = "fact"

    def __init__(self, due: When, *, outputs: bool = False) -> None:
        self.due = due
        self._outputs = outputs
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        layers = {name: module for name, module in info.model.named_modules() if isinstance(module, torch.nn.Linear) and module.weight.grad is not None}
        row: dict[str, float] = {"step": info.step}
        for name, layer in layers.items():
            weight, slope = layer.weight.detach().double(), layer.weight.grad
            assert slope is not None
            gram_DD, moved_DD = weight.T @ weight, -weight.T @ slope.double()
            row[f"fact.cosine:{name}"] = cosine(gram_DD, moved_DD)
            decay = info.rates[f"{name}.weight"].decay
            if decay:
                row[f"fact.error:{name}"] = float((gram_DD - moved_DD / decay).norm() / gram_DD.norm())
        if self._outputs:
            for name, outer_DD in outer_products(info.model, layers, info.batches[0].tokens_BT).items():
                weight = layers[name].weight.detach().double()
                row[f"fact.ansatz:{name}"] = cosine(weight.T @ weight, root(outer_DD))
        self._rows.append(row)

    def after(self, info: StepInfo) -> None:
        pass

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def cosine(left: Tensor, right: Tensor) -> float:
    """Of two matrices as vectors; nan where one is zero."""
    return float((left * right).sum() / (left.norm() * right.norm()))


def root(matrix_DD: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix."""
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD)
    return (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.T


def outer_products(model: torch.nn.Module, layers: Mapping[str, torch.nn.Linear], inputs_BD: Tensor) -> dict[str, Tensor]:
    """1/B Σ_rows Σ_outputs (∂f/∂h)(∂f/∂h)ᵀ by each layer's input h, DD in float64."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen[name] = given[0] if given[0].requires_grad else given[0].detach().requires_grad_()
            return (seen[name],)

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with unnoticed(model), torch.enable_grad():
            outputs_BO = model(inputs_BD)
            gradients = [torch.autograd.grad(outputs_BO[:, o].sum(), list(seen.values()), retain_graph=True) for o in range(outputs_BO.shape[1])]
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for place, name in enumerate(seen):
        slopes = [each[place].double() for each in gradients]
        found[name] = torch.stack([slope_BD.T @ slope_BD for slope_BD in slopes]).sum(0) / len(inputs_BD)
    return found
