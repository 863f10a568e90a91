"""The charges of a model (model/charges.py) at each look: whether the step changed them as the law of plain descent says, and if not, what broke it.

What laws/noether.py reads, for every kind of charge, the largest over its sites; residuals are |C' − predicted| over |ΔA| + |ΔB|, how far the step moved
both halves beside decay, C' of weights as they were before rounding (maths/noether.unrounded; `charges.KIND.stored`: of the weights as they are kept):
`charges.KIND.residual` where nothing is known to break the law, `charges.KIND.broken.CAUSE` where the way the factors are moved does (muon, adam,
momentum, rates, decay, frozen: see model/charges.cause; rounding: the step is lost in it), `charges.KIND.undecayed` (of a law that forgets decay),
`charges.KIND.symmetry` the part of the gradient that moves the charge, at first order, whatever the optimizer, `charges.KIND.flow` the change since the
first look against the decay alone, `charges.KIND.velocity` under momentum, where the step before was looked at too; `charges.KIND.size` |C|, `.sites` how
many, `.worst_layer` that of the largest residual. `charges.wrong.NAME.residual` and `.symmetry` are those of charges that are none;
`charges.excluded.WORD` counts what was not derived and why; `charges.decay` is the decay that the charges themselves show, `charges.declared_decay` the
optimizer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.maths import noether
from knowhow.model.charges import Charge, Ledger, Values, apart, cause, ledger
from knowhow.observe.when import When
from knowhow.types import Rate, StepInfo

NAN = math.nan
RESOLVED = 4
"""Roundings of the weights that a step must be larger than to be judged."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One charge over one step. `agreement`: ⟨C'−η²⟨g,g⟩, C⟩ and ⟨C,C⟩, both over the square of how far it moved."""

    charge: Charge
    cause: str
    residual: float
    stored: float
    undecayed: float
    symmetry: float
    size: float
    flow: float = NAN
    velocity: float = NAN
    agreement: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Step:
    """Weights before and after, gradients as the optimizer got them, `after` also as if the step of plain descent had not been rounded; the velocity before,
    where the step before was seen; `coarse`: parameters that moved less than RESOLVED roundings."""

    before: Values
    gradients: Values
    stored: Values
    after: Values
    rates: Mapping[str, Rate]
    velocity: Values
    coarse: frozenset[str]


class Charges:
    """Satisfies Observer. The charges are derived at the first look; cost: some copies of the weights in them, and about as many multiplications as a
    forward pass of K tokens, K the size of a head."""

    name = "charges"

    def __init__(self, due: When) -> None:
        self.due = due
        self._ledger: Ledger | None = None
        self._start: Values = {}
        self._before: Values = {}
        self._shrunk: dict[str, float] = {}
        self._last: tuple[int, Mapping[str, Rate]] | None = None
        self._velocity: tuple[int, Values] = (0, {})
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        if self._ledger is None:
            self._ledger = ledger(info.model)
            self._start = self._ledger.weights(info.model)
        self._before = self._ledger.weights(info.model)

    @torch.no_grad()
    def after(self, info: StepInfo) -> None:
        assert self._ledger is not None
        step = self._step(info)
        self._shrink(info.step, step.rates)
        right = [self._seen(one, step) for one in self._ledger.charges]
        wrong = [self._seen(one, step) for one in self._ledger.wrong]
        self._rows.append({"step": info.step, **self._kept(right, wrong, step.rates)})
        moved: dict[str, torch.Tensor] = {}
        if self.due(info.step + 1):
            swinging = {name: rate.lr for name, rate in step.rates.items() if rate.momentum and rate.rule == "sgd" and rate.lr}
            moved = {name: (step.before[name].double() - step.stored[name].double()) / lr for name, lr in swinging.items()}
        self._velocity, self._last, self._before = (info.step, moved), (info.step, step.rates), {}

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows

    def _step(self, info: StepInfo) -> _Step:
        assert self._ledger is not None
        held = {name: p for name, p in info.model.named_parameters() if name in self._before}
        rates = {name: rate for name, rate in info.rates.items() if name in held and held[name].grad is not None}
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in held.items()}
        stored, after, coarse = self._ledger.weights(info.model), {}, set()
        for name, value in stored.items():
            rate = rates.get(name, Rate(0.0, 0.0, ""))
            moved = rate.lr * (gradients[name].double() + rate.decay * self._before[name].double())
            reached = self._before[name].double() - moved
            eps = torch.finfo(held[name].dtype).eps
            after[name] = noether.unrounded(value.double(), reached, moved, eps)
            if 0 < float(moved.norm()) < RESOLVED * eps * float(value.double().norm()):
                coarse.add(name)
        velocity = self._velocity[1] if self._velocity[0] == info.step - 1 else {}
        return _Step(self._before, gradients, stored, after, rates, velocity, frozenset(coarse))

    def _shrink(self, step: int, rates: Mapping[str, Rate]) -> None:
        """Π(1 − ηλ) by parameter since the first look; over steps that were not looked at, with the mean of the rates at both ends."""
        last, before = self._last or (step - 1, {})
        for name, rate in rates.items():
            old = before.get(name, rate)
            between = (rate.lr * rate.decay + old.lr * old.decay) / 2
            self._shrunk[name] = self._shrunk.get(name, 1.0) * (1 - rate.lr * rate.decay) * (1 - between) ** (step - last - 1)

    def _seen(self, charge: Charge, step: _Step) -> _Seen:
        assert self._ledger is not None
        why, labels = cause(charge, step.rates, self._ledger.offsets), charge.labels
        if not why and step.coarse.intersection(charge.parameters):
            why = "rounding"
        rate = step.rates.get(charge.parameters[0], Rate(0.0, 0.0, ""))
        old, slope, new, kept = (charge.pair(values) for values in (step.before, step.gradients, step.after, step.stored))
        left = (1 - rate.lr * rate.decay) ** 2
        held, steep, held_now = (noether.halves(one, one, labels) for one in (old, slope, new))
        was, second, became = noether.difference(held), rate.lr**2 * noether.difference(steep), noether.difference(held_now)
        alone = old[1] is None
        moved = noether.turnover(noether.combined((left**0.5, old)), new, labels) if alone else noether.spread(noether.combined((left, held)), held_now)

        def off(predicted: torch.Tensor, measured: torch.Tensor = became) -> float:
            return float((measured - predicted).norm()) / moved if moved else NAN

        swung = NAN
        if why == "momentum" and all(name in step.velocity for name in charge.parameters) and not apart(charge, step.rates, self._ledger.offsets):
            swung = off(noether.with_velocity(old, slope, charge.pair(step.velocity), labels, rate.lr, rate.decay, rate.momentum))
        plain, now = left * was + second, noether.halves(kept, kept, labels)
        return _Seen(
            charge, why, off(plain), off(plain, noether.difference(now)), off(was + second),
            noether.asymmetry(old, slope, labels), float(became.norm()), NAN if why else self._flowed(charge, kept, now), swung,
            (float(((became - second) * was).sum()) / moved**2, float(was.square().sum()) / moved**2) if moved else (0.0, 0.0),
        )  # fmt: skip

    def _flowed(self, charge: Charge, new: noether.Pair, held: noether.Pair) -> float:
        """The charge against C(first look) Π(1−ηλ)²; `held`: the terms of the charge of `new`."""
        shrunk, labels = self._shrunk[charge.parameters[0]], charge.labels
        first = charge.pair(self._start)
        start = noether.combined((shrunk**2, noether.halves(first, first, labels)))
        moved = noether.turnover(noether.combined((shrunk, first)), new, labels) if first[1] is None else noether.spread(start, held)
        return float((noether.difference(held) - noether.difference(start)).norm()) / moved if moved else NAN

    def _kept(self, right: Sequence[_Seen], wrong: Sequence[_Seen], rates: Mapping[str, Rate]) -> dict[str, float]:
        row: dict[str, float] = {}
        for kind in dict.fromkeys(one.charge.kind for one in right):
            row |= _of_kind(f"charges.{kind}", [one for one in right if one.charge.kind == kind])
        for kind in dict.fromkeys(one.charge.kind for one in wrong):
            own = [one for one in wrong if one.charge.kind == kind]
            row |= {f"charges.wrong.{kind}.residual": _most(one.residual for one in own), f"charges.wrong.{kind}.symmetry": _most(one.symmetry for one in own)}
        excluded = self._ledger.excluded if self._ledger else ()
        for word in sorted({one.word for one in excluded}):
            row[f"charges.excluded.{word}"] = sum(one.word == word for one in excluded)
        row |= _decay([one for one in right if not one.cause], rates)
        return {name: value for name, value in row.items() if not math.isnan(value)}


def _of_kind(name: str, seen: Sequence[_Seen]) -> dict[str, float]:
    sound = [one for one in seen if not one.cause]
    row = {f"{name}.sites": float(len(seen)), f"{name}.size": math.hypot(*(one.size for one in seen)), f"{name}.symmetry": _most(one.symmetry for one in seen)}
    row |= {f"{name}.residual": _most(one.residual for one in sound), f"{name}.stored": _most(one.stored for one in sound)}
    row |= {f"{name}.undecayed": _most(one.undecayed for one in sound)}
    row |= {f"{name}.flow": _most(one.flow for one in sound), f"{name}.velocity": _most(one.velocity for one in seen)}
    moving = [one for one in seen if not math.isnan(one.residual)]
    if moving:
        row[f"{name}.worst_layer"] = float(max(moving, key=lambda one: one.residual).charge.layer)
    for why in sorted({one.cause for one in seen if one.cause}):
        row[f"{name}.broken.{why}"] = _most(one.residual for one in seen if one.cause == why)
    return row


def _decay(sound: Sequence[_Seen], rates: Mapping[str, Rate]) -> dict[str, float]:
    """The decay that fits the charges best, by least squares with each charge in units of how far it moved; NaN where no charge obeys the law."""
    together, size = (sum(one.agreement[at] for one in sound) for at in (0, 1))
    own = [rates[one.charge.parameters[0]] for one in sound]
    if not own or size == 0 or together <= 0 or len({(rate.lr, rate.decay) for rate in own}) > 1 or not own[0].lr:
        return {}
    return {"charges.decay": (1 - math.sqrt(together / size)) / own[0].lr, "charges.declared_decay": own[0].decay}


def _most(values: Iterable[float]) -> float:
    """The largest that is a number; NaN when none is."""
    return max((value for value in values if not math.isnan(value)), default=NAN)
