"""The loss after the next step is foreseen by its expansion along the optimizer's own update.

**Statement** For any update u of the weights, whatever the optimizer, ΔL = g·u + ½ uᵀHu on the rows that g and H are taken on, as long as the
curvature term is small beside the slope term (|½uᵀHu| ≤ ½|g·u|).

**Derivation** Taylor: L(θ+u) − L(θ) = g·u + ½ uᵀHu + O(|u|³). The cubic term is what is left out; inside the gate it is small, because the same
ratio that bounds the second term beside the first bounds the third beside the second while the loss is smooth on the scale of u. The step along u at
which the predicted change turns positive again is a = −2 g·u / uᵀHu: the learning rate could be a times as large before this step raises the loss.

**Assumptions** The step is inside the gate; the loss on the looked-at rows is evaluated without dropout; no non-smooth kinks dominate (ReLU nets bend).

**Where it fails** Outside the gate (rates near the edge of stability): in a first measurement 18% at the median with SGD at .3, and the first-order
term alone is off by 91% there. The first-order law is the control: it must fail wherever curvature is felt.

**Source** Taylor's theorem; as a meter of training, Ghorbani et al. 2019 (arXiv 1901.10159).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "one-step"
QUANTITY = "median relative error of the predicted change of the loss in a step"
TOLERANCE = 0.02
GATE = 0.5
LEAST = 3


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return [predicted(NAME, QUANTITY, 0.0, 0.0, TOLERANCE, diagnosis)]


def _score(predictions: Sequence[Prediction], trace: Trace, which: str) -> Sequence[Scored]:
    looked = [row for row in trace.rows if "one_step.measured" in row]
    held = [row for row in looked if abs(row["one_step.curvature"]) / 2 <= GATE * abs(row["one_step.first"])]
    inside = len(held) / len(looked) if looked else 0.0
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if len(held) < LEAST:
            found.append(not_applicable(prediction, f"{len(held)} of {len(looked)} observed steps were inside the gate", inside=inside))
            continue
        errors = [abs(row[which] - row["one_step.measured"]) / abs(row["one_step.measured"]) for row in held if row["one_step.measured"]]
        found.append(
            compared(prediction, statistics.median(errors), because=f"{len(held)} of {len(looked)} observed steps were inside the gate", inside=inside)
        )
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _score(predictions, trace, "one_step.second")


def first_order(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The weaker law, without curvature."""
    return _score(predictions, trace, "one_step.first")


LAW = Law(
    NAME,
    __doc__,
    "dynamics",
    "median relative error inside the gate ≤ 2% (first order: 4% and more)",
    predict,
    score,
    (
        Experiment("markov-decoder", 60, {"one_step": {"every": 2}}, optimizer={"lr": 1e-3}),
        Experiment("markov-decoder", 60, {"one_step": {"every": 2}}, optimizer={"lr": 0.05, "rule": "sgd"}),
    ),
    (Control("first order alone", "a law that leaves curvature out must not pass", score=first_order),),
)
