"""The directions that features have in a narrow layer: their lengths and the cosines of all pairs.

What laws/superposition.py reads: `superposition.norm.I` and `superposition.cosine.I.J` (I < J), for a handful of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from knowhow.observe.when import When
from knowhow.types import StepInfo


class Superposition:
    """Satisfies Observer. `weight`: the parameter MN whose columns are directions. Raises KeyError when the model has none of that name."""

    name = "superposition"

    def __init__(self, due: When, weight: str = "weight") -> None:
        self.due = due
        self._weight = weight
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        weight_MN = dict(info.model.named_parameters())[self._weight].detach().double()
        norms_N = weight_MN.norm(dim=0)
        units_MN = weight_MN / norms_N.clamp(min=1e-12)
        cosines_NN = units_MN.T @ units_MN
        row: dict[str, float] = {"step": info.step} | {f"superposition.norm.{i}": float(norm) for i, norm in enumerate(norms_N)}
        for i in range(len(norms_N)):
            row |= {f"superposition.cosine.{i}.{j}": float(cosines_NN[i, j]) for j in range(i + 1, len(norms_N))}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
