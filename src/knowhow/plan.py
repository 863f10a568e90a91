"""From predictions to choices: learning rate, batch, where the update goes, what can be left out. Each names the predictions it rests on.

Numbers in, numbers out; a user's own setting always wins and is shown beside what the plan would have taken.
Shape letters: O outputs, I inputs of a matrix, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from knowhow.laws import forgetting, layer_skip, learning_rate_ceiling, light_adaptation
from knowhow.laws.law import by_site, fact
from knowhow.types import Choice, Diagnosis, Plan, Prediction

SHARE = 1 / 8
"""Of the predicted ceiling: no plan takes a higher rate."""
STRIDES = 16.0
"""The rate in units of the distance at which one step along the first gradient's signs helps most: later steps agree in so small a part of each weight."""
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""From which a pilot takes; a climb begins in the middle."""
PILOT = "pilot.20"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A hidden matrix that may get an adapter: its sizes and the singular values of its first gradient."""

    outputs: int
    inputs: int
    values: Sequence[float]

    @property
    def price(self) -> int:
        """Trainable parameters of one rank."""
        return self.outputs + self.inputs


@dataclass(frozen=True, slots=True)
class Asked:
    """What the recipe says: `own`: choices that the user made (name → value); `parameters`: trainable ones an adapter may have (None: no adapter);
    `forgetting`: the most nats per token of general text."""

    own: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    forgetting: float | None = None


def plan(diagnosis: Diagnosis, predictions: Sequence[Prediction], asked: Asked, matrices: Mapping[str, Matrix]) -> Plan:
    """All choices that the diagnosis allows, in the order in which a builder makes them."""
    made = [rate(diagnosis, predictions, asked), batch(diagnosis, asked), adaptation(predictions), dispensable(predictions)]
    if asked.parameters is not None and matrices:
        made.append(ranks(matrices, asked.parameters, asked))
    return Plan(tuple(choice for choice in made if choice is not None))


def rate(diagnosis: Diagnosis, predictions: Sequence[Prediction], asked: Asked) -> Choice | None:
    """The rate whose pilot ended lowest; without pilots STRIDES times the distance at which the first step helps most. Below a share of the predicted
    ceiling, and lowered until the predicted forgetting fits the budget. Alternatives: rate → predicted forgetting in nats."""
    ceiling = next((p for p in predictions if p.law == learning_rate_ceiling.NAME), None)
    piloted, best = by_site(diagnosis, PILOT), fact(diagnosis, "line.best")
    if not piloted and best is None:
        return None
    wanted = float(min(piloted, key=lambda site: piloted[site])) if piloted else STRIDES * (best or 0.0)
    looked, steps = forgetting.curve(diagnosis), fact(diagnosis, "steps") or 1.0
    mean = fact(diagnosis, "schedule") or 1.0
    value = _rounded(wanted if ceiling is None else min(wanted, SHARE * ceiling.value))
    costs = {f"{lr:g}": forgetting.forecast(looked, lr * mean, steps) for lr in sorted({*RATES, value})} if len(looked) > 1 else {}
    if asked.forgetting is not None and costs:
        fits = [lr for lr in (value, value / 2, value / 4, value / 8) if forgetting.forecast(looked, lr * mean, steps) <= asked.forgetting]
        value = _rounded(fits[0]) if fits else _rounded(value / 8)
    because = tuple(p for p in predictions if p.law in (learning_rate_ceiling.NAME, forgetting.NAME))
    return Choice("lr", asked.own.get("lr", value), because, {"planned": value, **costs})


def climbed(rates: Sequence[float], loss: Callable[[float], float]) -> float:
    """The rate with the lowest loss found by going up from the middle of `rates` while that helps, or down. Ends at the first rate that does not help."""
    at = len(rates) // 2
    best = loss(rates[at])
    for way in (1, -1):
        start = at
        while 0 <= at + way < len(rates) and (found := loss(rates[at + way])) < best:
            at, best = at + way, found
        if at != start:
            break
    return rates[at]


def batch(diagnosis: Diagnosis, asked: Asked) -> Choice | None:
    """Tokens of a step at about the gradient noise scale, where half of each example's worth is still paid for in steps (McCandlish 2018, eq. 2.11).
    Alternatives: tokens → steps needed in multiples of the least possible, 1 + B_noise/B."""
    noise, rows, tokens = fact(diagnosis, "noise.scale"), fact(diagnosis, "rows"), fact(diagnosis, "tokens")
    if not noise or not rows or not tokens:
        return None
    scale = noise * tokens / rows if fact(diagnosis, "units.rows") else noise
    value = int(2 ** min(15, max(9, round(math.log2(max(scale, 1.0))))))
    costs = {str(size): 1 + scale / size for size in (1024, 2048, 4096, 8192, 16384)}
    return Choice("batch_tokens", asked.own.get("batch_tokens", value), (), {"planned": value, **costs})


def adaptation(predictions: Sequence[Prediction]) -> Choice | None:
    """Whether a light adaptation (a head, a low rank) does what training all weights would. Alternatives: label → the gap at which it begins."""
    found = [one for one in predictions if one.law == light_adaptation.NAME]
    if not found:
        return None
    borders = {"between": light_adaptation.LAZY, "new features": light_adaptation.RICH}
    return Choice("adaptation", light_adaptation.label(found[0].value), tuple(found), borders)


def dispensable(predictions: Sequence[Prediction]) -> Choice | None:
    """Layers in the order in which they can go. Alternatives: layer → predicted cost in nats."""
    costs = {p.site: p for p in predictions if p.law == layer_skip.NAME and p.quantity == layer_skip.COST}
    if not costs:
        return None
    order = sorted(costs, key=lambda site: costs[site].value)
    return Choice("layers that can go first", order, tuple(costs[site] for site in order), {site: costs[site].value for site in order})


def ranks(matrices: Mapping[str, Matrix], parameters: int, asked: Asked) -> Choice:
    """A rank for each matrix within the budget of trainable parameters. Alternatives: the share of the first gradient's size that each pattern reaches."""
    planned = allocated(matrices, parameters)
    mlp = {name: matrix for name, matrix in matrices.items() if "attn" not in name and "attention" not in name}
    patterns = {"planned": planned, "uniform": uniform(matrices, parameters), "mlp only": uniform(mlp, parameters) if mlp else {}}
    return Choice("rank_pattern", asked.own.get("rank_pattern", planned), (), {name: reached(matrices, pattern) for name, pattern in patterns.items()})


def allocated(matrices: Mapping[str, Matrix], parameters: int) -> dict[str, int]:
    """Ranks that reach the most of the first gradient for the parameters: each further rank goes where its singular value, per parameter, is largest.

    With B = 0 a step of LoRA moves BA along the gradient's projection on A's R directions (LoRA-One, Zhang 2025, arXiv 2502.01235), so what rank R can
    reach of a gradient in spectral size is the sum of its first R singular values."""
    offers = [(value / matrix.price, -at, name) for name, matrix in matrices.items() for at, value in enumerate(matrix.values)]
    found: dict[str, int] = {}
    left = parameters
    for _, _, name in sorted(offers, reverse=True):
        if matrices[name].price <= left:
            found[name] = found.get(name, 0) + 1
            left -= matrices[name].price
    return dict(sorted(found.items()))


def uniform(matrices: Mapping[str, Matrix], parameters: int) -> dict[str, int]:
    """One rank for all, the largest that fits."""
    rank = parameters // sum(matrix.price for matrix in matrices.values())
    return {name: min(rank, len(matrix.values)) for name, matrix in sorted(matrices.items())} if rank else {}


def reached(matrices: Mapping[str, Matrix], pattern: Mapping[str, int]) -> float:
    """Share of all gradients' nuclear norm within the pattern's ranks."""
    whole = sum(sum(matrix.values) for matrix in matrices.values())
    return sum(sum(matrices[name].values[:rank]) for name, rank in pattern.items()) / whole if whole else 0.0


def shares(diagnosis: Diagnosis) -> Mapping[str, float]:
    """How much of the task's pull each matrix gets, by the part that all batches agree on and shuffled labels do not explain."""
    signal, other = by_site(diagnosis, "gradient.signal"), by_site(diagnosis, "gradient.shuffled")
    kept = {site: max(0.0, value - other.get(site, 0.0)) for site, value in signal.items()}
    whole = sum(kept.values())
    return {site: value / whole if whole else 0.0 for site, value in kept.items()}


def _rounded(value: float) -> float:
    """Two digits."""
    return float(f"{value:.2g}")
