"""Regressions whose learning coefficient is known: linear (regular) and reduced rank (singular). Targets have no noise, so the truth is a minimum at zero.

Shape letters: N rows, M inputs, H hidden, O outputs.
"""

from __future__ import annotations

import torch

from knowhow.experiments.system import MeanSquare, System, fixed, numbers


def white(rows: int, inputs: int, generator: torch.Generator) -> torch.Tensor:
    """Inputs NM whose second moments are those of infinitely many normal rows: XᵀX/N = 1 exactly."""
    return torch.linalg.qr(torch.randn(rows, inputs, generator=generator))[0] * rows**0.5


def reduced_rank(seed: int, *, inputs: int = 5, outputs: int = 5, hidden: int = 5, true_rank: int = 2, rows: int = 32, scale: float = 0.05) -> System:
    """Two linear layers from weights of size `scale` on targets of rank `true_rank` with singular values 1. Loss: ½ squared error a row, the negative log
    likelihood under noise of variance 1. Facts: `inputs`, `outputs`, `hidden`, `true_rank`, `weights`."""
    generator = torch.Generator().manual_seed(seed)
    left_OR = torch.linalg.qr(torch.randn(outputs, true_rank, generator=generator))[0]
    right_MR = torch.linalg.qr(torch.randn(inputs, true_rank, generator=generator))[0]
    rows_NM = white(rows, inputs, generator)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(inputs, hidden, bias=False), torch.nn.Linear(hidden, outputs, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, scale)
    facts = {"inputs": inputs, "outputs": outputs, "hidden": hidden, "true_rank": true_rank, "weights": hidden * (inputs + outputs)}
    return System(model, MeanSquare(), fixed(numbers(rows_NM, rows_NM @ right_MR @ left_OR.T)), facts)


def linear(seed: int, *, inputs: int = 20, rows: int = 32) -> System:
    """One linear map to a number. Facts: `regular_weights`, the number of weights of a model in which each can be told."""
    generator = torch.Generator().manual_seed(seed)
    rows_NM = white(rows, inputs, generator)
    truth_M1 = torch.randn(inputs, 1, generator=generator) / inputs**0.5
    torch.manual_seed(seed)
    return System(torch.nn.Linear(inputs, 1, bias=False), MeanSquare(), fixed(numbers(rows_NM, rows_NM @ truth_M1)), {"regular_weights": inputs})
