"""What twice the data would add is foreseen from how a probe on the base's frozen features grows.

**Statement** The gain of the specialist's validation score from n to 2n training rows is proportional to the gain that a linear probe on frozen features
still makes at its last doubling, carried on by the probe's own power law.

**Derivation** The excess error of a reader fitted on n rows falls as E(n) = E∞ + A n^(−b) (learning-curve fits: Hestness 2017; for a linear reader of D
features b = 1 while n ≫ D). Then each doubling's gain is the one before times 2^(−b); two doublings give b, and the next gain is known. A fine-tune reads
better features, but of the same rows: what it lacks for want of examples (rare words, rare classes) the probe lacks too.

**Assumptions** Rows of the same distribution; the run is long enough that data, not steps, is what is short.

**Where it fails** The rank correlation with the measured gain is .42 over 20 tiny builds, below the .6 that this project asks of a law: the interval is
calibrated, the value is a hint. Rates near the ceiling make the gain a matter of luck. Tasks of a circuit that appears all at once; tasks that frozen
features do not show at all, where the probe's curve is flat at chance (then the interval is wide and the law says so).

**Source** Hestness et al. 2017 (arXiv 1712.00409); Chinchilla-type fits. A use: whether to label more rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from knowhow.laws.law import Law, by_site, fact, last_of, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "more-data"
QUANTITY = "fall of the validation loss from twice the data, nats"
SLOPE, SPREAD = 0.6, 0.075
"""Fitted on tiny builds (bench/forecasts.py), seeds 0–4."""


def forecast(losses: Sequence[tuple[float, float]], rows: float, seen: float) -> tuple[float, float]:
    """Gain of a build of so many `rows` and half the width of its 90% interval; the probe saw `seen` rows, and its gain is carried on by n^(−½). The width
    is SPREAD times the square of what the probe lacks still: where much is left to learn, much depends on the draw of the rows."""
    left = max(losses)[1]
    return SLOPE * next_gain(losses) / math.sqrt(max(1.0, rows / seen)), SPREAD * left**2


def next_gain(losses: Sequence[tuple[float, float]]) -> float:
    """The fall that one more doubling would bring, from (rows, loss) at three doublings or more: last gain × ratio of the last two, held in [¼, 1]."""
    ordered = [loss for _, loss in sorted(losses)]
    last, before = ordered[-2] - ordered[-1], ordered[-3] - ordered[-2]
    ratio = min(1.0, max(0.25, last / before)) if before > 0 else 0.5
    return max(0.0, last) * ratio


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    looked = [(float(site), value) for site, value in by_site(diagnosis, "growth.loss").items()]
    rows, seen = fact(diagnosis, "rows"), fact(diagnosis, "growth.rows")
    if len(looked) < 3 or not rows or not seen:
        return ()
    value, spread = forecast(looked, rows, seen)
    return [predicted(NAME, QUANTITY, value, value - spread, value + spread, diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return last_of(predictions, NAME, trace, "more_data.gain", "a build with twice the rows was not made; it takes one to know")


LAW = Law(NAME, __doc__, "use", "the 90% interval holds the measured gain in 80 to 97% of builds", predict, score, ())
