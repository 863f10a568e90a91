"""How much general text a fine-tune will cost is foreseen from the path length of the optimizer and one look along the first step.

**Statement** The rise of the loss on general text after training, F, follows from three numbers that are known before it: the rate η summed over the
schedule's steps K, and the curve R(d) of general loss at distance d along −sign(g) of the task's gradient: F ≈ R(η K^p) up to a factor.

**Derivation** With Adam every weight moves by at most η a step. After K steps a weight has moved η·K where its steps agree and η·√K where they are
noise, so the distance is η K^p with ½ ≤ p ≤ 1. General text does not care for the task: along a direction that the task chose, the first-order term
g_general·u is small (the two gradients are nearly orthogonal: `overlap.general`) and the rise is the curvature term, ½uᵀH u, which grows with the square
of the distance until the features break. R(d) holds both; so one curve, measured once, gives F for every rate and length.

**Assumptions** AdamW on all weights from the base that R was measured on; no general text among the training rows; causal models.

**Where it fails** Very long runs, where decay and the task's own directions turn away from the first gradient; adapters, which move only some directions.

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
POWER = 0.55
"""p: between a random walk (½) and a straight line (1)."""
FACTOR, EXPONENT = 1.0, 1.0
"""F = FACTOR · R^EXPONENT, and the interval is a factor of exp(±SPREAD) round it; fitted on tiny builds (bench/forecasts.py), seeds 0–4."""
SPREAD = 1.2
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


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    looked, lr, steps = curve(diagnosis), fact(diagnosis, "lr.mean"), fact(diagnosis, "steps")
    if len(looked) < 2 or not lr or not steps or not fact(diagnosis, "adam"):
        return ()
    value = forecast(looked, lr, steps)
    return [predicted(NAME, QUANTITY, value, value * math.exp(-SPREAD) if value > LEAST else -0.05, value * math.exp(SPREAD), diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return last_of(predictions, NAME, trace, "forgetting.measured", "the loss on general text was not measured after training")


LAW = Law(NAME, __doc__, "use", "the 90% interval holds the measured rise in 80 to 97% of builds", predict, score, ())
