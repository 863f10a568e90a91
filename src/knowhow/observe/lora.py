"""How LoRA's factors move from their start: what laws/lora_first_order.py reads.

Over all adapted modules together, after the update: `lora.time` Ση so far, `lora.plain` 1 where every factor moves by plain gradient descent,
`lora.length` |B − B₀|, `lora.cosine` of B − B₀ and −∂L/∂B at the first look, `lora.cosine_other` the same with the rows of A₀ exchanged,
`lora.predicted_gain` Ση·|∂L/∂B|² at the first look (nats), `lora.overlap` how far B's columns lie in the leading left singular space of the module's
own gradient, mean over modules; per module `lora.<module>.share` of |B − B₀|².
The charge C = AAᵀ − BᵀB against what its discrete law says of it, |C − C predicted| / |(ΔAAᵀ, ΔBᵀB)| with all modules stacked, Δ what gradients did
beyond decay: `lora.charge`; `lora.charge_flow` with the flow's law, `lora.charge_sum` with AAᵀ + BᵀB in its stead.
Those need every step: they stop at a step that was not looked at.

Shape letters: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.maths.subspaces import leading, overlap
from knowhow.observe.looking import trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo


@dataclass(slots=True)
class Pair:
    """One module's factors: names of its parameters, AAᵀ and BᵀB as decay alone would leave them, start, first gradient, the leading left singular space of its
    layer's own gradient, charges as predicted so far (float64)."""

    a: str
    b: str
    squares: tuple[torch.Tensor, torch.Tensor]
    start_OR: torch.Tensor
    gradient_OR: torch.Tensor
    leading_OR: torch.Tensor
    charges: dict[str, torch.Tensor]


class Lora:
    """Satisfies Observer. Cost: at its first look one pass over the batch; then products of the factors."""

    name = "lora"

    def __init__(self, due: When) -> None:
        self.due = due
        self._pairs: dict[str, Pair] = {}
        self._time = 0.0
        self._seen = 0
        self._whole = True
        self._gradients: dict[str, torch.Tensor] = {}
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        self._gradients = {name: p.grad.detach().double() for name, p in trained(info.model).items() if ".lora_" in name and p.grad is not None}
        if not self._rows:
            self._seen = info.step - 1
            self._pairs = _pairs(info, self._gradients)

    def after(self, info: StepInfo) -> None:
        if not self._pairs:
            return
        parameters = trained(info.model)
        rates = [info.rates[name] for pair in self._pairs.values() for name in (pair.a, pair.b)]
        self._time += (info.step - self._seen) * max(rate.lr for rate in rates)
        self._whole = self._whole and info.step == self._seen + 1
        self._seen = info.step
        moved = [parameters[pair.b].detach().double() - pair.start_OR for pair in self._pairs.values()]
        plain = float(all(rate.rule == "sgd" and not rate.momentum for rate in rates))
        row = {"step": info.step, "lora.time": self._time, "lora.plain": plain}
        self._rows.append(row | self._first_order(moved) | self._charges(info, parameters))
        self._gradients = {}

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows

    def _first_order(self, moved: Sequence[torch.Tensor]) -> dict[str, float]:
        pairs = list(self._pairs.values())
        steepest = [-pair.gradient_OR for pair in pairs]
        size, slope = _length(moved), _length(steepest)
        row = {"lora.length": size, "lora.predicted_gain": self._time * slope**2}
        if size > 0 and slope > 0:
            row["lora.cosine"] = sum(float((a * b).sum()) for a, b in zip(moved, steepest, strict=True)) / size / slope
            others = [gradient_OR.roll(1, -1) for gradient_OR in steepest]
            row["lora.cosine_other"] = sum(float((a * b).sum()) for a, b in zip(moved, others, strict=True)) / size / slope
            row["lora.overlap"] = sum(overlap(b, pair.leading_OR) for b, pair in zip(moved, pairs, strict=True)) / len(pairs)
            row |= {f"lora.{site}.share": (_length([b]) / size) ** 2 for site, b in zip(self._pairs, moved, strict=True)}
        return row

    def _charges(self, info: StepInfo, parameters: Mapping[str, torch.Tensor]) -> dict[str, float]:
        if not self._whole:
            return {}
        gaps: dict[str, list[torch.Tensor]] = {"charge": [], "charge_flow": [], "charge_sum": []}
        moved = []
        for pair in self._pairs.values():
            rate = info.rates[pair.a]
            kept = (1 - rate.lr * rate.decay) ** 2
            now_A, now_B = _squares(parameters[pair.a].detach(), parameters[pair.b].detach())
            grown_A, grown_B = _squares(*(rate.lr * info.clipped * self._gradients[name] for name in (pair.a, pair.b)))
            for name, sign, grown in (("charge", -1, grown_A - grown_B), ("charge_flow", -1, 0.0), ("charge_sum", 1, grown_A + grown_B)):
                pair.charges[name] = kept * pair.charges[name] + grown
                gaps[name].append(now_A + sign * now_B - pair.charges[name])
            pair.squares = (kept * pair.squares[0], kept * pair.squares[1])
            moved += [now_A - pair.squares[0], now_B - pair.squares[1]]
        return {f"lora.{name}": _length(gap) / max(_length(moved), 1e-300) for name, gap in gaps.items()}


def _pairs(info: StepInfo, gradients: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    """Every module with both factors trained, by its name below the model."""
    named = dict(info.model.named_parameters())
    names = [name for name in gradients if ".lora_A." in name and name.replace(".lora_A.", ".lora_B.") in gradients]
    full = _full_gradients(info, [named[name.split(".lora_A.")[0] + ".base_layer.weight"] for name in names])
    found = {}
    for a, full_OI in zip(names, full, strict=True):
        b = a.replace(".lora_A.", ".lora_B.")
        low_A, low_B = named[a].detach(), named[b].detach()
        squares = _squares(low_A, low_B)
        charges = {"charge": squares[0] - squares[1], "charge_flow": squares[0] - squares[1], "charge_sum": squares[0] + squares[1]}
        site = a.split(".lora_A.")[0].split("model.")[-1]
        found[site] = Pair(a, b, squares, low_B.double().clone(), gradients[b].clone(), leading(full_OI, len(low_A)), charges)
    return found


def _full_gradients(info: StepInfo, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """∂L/∂W on the first microbatch, for the frozen weights under the factors."""
    asked = [weight.requires_grad for weight in weights]
    try:
        with unnoticed(info.model):
            for weight in weights:
                weight.requires_grad_(True)
            return list(torch.autograd.grad(info.objective(info.model, info.batches[0])[0], list(weights))) if weights else []
    finally:
        for weight, before in zip(weights, asked, strict=True):
            weight.requires_grad_(before)


def _squares(a_RI: torch.Tensor, b_OR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AAᵀ and BᵀB, float64."""
    a_RI, b_OR = a_RI.double(), b_OR.double()
    return a_RI @ a_RI.T, b_OR.T @ b_OR


def _length(parts: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))
