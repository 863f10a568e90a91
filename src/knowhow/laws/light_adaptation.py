"""Whether a fine-tune must make new features is foreseen from how soon the old ones bend.

**Statement** Along the direction of Adam's first step, −sign(g), the gap κ(d) between the features and their first order is measured once, at each distance
d. After K steps of mean rate η the gap between the features of the trained model and their first order in the whole change of the weights is about
κ(η K^p), with p that of the law forgetting. Below .1 the run is a linear regression on what the base has, and a light adaptation (a head, a low rank) does
as well; above .3 it makes features of its own.

**Derivation** f(θ + Δ) − f(θ) = JΔ + ½f″[Δ,Δ] + …; the gap is |½f″[Δ,Δ]| / |JΔ|, which grows in proportion to the distance and ends near 1, where the
first order says nothing any more. Adam's steps are about η in each weight and agree in part, so the distance is η K^p. The direction in which a run ends is
not the one in which it began, and f″ is not the same in all; but both are sign-like, spread over all weights, and f″ of many weights averages.

**Assumptions** AdamW on all weights, from the base that was measured; features of the same rows' distribution.

**Where it fails** Adapters, which move in few directions. Near saturation (κ ≈ 1) sizes are no longer told apart, and the law says only "new features".

**Source** Linearised fine-tuning: Malladi et al. 2023 (arXiv 2210.05643); lazy and rich: Chizat et al. 2019 (arXiv 1812.07956); see the law kernel-regime,
where the whole linearised model is trained beside. It follows from the equations of gradient-based learning, and tells whether circuits can be new.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from knowhow.laws import forgetting
from knowhow.laws.law import Law, by_site, fact, last_of, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "light-adaptation"
QUANTITY = "gap between the features' change and its first order"
FACTOR = 2.0
LAZY, RICH = 0.1, 0.3


def foreseen(looked: Mapping[float, float], distance: float) -> float:
    """κ at a distance: in proportion to it below the first look, between looks in the logarithm of both, that of the last look beyond it."""
    points = sorted(looked.items())
    if distance <= points[0][0]:
        return points[0][1] * distance / points[0][0]
    for (d0, low), (d1, high) in itertools.pairwise(points):
        if distance <= d1:
            share = math.log(distance / d0) / math.log(d1 / d0)
            return math.exp((1 - share) * math.log(max(low, 1e-9)) + share * math.log(max(high, 1e-9)))
    return points[-1][1]


def label(gap: float) -> str:
    """What a gap means for a builder."""
    return "light" if gap <= LAZY else "new features" if gap >= RICH else "between"


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    looked = {float(site): value for site, value in by_site(diagnosis, "bend").items()}
    lr, steps = fact(diagnosis, "lr.mean"), fact(diagnosis, "steps")
    if not looked or not lr or not steps or not fact(diagnosis, "adam"):
        return ()
    value = foreseen(looked, lr * steps**forgetting.POWER)
    return [predicted(NAME, QUANTITY, value, value / FACTOR, value * FACTOR, diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return last_of(predictions, NAME, trace, "bend.measured", "the specialist was not held against its base, weight by weight")


LAW = Law(NAME, __doc__, "use", "within a factor of 2", predict, score, ())
