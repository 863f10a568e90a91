"""How weights turn and how long they are: what laws/rotational_equilibrium.py reads.

For all decayed parameters together: their length `rotation.length` |W| after the update and `rotation.pull`, the share ηλ that decay takes off in the step
(neither needs an earlier look, so that a run that was stopped goes on with the same rows). For each parameter named in `sites`, root mean squares over its
rows after the update:
`rotation.<site>.norm`, `rotation.<site>.angle` (radians between a row before and after the step), `rotation.<site>.radial` (|cosine| of a row and its
gradient: 0 where scale does not matter) and, from the second look on, `rotation.<site>.signal`: the cosine of the gradients of this look and the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from knowhow.observe.looking import trained
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Rotation:
    """Satisfies Observer. `sites`: parameters (names) whose rows are followed. Cost: no passes; a few reductions of the weights."""

    name = "rotation"

    def __init__(self, due: When, sites: Sequence[str] = ()) -> None:
        self.due = due
        self._sites = tuple(sites)
        self._old: dict[str, torch.Tensor] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        self._row: dict[str, float] = {}
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        parameters = trained(info.model)
        self._row = {}
        for site in self._sites:
            weight, gradient = parameters[site].detach(), parameters[site].grad
            assert gradient is not None, f"{site} has no gradient"
            self._old[site] = weight.clone()
            gradient = gradient.detach().clone()
            cosine = _cosine(weight.double(), gradient.double())
            self._row[f"rotation.{site}.radial"] = float(cosine.square().mean().sqrt())
            if site in self._gradients:
                self._row[f"rotation.{site}.signal"] = float(_cosine(gradient.flatten().double(), self._gradients[site].flatten().double()))
            self._gradients[site] = gradient

    def after(self, info: StepInfo) -> None:
        parameters = trained(info.model)
        for site, old in self._old.items():
            new, old = parameters[site].detach().double(), old.double()
            sine = (new / new.norm(dim=-1, keepdim=True) - old / old.norm(dim=-1, keepdim=True)).norm(dim=-1) / 2
            self._row[f"rotation.{site}.angle"] = float((2 * sine.clamp(max=1).asin()).square().mean().sqrt())
            self._row[f"rotation.{site}.norm"] = float(new.norm(dim=-1).square().mean().sqrt())
        row = {"step": info.step, **self._row}
        if decayed := [rate.lr * rate.decay for rate in info.rates.values() if rate.decay]:
            row |= {"rotation.pull": max(decayed), "rotation.length": _length(info)}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def _length(info: StepInfo) -> float:
    """Euclidean length of all decayed parameters together."""
    named = trained(info.model)
    squares = [float(named[name].detach().double().square().sum()) for name, rate in info.rates.items() if rate.decay and name in named]
    return math.sqrt(sum(squares))


def _cosine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Along the last axis; 0 where either is zero."""
    return (left * right).sum(-1) / (left.norm(dim=-1) * right.norm(dim=-1)).clamp(min=1e-30)
