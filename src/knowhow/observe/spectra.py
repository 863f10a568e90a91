"""Norm and ranks of every matrix that training moves: of the weights, of the step's gradient and of the step's update.

Columns `spectra.<site>.norm`, `.stable_rank`, `.effective_rank`, and the same behind `spectra.<site>.gradient.` and `spectra.<site>.update.`; sites are
parameter names without `model.` and `.weight`. Embeddings and the language-model head are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from knowhow.maths.spectra import spread
from knowhow.model.loaded import hidden_matrices, site_of
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Spectra:
    """Satisfies Observer. `parts`: of what; cost: one singular value decomposition per matrix and part."""

    name = "spectra"

    def __init__(self, due: When, parts: Sequence[str] = ("weights", "gradient", "update")) -> None:
        self.due = due
        self._parts = tuple(parts)
        self._rows: list[dict[str, float]] = []
        self._row: dict[str, float] = {}
        self._old: dict[str, torch.Tensor] = {}

    def before(self, info: StepInfo) -> None:
        self._row = {}
        named = hidden_matrices(info.model)
        if "gradient" in self._parts:
            for name, weight in named.items():
                if weight.grad is not None:
                    self._row |= _columns(f"{site_of(name)}.gradient", weight.grad)
        self._old = {name: weight.detach().clone() for name, weight in named.items()} if "update" in self._parts else {}

    def after(self, info: StepInfo) -> None:
        row = {"step": info.step, **self._row}
        for name, weight in hidden_matrices(info.model).items():
            if "weights" in self._parts:
                row |= _columns(site_of(name), weight)
            if name in self._old:
                row |= _columns(f"{site_of(name)}.update", weight.detach() - self._old[name])
        self._old = {}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def _columns(prefix: str, matrix: torch.Tensor) -> dict[str, float]:
    return {f"spectra.{prefix}.{metric}": value for metric, value in asdict(spread(matrix)).items()}
