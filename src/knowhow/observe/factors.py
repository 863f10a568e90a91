"""The product of a model's matrices, and how its factors share it.

What laws/nuclear_norm.py reads: `factors.singular.k` of the product, largest first; `factors.nuclear` their sum; `factors.half_square` ½ Σ|W|² over the
factors; `factors.imbalance` |W₁W₁ᵀ − W₂ᵀW₂|, over neighbours. Shape letters: R hidden width, D inputs, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import reduce

import torch

from knowhow.observe.looking import trained
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Factors:
    """Satisfies Observer. `names`: the matrices (out, in) that are multiplied, the one that sees the input first (none named: all that are trained). The
    row of a step describes the weights before its update."""

    name = "factors"

    def __init__(self, due: When, names: Sequence[str] = ()) -> None:
        self.due = due
        self._names = tuple(names)
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        moving = trained(info.model)
        matrices = [moving[name].detach().double() for name in self._names or moving if moving[name].ndim == 2]
        singular = torch.linalg.svdvals(reduce(lambda product, matrix: matrix @ product, matrices)).tolist()
        row = {"step": info.step, "factors.nuclear": sum(singular)}
        row |= {f"factors.singular.{k + 1}": value for k, value in enumerate(singular)}
        row["factors.half_square"] = sum(float(matrix.square().sum()) for matrix in matrices) / 2
        gaps = [first @ first.T - second.T @ second for first, second in itertools.pairwise(matrices)]
        row["factors.imbalance"] = sum(float(gap.square().sum()) for gap in gaps) ** 0.5
        self._rows.append(row)

    def after(self, info: StepInfo) -> None:
        pass

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
