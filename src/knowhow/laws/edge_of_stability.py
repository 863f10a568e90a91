"""Full-batch descent drives curvature up to the edge at which it is just stable, and stays there.

**Statement** In full-batch gradient descent with a constant rate η the largest eigenvalue of the Hessian (sharpness) rises until it reaches 2/η and hovers
there while the loss goes on falling. With momentum β the edge is 2(1 + β)/η (there it turns back rather than hovers, see below); with Adam it is the
eigenvalue of the preconditioned Hessian P^−½ H P^−½ that hovers, at 2(1 + β₁)/((1 − β₁)η), which is 38/η for β₁ = .9.

This is an answer to how what a network becomes follows from the equations of gradient-based learning, and not from the loss alone: the step size chooses
among the solutions. It is a bound on what can be learned (no minimum sharper than 2/η can be kept) and so a pressure towards flat, simple ones.

**Derivation** Along an eigenvector of curvature a a step of descent is x ← (1 − ηa)x: it shrinks when |1 − ηa| < 1, that is a < 2/η. Heavy ball,
x_{t+1} = (1 + β − ηa)x_t − βx_{t−1}, has characteristic polynomial z² − (1 + β − ηa)z + β; as a grows its first root to leave the unit circle goes through
z = −1: 1 + (1 + β − ηa) + β = 0, so a = 2(1 + β)/η. Adam's momentum is averaged, m ← βm + (1 − β)g, which is heavy ball at the rate (1 − β)η, in coordinates
scaled by P^½; hence 2(1 + β)/((1 − β)η). P = (1 − β₁ᵗ)(√ν̂ + ε) changes slowly once training has run for 1/(1 − β₂) steps.
Why the edge attracts: while a is below it, training raises sharpness (progressive sharpening; found, not derived, for networks of several layers: a
larger product of weights answers more per change of each). Above it the oscillation x along the top eigenvector grows, and the cubic term of
the loss, ½x² ∇a, pushes the weights against the gradient of a: sharpness falls again. The two balance at the edge (Damian 2023).

**Assumptions** The same whole batch at every step and a constant rate (no prediction otherwise); no decay. Gate: the sharpness reached 95% of the edge; a
run that ends sooner, or finds a flat minimum first, says nothing: not applicable.

**Where it fails** With plain momentum the edge is where sharpness turns, not where it stays, and momentum is no experiment of the law: on 256 rows (two
seeds) β = .8 at η = .15 climbed to 25, 5% over its edge of 24, was thrown back to between 11 and 14, climbed to 24.9 and fell again, and β = .9 at η = .1
turned at 39.6 (edge 38); its median is then below the edge (violated). Where sharpening is fast the edge is overrun: on 64 rows β = .5 at η = .25 went
to 16 or more (edge 12) and ended in a minimum of 9, and at η = .4 it diverged. With other rates a flat minimum came first (gate closed). In minibatch
training the edge belongs to another quantity (no prediction), and a model that is linear in its weights cannot sharpen at all (control). With
cross-entropy sharpness comes down again at the end. For a user the edge is a warning: no region sharper than 2(1 + β)/η can be trained in at that rate,
so η = 2(1 + β)/sharpness is the highest rate at which the present weights are stable (`ceiling`), in full-batch descent only.

**Source** Cohen et al. 2021 (arXiv 2103.00065): gradient descent and momentum; Cohen et al. 2022 (arXiv 2207.14484): Adam's 38/η. The
mechanism: Damian, Nichani and Lee 2023 (arXiv 2209.15594).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, column, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "edge-of-stability"
PLAIN = "sharpness in the second half of the run"
PRECONDITIONED = "preconditioned sharpness in the second half of the run"
COLUMNS = {PLAIN: "sharpness.top", PRECONDITIONED: "sharpness.preconditioned"}
TOLERANCE = 0.05
GATE = 0.95
LEAST = 5


def edge(rate: float, momentum: float = 0.0, *, adam: bool = False) -> float:
    """The curvature at which a step of size `rate` is just stable: of the Hessian, with `adam` of the preconditioned one (momentum β₁)."""
    return 2 * (1 + momentum) / rate / (1 - momentum if adam else 1)


def ceiling(sharpness: float, momentum: float = 0.0, *, adam: bool = False) -> float:
    """The highest rate at which full-batch descent is stable where the (preconditioned) sharpness is this. Above it the loss rises along one direction."""
    return edge(sharpness, momentum, adam=adam)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    rate, momentum, adam = (fact(diagnosis, name) for name in ("lr", "momentum", "adam"))
    if not fact(diagnosis, "full_batch") or fact(diagnosis, "weight_decay") or not rate or momentum is None:
        return ()
    value = edge(rate, momentum, adam=bool(adam))
    return [predicted(NAME, PRECONDITIONED if adam else PLAIN, value, value * (1 - TOLERANCE), value * (1 + TOLERANCE), diagnosis)]


def memoryless(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """2/η where there is momentum: an edge that forgets what momentum does."""
    rate = fact(diagnosis, "lr")
    if not rate or not fact(diagnosis, "momentum"):
        return ()
    value = edge(rate)
    return [predicted(NAME, p.quantity, value, value * (1 - TOLERANCE), value * (1 + TOLERANCE), diagnosis) for p in predict(diagnosis)]


def half_edge(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The edge 1/η: a step that would end in the minimum, not beyond it."""
    return [predicted(NAME, p.quantity, p.value / 2, p.low / 2, p.high / 2, diagnosis, p.site) for p in predict(diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _score(predictions, trace, GATE)


def without_gate(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The law's score whether or not the edge was reached."""
    return _score(predictions, trace, 0.0)


def _score(predictions: Sequence[Prediction], trace: Trace, gate: float) -> Sequence[Scored]:
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        looks = column(trace, COLUMNS[prediction.quantity])
        late = [value for step, value in looks if step > looks[-1][0] / 2]
        if len(late) < LEAST:
            found.append(not_applicable(prediction, f"the sharpness was looked at {len(late)} times in the second half of the run"))
            continue
        inside = sum(value >= gate * prediction.value for _, value in looks) / len(looks)
        if not inside:
            highest = max(value for _, value in looks) / prediction.value
            found.append(not_applicable(prediction, f"the sharpness came to {highest:.2f} of the edge only", measured=statistics.median(late)))
            continue
        measured = statistics.median(late)
        because = f"{inside:.0%} of the looks at {gate:.2f} of the edge or more"
        found.append(compared(prediction, measured, residual=measured / prediction.value - 1, because=because, inside=inside))
    return found


_WATCH = {"sharpness": {"every": 20}}


def _run(rate: float) -> Experiment:
    return Experiment("perceptron", 600, _WATCH, {}, {"lr": rate, "rule": "sgd"})


_ADAM = Experiment("perceptron", 600, {"sharpness": {"every": 1, "period": 20, "beta2": 0.95}}, {}, {"lr": 0.01})
_ONE_LAYER = Experiment("perceptron", 200, _WATCH, {"hidden": (), "activation": "linear"}, {"lr": 0.3, "rule": "sgd"})
LAW = Law(
    NAME,
    __doc__,
    "dynamics",
    "median over the second half of the run within 5% of the edge",
    predict,
    score,
    (_run(0.3), _run(0.2), _ADAM),
    (
        Control("an edge at 1/η", "half the edge must miss", predict=half_edge),
        Control("an edge without memory", "2/η must miss where there is momentum", predict=memoryless),
        Control("one layer", "a model linear in its weights cannot sharpen", _ONE_LAYER, score=without_gate),
    ),
)
