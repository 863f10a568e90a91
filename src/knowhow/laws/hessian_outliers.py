"""A classifier's Hessian has one large eigenvalue fewer than it has classes.

**Statement** Midway through learning C classes (loss .1 to .5 nats), the Hessian's largest eigenvalues stand apart from the rest, and there are C − 1
of them, at most C: the widest gap, as a ratio of neighbours, lies right below them, however many weights or spare outputs the net has.
Why low rank appears: a loss over C classes can be felt steeply along C − 1 directions of the weights only, whatever the number of weights; gradient descent
moves fast in these and hardly elsewhere, so what it learns has low rank (how these follow from the equations of gradient-based learning).

**Derivation** Row i: logits z_i(θ), probabilities p_i, Jacobian J_i = ∂z_i/∂θ (C×P). The chain rule twice gives
H = (1/n) Σ_i J_iᵀ F_i J_i + (1/n) Σ_i Σ_k (p_ik − y_ik) ∇²z_ik, with F_i = diag(p_i) − p_i p_iᵀ = ∂²ℓ/∂z².
(1) The second sum is weighted by errors of both signs and small second derivatives (none within a ReLU layer but for products across layers); leave it out.
(2) F_i 1 = p_i − p_i (1·p_i) = 0: the softmax does not feel a number added to all logits. So F_i has rank C − 1, and so has its mean F̄.
(3) Split J_i = J̄ + δ_i into what rows share and what differs. Rows share much: ReLU activations are positive, so their mean over rows has a length like
that of their spread or more. The shared part J̄ᵀF̄J̄ has at most C − 1 nonzero eigenvalues: all its trace sits in C − 1 directions.
(4) The rest, Σ δ_iᵀF_iδ_i/n and cross terms, has up to n(C − 1) directions, and a trace of the same order as the shared part's, so each eigenvalue is
smaller by about the number of independent directions among the δ_i. Hence C − 1 outliers over a bulk.
(5) Classes make the δ_i cluster (J_i ≈ J_class): up to C(C − 1) eigenvalues between outliers and bulk (Papyan's three levels), and the first of these may
come near the outliers: hence "at most C". Classes that never occur have p ≈ 0, which removes their rows of F̄: it is classes seen that count, not outputs.

**Assumptions** Gate: at least two looks with loss between .1 and .5. Above, p is nearly uniform and outliers have not grown; below, only the few rows still
wrong have F_i ≠ 0, and they need not share a direction.

**Where it fails** Narrow nets: with 32 hidden units the ratio inside the outliers can exceed the gap (one seed of five at C = 5: gap after 2 of 4). At three
layers of 32 the gap wavered between 2, 4 and 5. A net with one output has one outlier whatever the clusters of its inputs (the control).

**Source** Sagun et al. 2017 (arXiv 1706.04454), number of outliers; Papyan 2019 (arXiv 1901.08244), three levels; Gauss–Newton split: Schraudolph 2002.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "hessian-outliers"
QUANTITY = "number of eigenvalues above the widest gap of the Hessian's spectrum"
WINDOW = (0.1, 0.5)
LEAST = 2


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """C − 1, at most C, from the number of classes; nothing for fewer than three (of one eigenvalue every spectrum has a first)."""
    classes = fact(diagnosis, "classes")
    return () if classes is None or classes < 3 else [predicted(NAME, QUANTITY, classes - 1, classes - 1, classes, diagnosis)]


def by_outputs(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong formula: outputs of the head in place of classes that occur."""
    outputs = fact(diagnosis, "outputs")
    return () if outputs is None else [predicted(NAME, QUANTITY, outputs - 1, outputs - 1, outputs, diagnosis)]


def widest(values: Sequence[float], most: int) -> int:
    """After how many of the falling `values` their ratio to the next is largest, among the first `most`; 0 where fewer than two are positive."""
    positive = [value for value in values if value > 0]
    ratios = [above / below for above, below in itertools.pairwise(positive)][:most]
    return ratios.index(max(ratios)) + 1 if ratios else 0


def spectrum(row: Mapping[str, float]) -> list[float]:
    found = []
    while f"hessian.value.{len(found) + 1}" in row:
        found.append(row[f"hessian.value.{len(found) + 1}"])
    return found


def typical(looks: Sequence[Sequence[float]]) -> list[float]:
    """The geometric mean over looks of the k-th eigenvalue, as far as all are positive numbers."""
    found = []
    for values in zip(*looks, strict=False):
        if not all(0 < value < math.inf for value in values):
            break
        found.append(math.exp(sum(map(math.log, values)) / len(values)))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    looked = [row for row in trace.rows if "hessian.loss" in row]
    inside = [row for row in looked if WINDOW[0] <= row["hessian.loss"] <= WINDOW[1]]
    share = len(inside) / len(looked) if looked else 0.0
    because = f"{len(inside)} of {len(looked)} looks were at a loss of {WINDOW[0]} to {WINDOW[1]}"
    values = typical([spectrum(row) for row in inside])
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        most = 2 * round(prediction.high)
        if len(inside) < LEAST or len(values) <= prediction.high + 1:
            short = because if len(inside) < LEAST else f"{len(values)} eigenvalues were kept, too few to see a gap after {prediction.high:.0f}"
            found.append(not_applicable(prediction, short, inside=share))
        else:
            found.append(compared(prediction, float(widest(values, most)), because=because, inside=share))
    return found


DESCENT = {"lr": 0.05, "rule": "sgd"}


def _experiment(steps: int, classes: int, outputs: int | None = None, target: str = "class") -> Experiment:
    looks = {"every": 8, "lanczos": 40, "largest": 20, "between": WINDOW}
    return Experiment("clusters", steps, {"hessian": looks}, {"classes": classes, "outputs": outputs, "target": target}, DESCENT)


LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "C − 1 or C, exactly",
    predict,
    score,
    (_experiment(80, 3), _experiment(100, 5), _experiment(150, 8), _experiment(96, 5, 12)),
    (
        Control(
            "one output",
            "without a softmax over classes there is nothing of rank C − 1, though the inputs have C clusters",
            _experiment(80, 5, target="number"),
        ),
        Control("outputs in place of classes", "a count of outputs, most of which never occur, must not pass", _experiment(96, 5, 12), predict=by_outputs),
    ),
)
