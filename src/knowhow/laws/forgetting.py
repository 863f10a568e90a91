"""How much general text a fine-tune will cost is foreseen from twenty steps of it, or from one look along the first step.

**Statement** The rise F of the loss on general text after K steps whose rates add up to Ση is .83 of what a pilot of 20 steps at rate η cost, F₂₀, times
Ση / 20η. Without a pilot: F ≈ .94 · R(η K^p)^½, with R(d) the rise at distance d along −sign(g) of the task's first gradient and p = .8.

**Derivation** With Adam every weight moves by at most η a step, so the way that a training can go is Ση. General text does not care for the task: where the
task pulls hard the first steps already go far, and what they cost goes on being paid in proportion to the way, since later steps turn other weights of
the same layers. R is the same number before any step, but along one fixed direction: the path bends away from it (p < 1), and its curvature, ½uᵀHu,
overstates a path that may choose cheap directions (the root). Hence the pilot is the better measurement, and the line what is left where a pilot would
cost more than a few hundredths of the run.

**Assumptions** AdamW on all weights from the base that was measured; no general text among the training rows; causal models.

**Where it fails** Late in a cosine schedule general text sometimes comes back a little (the rise is not monotone), which no path length foresees. From a
line alone the rank correlation is .68 over 20 builds, from a pilot .87; hence the two widths. Adapters, which move only some directions.

**Source** Forgetting as curvature along the update: Kirkpatrick et al. 2017 (arXiv 1612.00796), Mirzadeh et al. 2020 (arXiv 2006.06958). It follows from
the equations of gradient-based learning, and tells a builder what a rate will cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from knowhow.laws.law import Law, by_site, fact, last_of, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "forgetting"
QUANTITY = "rise of the loss on general text, nats per token"
POWER = 0.8
"""p: between a random walk (½) and a straight line (1)."""
FACTOR, EXPONENT, SPREAD = 0.94, 0.51, 1.5
"""F = FACTOR · R^EXPONENT, and the interval is a factor of exp(±SPREAD) round it; fitted on tiny builds (bench/forecasts.py), seeds 0–4."""
PILOT_STEPS, PILOT_FACTOR, PILOT_SPREAD = 20, 0.83, 1.1
"""F = PILOT_FACTOR · F₂₀ · Ση / 20η, fitted on the same."""
LEAST = 1e-3


def curve(diagnosis: Diagnosis) -> Mapping[float, float]:
    """Distance → rise of general loss in nats, where it rises."""
    return {float(site): max(value, LEAST) for site, value in by_site(diagnosis, "line.general").items()}


def rise_at(looked: Mapping[float, float], distance: float) -> float:
    """Between looks in the logarithm of both; beyond the ends with the slope of two, but never below LEAST."""
    points = sorted(looked.items())
    at = min(max(1, sum(d <= distance for d, _ in points)), len(points) - 1)
    (d0, r0), (d1, r1) = points[at - 1], points[at]
    slope = math.log(r1 / r0) / math.log(d1 / d0)
    return max(LEAST, math.exp(math.log(r0) + slope * math.log(distance / d0)))


def forecast(looked: Mapping[float, float], lr: float, steps: float) -> float:
    """F in nats for so many steps of a mean rate `lr`."""
    return max(LEAST, FACTOR * rise_at(looked, lr * steps**POWER) ** EXPONENT)


def from_pilot(cost: float, share: float, steps: float) -> float:
    """F in nats for `steps` whose mean rate is `share` of the pilot's, from what the pilot cost."""
    return max(LEAST, PILOT_FACTOR * max(cost, LEAST) * share * steps / PILOT_STEPS)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    looked, lr, mean, steps = curve(diagnosis), fact(diagnosis, "lr"), fact(diagnosis, "lr.mean"), fact(diagnosis, "steps")
    piloted = by_site(diagnosis, "pilot.general").get(f"{lr:g}") if lr else None
    if not mean or not steps or not fact(diagnosis, "adam") or (piloted is None and len(looked) < 2):
        return ()
    value = forecast(looked, mean, steps) if piloted is None or not lr else from_pilot(piloted, mean / lr, steps)
    low, high = interval(value, SPREAD if piloted is None else PILOT_SPREAD)
    return [predicted(NAME, QUANTITY, value, low, high, diagnosis)]


def interval(value: float, spread: float) -> tuple[float, float]:
    """Where 90% of builds lie; what is too little to measure may as well be a small gain."""
    return (value * math.exp(-spread) if value > LEAST else -0.05), max(0.01, value * math.exp(spread))


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return last_of(predictions, NAME, trace, "forgetting.measured", "the loss on general text was not measured after training")


LAW = Law(NAME, __doc__, "use", "the 90% interval holds the measured rise in 80 to 97% of builds", predict, score, ())
