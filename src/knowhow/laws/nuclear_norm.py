"""Weight decay on two factors is a nuclear norm on their product: it cuts singular values off.

**Statement** Where two matrices are multiplied and both are decayed with λ (coupled, as in SGD), the product W = BA is learned as if its nuclear norm were
charged with λ: at stationarity the singular values are those of the task, soft-thresholded, σ = max(0, s − λ/c) for a loss ½c|W − M|²; the imbalance
AAᵀ − BᵀB of the factors dies out as e^{−2λt}, t = steps × learning rate; and ½(|A|² + |B|²) comes down to |W|_*, its least possible value.

This is an answer to why low rank and sparsity appear: a transformer multiplies factors everywhere (queries by keys, values by outputs, LoRA's A by B), so
that the ordinary decay of weights, which favours no rank at all on a single matrix, removes whole singular directions whose use is below a threshold.

**Derivation** For any W = BA, ½(|A|² + |B|²) ≥ |W|_*: with W = UΣVᵀ, |W|_* = tr(UᵀWV) = tr((UᵀB)(AV)) ≤ |UᵀB||AV| ≤ |B||A| ≤ ½(|A|² + |B|²), with
equality for A = Σ^½ Vᵀ, B = U Σ^½. So min over A, B of L(BA) + (λ/2)(|A|² + |B|²) equals min over W of L(W) + λ|W|_*. For L = ½c|W − M|² the minimum keeps
the singular vectors of M, and each value minimises ½c(σ − s)² + λσ over σ ≥ 0: σ = max(0, s − λ/c).
Balance: gradient flow with decay is dA/dt = −BᵀG − λA, dB/dt = −GAᵀ − λB with G = ∂L/∂W. Then d(AAᵀ)/dt = −BᵀGAᵀ − AGᵀB − 2λAAᵀ and d(BᵀB)/dt has the
same first two terms: they cancel in the difference, and d(AAᵀ − BᵀB)/dt = −2λ(AAᵀ − BᵀB). With steps of size η the rate is −2 ln(1 − ηλ) a step up to
terms of order η² in the gradients.

**Assumptions** Both factors decayed alike, coupled (gate: no Adam, whose decoupled decay does not enter the gradient); long enough (gate: the imbalance must
be able to fall a hundredfold, 2ηλ·steps ≥ ln 100, and the singular values no longer move by more than a tenth of the tolerance over the last tenth of the
run); full rank of the hidden layer; the quadratic form of the loss for the threshold (the inequality and the balance need none).

**Where it fails** With decoupled decay (AdamW) the threshold is not λ/c (control: nothing was cut, every value stayed at s within .001), so
nothing here speaks of models trained with AdamW. On one matrix instead of two, L2 shrinks every singular value by the factor c/(c + λ) and cuts none
(control). Values close to the threshold need
a time of order 1/|s − λ/c|. Where the decay is small beside the length of the run nothing of this is seen.

**Source** Kobayashi, Akram and von Oswald 2024 (arXiv 2410.23819): the equivalence of the minima and the decay of the discrepancy; figure 1 is repeated
here. The inequality: Srebro, Rennie and Jaakkola 2004. The constants are those of the losses above, checked by hand and by the experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from knowhow.laws.law import Control, Experiment, Law, by_site, column, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "nuclear-norm"
SINGULAR = "singular value at the end"
RATE = "rate at which the imbalance of the factors falls, per step"
GAP = "½(|A|² + |B|²) over the nuclear norm at the end"
VALUE_TOLERANCE, RATE_TOLERANCE, GAP_TOLERANCE = 0.002, 0.01, 1e-3
FALL = math.log(100)
FLOOR = 1e-9

Shrink = Callable[[float, float], float]


def soft(strength: float, threshold: float) -> float:
    """Soft thresholding: what a nuclear norm does to a singular value."""
    return max(0.0, strength - threshold)


def ridge(strength: float, threshold: float) -> float:
    """What L2 on a single matrix does to a singular value, whatever its basis."""
    return strength / (1 + threshold)


def doubled(strength: float, threshold: float) -> float:
    """The threshold with the decay counted once for each factor: a wrong constant."""
    return soft(strength, 2 * threshold)


def _predict(diagnosis: Diagnosis, shrink: Shrink) -> Sequence[Prediction]:
    strengths, curvature = by_site(diagnosis, "strength"), fact(diagnosis, "curvature")
    rate, decay = fact(diagnosis, "lr"), fact(diagnosis, "weight_decay")
    if not strengths or not curvature or not rate or not decay:
        return ()
    found = []
    for site, strength in strengths.items():
        value = shrink(strength, decay / curvature)
        found.append(predicted(NAME, SINGULAR, value, value - VALUE_TOLERANCE, value + VALUE_TOLERANCE, diagnosis, site))
    return found


def _balance(diagnosis: Diagnosis) -> Sequence[Prediction]:
    rate, decay = fact(diagnosis, "lr"), fact(diagnosis, "weight_decay")
    if not by_site(diagnosis, "strength") or not rate or not decay:
        return ()
    value = -2 * math.log1p(-rate * decay)
    return [
        predicted(NAME, RATE, value, value * (1 - RATE_TOLERANCE), value * (1 + RATE_TOLERANCE), diagnosis),
        predicted(NAME, GAP, 1.0, 1.0 - GAP_TOLERANCE, 1.0 + GAP_TOLERANCE, diagnosis),
    ]


def anyhow(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The law's predictions, whatever the optimizer and the length of the run."""
    return [*_predict(diagnosis, soft), *_balance(diagnosis)]


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    if fact(diagnosis, "adam") or fact(diagnosis, "momentum"):
        return ()
    return anyhow(diagnosis)


def _instead(diagnosis: Diagnosis, shrink: Shrink) -> Sequence[Prediction]:
    """A wrong formula's predictions, where they are not the law's own."""
    pairs = zip(_predict(diagnosis, shrink), _predict(diagnosis, soft), strict=True)
    return [wrong for wrong, right in pairs if wrong.low > right.high or wrong.high < right.low]


def as_ridge(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The shrinkage of a single matrix."""
    return _instead(diagnosis, ridge)


def twice(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Twice the threshold."""
    return _instead(diagnosis, doubled)


def falling(imbalance: Sequence[tuple[int, float]]) -> float:
    """Rate per step of an exponential fall, from its first look to the last one above the rounding floor; nan when there are not two."""
    if not imbalance:
        return math.nan
    (first, start), *rest = imbalance
    held = [(step, value) for step, value in rest if value > FLOOR * start] if start > 0 else []
    if not held:
        return math.nan
    last, end = held[-1]
    return math.log(start / end) / (last - first)


def _settled(trace: Trace) -> bool:
    """Whether no singular value moved by a tenth of the tolerance in the last tenth of the run."""
    looks = [row for row in trace.rows if "factors.nuclear" in row]
    if len(looks) < 3:
        return False
    last = looks[-1]
    earlier = [row for row in looks if row["step"] <= 0.9 * last["step"]]
    names = [name for name in last if name.startswith("factors.singular.")]
    return bool(earlier) and all(abs(last[name] - earlier[-1][name]) <= VALUE_TOLERANCE / 10 for name in names)


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _score(predictions, trace, _settled(trace))


def at_the_end(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The law's score without the gate of stationarity."""
    return _score(predictions, trace, bool(values(trace, "factors.nuclear")))


def _score(predictions: Sequence[Prediction], trace: Trace, settled: bool) -> Sequence[Scored]:
    nuclear, half = values(trace, "factors.nuclear"), values(trace, "factors.half_square")
    imbalance = column(trace, "factors.imbalance")
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if prediction.quantity == RATE:
            fell = prediction.value * imbalance[-1][0] if imbalance else 0.0
            if fell < FALL:
                found.append(not_applicable(prediction, f"the run is too short for the balance: a fall by e^{fell:.2g}"))
            else:
                found.append(compared(prediction, falling(imbalance)))
        elif not settled:
            found.append(not_applicable(prediction, "the singular values were still moving, or nobody watched them"))
        elif prediction.quantity == GAP:
            found.append(compared(prediction, half[-1] / nuclear[-1] if nuclear[-1] > 0 else math.nan))
        else:
            singular = values(trace, f"factors.singular.{prediction.site.rpartition('.')[2]}")
            found.append(compared(prediction, singular[-1] if singular else math.nan))
    return found


_TASK = {"strengths": (1.0, 0.8, 0.6, 0.4, 0.2), "aligned": False, "start": 0.5}
_WATCH = {"factors": {"every": 50}}


def _run(decay: float, rule: str = "sgd", layers: int = 2) -> Experiment:
    return Experiment("deep-linear", 2000, _WATCH, {**_TASK, "layers": layers}, {"lr": 0.025 if rule == "sgd" else 0.005, "weight_decay": decay, "rule": rule})


LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "singular values within .002, rate of the imbalance within 1%, ½(|A|² + |B|²) within .1% of the nuclear norm",
    predict,
    score,
    (_run(0.1), _run(0.3)),
    (
        Control("twice the threshold", "a wrong constant must miss the singular values", predict=twice),
        Control("the shrinkage of one matrix", "ridge shrinks and cuts nothing; the formula must miss", predict=as_ridge),
        Control("a single matrix", "without a product there is no threshold", _run(0.3, layers=1)),
        Control("decoupled decay", "AdamW's decay is not in the gradient", _run(0.3, rule="adamw"), anyhow, at_the_end),
    ),
)
