"""Small multilayer perceptrons on rows of numbers that a few directions explain; the same rows at every step.

Shape letters: B rows, D inputs, K directions that matter, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch

from knowhow.experiments.system import MeanSquare, System, fixed, numbers

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "linear": torch.nn.Identity}


def layered(seed: int, sizes: Sequence[int], activation: Literal["tanh", "relu", "linear"], *, bias: bool = True) -> torch.nn.Sequential:
    """Linear layers of `sizes` (inputs first) with the activation between them, at torch's own start drawn from the seed."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for inner, outer in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(inner, outer, bias=bias), ACTIVATIONS[activation]()]
    return torch.nn.Sequential(*layers[:-1])


def several_indices(seed: int, rows: int, size: int, *, directions: int = 2, outputs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ N(0, 1) BD and targets BO = sums of sines of `directions` random unit projections of x, each output of unit size."""
    generator = torch.Generator().manual_seed(seed)
    inputs_BD = torch.randn(rows, size, generator=generator)
    seen_DK = torch.linalg.qr(torch.randn(size, directions, generator=generator))[0]
    mixed_KO = torch.randn(directions, outputs, generator=generator)
    targets_BO = torch.sin(2 * inputs_BD @ seen_DK) @ mixed_KO
    return inputs_BD, targets_BO / targets_BO.std(0)


def perceptron(
    seed: int,
    *,
    rows: int = 64,
    size: int = 10,
    hidden: Sequence[int] = (32, 32),
    outputs: int = 2,
    activation: Literal["tanh", "relu", "linear"] = "tanh",
) -> System:
    """A perceptron on a regression that two directions of its inputs explain, all rows at every step. Facts: `full_batch` (1), `rows`."""
    inputs_BD, targets_BO = several_indices(seed, rows, size, outputs=outputs)
    model = layered(seed, [size, *hidden, outputs], activation)
    return System(model, MeanSquare(), fixed(numbers(inputs_BD, targets_BO)), {"full_batch": 1.0, "rows": float(rows)})
