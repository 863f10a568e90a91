"""How many rows a step can use is one number of the gradient's noise, and doubling the batch saves what that number says.

**Statement** B_noise = tr Σ / |G|² (Σ the covariance of one row's gradient, G its mean) can be measured row by row or from batches of two sizes, and
the two agree within 1.5×. Doubling a batch of b rows, each size at its best learning rate, divides the steps to a target by
(b + B_noise) / (b + B_noise/2): by nearly 2 far below B_noise (1.67 at a quarter of it), by nearly 1 far above.

**Derivation** A step of −ε on a batch's gradient g, E g = G, cov g = Σ/b: E[ΔL] = −ε|G|² + ½ε²(GᵀHG + tr(HΣ)/b). Its minimum over ε is at
ε(b) = ε_max / (1 + B/b), ε_max = |G|²/GᵀHG, B = tr(HΣ)/GᵀHG, and there ΔL(b) = ΔL_max / (1 + B/b). Hence steps ∝ 1 + B/b, and the ratio of b to 2b is
(1 + B/b)/(1 + B/2b). Where the curvature has no preferred directions, H ∝ 1, B = tr Σ/|G|² = B_noise.
Estimators: row by row, tr Σ is the scatter of N gradients about their mean m and |G|² = |m|² − tr Σ/N, since the mean's own noise lengthens it. From
E|g_b|² = |G|² + tr Σ/b at two sizes both follow by subtraction, which needs no single row's gradient. Leaving the noise in |m|² (the control) makes every
batch look as if it were large enough.
So this answers how the pace of learning follows from the equations of gradient-based learning: a step is worth what its signal is beside its noise.

**Assumptions** Plain gradient descent, each batch size at its own best rate; the ratio of noise to signal does not change much on the way to the
target; draws are independent. For the estimators: at least 4 looks.

**Where it fails** At one rate for both sizes (control): below the best rate, doubling the batch saves little, for noise was not what limited the steps.
Where a few sharp directions limit the rate B and B_noise part: with a normal number to learn of each input instead of an even one, one seed in five,
whose scale was three times the others', was 12 and 17% off. The scale grows as the loss falls (17 after 10 steps of a small decoder, 80 after 40), so a
batch chosen at the start is too small later. Adam's preconditioner changes both. With one run there is nothing to compare a batch with: in a build the
saving is a prediction for the next one.

**Source** McCandlish, Kaplan, Amodei et al. 2018 (arXiv 1812.06162), equations 2.5 to 2.9 and appendix A.1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from knowhow.laws.law import Control, Experiment, Law, column, columns, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "noise-scale"
AGREE = "noise scale from batches of two sizes over that from single rows"
SAVED = "steps to a tenth of the loss over steps with twice the batch, each at its best rate"
FACTOR, TOLERANCE, TARGET, LEAST = 1.5, 0.12, 0.1, 4


def saving(batch: float, scale: float) -> float:
    """(b + B) / (b + B/2): between 1 and 2."""
    return (batch + scale) / (batch + scale / 2)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    found = [predicted(NAME, AGREE, 1.0, 1 / FACTOR, FACTOR, diagnosis)]
    batch, scale = fact(diagnosis, "batch"), fact(diagnosis, "noise_scale")
    if batch is None or scale is None or batch <= 0 or scale < 0:
        return found
    return [*found, _saved(saving(batch, scale), diagnosis)]


def _saved(value: float, diagnosis: Diagnosis) -> Prediction:
    return predicted(NAME, SAVED, value, value * (1 - TOLERANCE), value * (1 + TOLERANCE), diagnosis)


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    own = [p for p in predictions if p.law == NAME]
    return [_agreement(p, trace) if p.quantity == AGREE else _race(p, trace) for p in own]


def _agreement(prediction: Prediction, trace: Trace, *, corrected: bool = True) -> Scored:
    """`corrected` False: the large batch's |g|² taken for |G|², its noise left in."""
    looked = len(values(trace, "noise.large"))
    if looked < LEAST:
        return not_applicable(prediction, f"the noise was looked at {looked} times, {LEAST} are needed")
    names = ("trace", "square", "small", "large", "rows_small", "rows_large")
    trace_, square, small, large, few, many = (statistics.fmean(values(trace, f"noise.{name}")) for name in names)
    spread = (small - large) / (1 / few - 1 / many)
    signal = (many * large - few * small) / (many - few) if corrected else large
    if square <= 0 or signal <= 0:
        return not_applicable(prediction, f"the signal is below its own error after {looked} looks: more rows are needed")
    direct, paired = trace_ / square, spread / signal
    return compared(prediction, paired / direct, because=f"{paired:.3g} against {direct:.3g} rows, {looked} looks")


def _race(prediction: Prediction, trace: Trace, *, same_rate: bool = False) -> Scored:
    """`same_rate`: both sizes at the smaller one's best rate."""
    small, large = times(trace, "race.small."), times(trace, "race.large.")
    if not small or not large:
        return not_applicable(prediction, "no run at twice the batch stood beside")
    best = min(small, key=lambda at: small[at])
    first, second = small[best], large.get(best, math.inf) if same_rate else min(large.values())
    if not (math.isfinite(first) and math.isfinite(second) and second > 0):
        return not_applicable(prediction, "the target was not reached")
    return compared(prediction, first / second, because=f"{first:.1f} against {second:.1f} steps")


def times(trace: Trace, prefix: str) -> dict[str, float]:
    """Steps until each member's loss is TARGET of where it began (between two steps by its logarithm); ∞ where it never is."""
    found = {}
    for name in columns(trace, prefix):
        looked = [(step, value) for step, value in column(trace, name) if value > 0]
        target = TARGET * looked[0][1] if looked else math.nan
        reached = next(((a, b) for a, b in pairwise(looked) if b[1] <= target), None)
        found[name.removeprefix(prefix)] = math.inf
        if reached:
            (before, above), (after, below) = reached
            share = math.log(above / target) / math.log(above / below)
            found[name.removeprefix(prefix)] = before - looked[0][0] + share * (after - before)
    return found


def uncorrected(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The noise scale with the batch's own noise left in the signal."""
    return [_agreement(p, trace, corrected=False) for p in predictions if p.quantity == AGREE]


def one_rate(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The saving without tuning the rate for the larger batch."""
    return [_race(p, trace, same_rate=True) for p in predictions if p.quantity == SAVED]


def always_half(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: twice the batch, half the steps."""
    return [_saved(2.0, diagnosis)]


def _raced(batch: int, steps: int, replicas: int) -> Experiment:
    return Experiment("batch-race", steps, {}, {"batch": batch, "replicas": replicas}, {"lr": 1.0, "rule": "sgd"})


_DECODER = Experiment("markov-decoder", 8, {"noise": {"every": 1}}, {"rows": 64, "length": 32}, {"lr": 1e-4}, warm=40)

LAW = Law(
    NAME,
    __doc__,
    "use",
    "estimators within 1.5×; saving within 12%",
    predict,
    score,
    (_DECODER, _raced(2, 150, 160), _raced(8, 50, 160), _raced(64, 25, 48)),
    (
        Control("noise left in the signal", "|G|² without its correction must not pass", score=uncorrected),
        Control("one rate for both", "the saving is of tuned rates", _raced(2, 150, 160), score=one_rate),
        Control("always half", "far above the noise scale a larger batch saves nothing", _raced(64, 25, 48), predict=always_half),
    ),
)
