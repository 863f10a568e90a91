"""Induction heads come with the fall of the loss on repeated text, out of two layers, and only where distance alone cannot do it.

**Statement** Trained on random tokens of which a segment comes back at a random distance, an attention-only model of two layers forms an induction head
(prefix-matching score at least 0.8) above a previous-token head, and the score rises within 60 steps of the steepest fall of the loss. One layer does not
form it (at most 0.2), and at a fixed distance two layers copy without it (at most 0.15). This is why compositional circuits appear: the data's regularity
(what followed this token before) is not a function of any one layer, each part of the circuit has a gradient only through the others, and so the parts appear
together.

**Derivation** Let token x_i stand at i and first at j: the next one is x_{j+1}. A head of layer one computes Σ_k softmax_k(x_iᵀ M x_k + b_{i−k}) v_k: the key
at j+1 holds x_{j+1} alone, which says nothing of x_j, so no M prefers j+1 to any other place where the distance is random: at best 1/(number of distances),
the bound that the control meets. If layer one moves the token before into each place with strength a (the key at j+1 then holds a·x_j), layer two can match
it with strength m, x_iᵀ M x_j = m, and copy with strength c. Near the start the gain in the loss on copied tokens is, to leading order, L ≈ ln V − κ a m c:
no term of it holds one part alone. Descent gives da/dt = κ m c, dm/dt = κ a c, dc/dt = κ a m: then a² − m² and a² − c² are conserved, and from a balanced
start ds/dt = κ s², s(t) = s₀/(1 − κ s₀ t): a plateau of length 1/(κ s₀) and a sudden end, at which all three rise at once. So loss and scores turn at the
same step, not in the order of the layers. With a fixed distance d the bias b alone finds j+1 = i − d + 1, a product of one factor less (b and c), which is
faster and leaves the matching part without a gradient.

**Assumptions** The first and second occurrence are both in the window; distances vary; tokens are many enough not to repeat by chance; position can be told
(rotary here).

**Where it fails** The plateau's length varies with the start: after 400 steps one seed of five was still on it. The order of the parts is not foretold
(Edelman 2024 see the second layer learn first): only that they come together. Other circuits do the same in other architectures (two-token keys by a
convolution; a pointer by position). The score is a mean over the probe: a head that shares the work with another can stay below the bar while the pair copies
well.

**Source** Olsson et al. 2022 (arXiv 2209.11895), prefix matching; Elhage et al. 2021, composition of two layers; Edelman et al. 2024 (arXiv 2402.11004),
stages; Saxe 2014 for products of factors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, column, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "induction"
SCORE = "prefix-matching score of the best head at the end"
TOGETHER = "steps between the steepest fall of the loss on copies and the steepest rise of the score"
BEFORE = "steps between the steepest rise of the previous-token score and of the prefix-matching score"
COPIED = "loss at the end on the copies that training supervises, nats"
HIGH, SHALLOW, POSITIONAL, WINDOW, LEARNT = 0.8, 0.2, 0.15, 60, 0.25
LEAST = 5
ROSE = 0.3
LAST = 20


def _deep(diagnosis: Diagnosis) -> list[Prediction]:
    return [
        predicted(NAME, SCORE, 0.9, HIGH, 1.0, diagnosis),
        predicted(NAME, TOGETHER, 0.0, -WINDOW, WINDOW, diagnosis),
        predicted(NAME, BEFORE, 0.0, -WINDOW, WINDOW, diagnosis),
    ]


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Nothing unless the run is one of copying."""
    layers, random, blind = (fact(diagnosis, name) for name in ("layers", "random_distance", "copy_loss_blind"))
    if layers is None or random is None or blind is None:
        return ()
    if not random:
        return [predicted(NAME, SCORE, 0.0, 0.0, POSITIONAL, diagnosis), predicted(NAME, COPIED, 0.0, 0.0, LEARNT * blind, diagnosis)]
    return _deep(diagnosis) if layers >= 2 else [predicted(NAME, SCORE, 0.0, 0.0, SHALLOW, diagnosis)]


def _measured(trace: Trace) -> dict[str, float]:
    """Quantity → number; differences of steps are NaN where nothing rose."""
    scores, before, losses = column(trace, "circuits.induction"), column(trace, "circuits.previous"), column(trace, "circuits.copy_loss")
    steepest = _steepest(scores)
    rose = max(value for _, value in scores) - scores[0][1] > ROSE
    supervised = [value for _, value in column(trace, "loss")][-LAST:]
    return {
        SCORE: scores[-1][1],
        TOGETHER: _steepest([(step, -value) for step, value in losses]) - steepest if rose else math.nan,
        BEFORE: _steepest(before) - steepest if rose else math.nan,
        COPIED: sum(supervised) / len(supervised) if supervised else math.nan,
    }


def _steepest(points: Sequence[tuple[int, float]]) -> float:
    """Middle of the interval in which the value rises most a step."""
    rises = [((after - value) / (later - step), (step + later) / 2) for (step, value), (later, after) in itertools.pairwise(points)]
    return max(rises)[1] if rises else math.nan


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    mine = [prediction for prediction in predictions if prediction.law == NAME]
    looks = min(len(column(trace, name)) for name in ("circuits.induction", "circuits.previous", "circuits.copy_loss"))
    if looks < LEAST:
        return [not_applicable(prediction, f"heads were looked at {looks} times, {LEAST} are needed") for prediction in mine]
    measured = _measured(trace)
    return [compared(prediction, measured[prediction.quantity]) for prediction in mine]


def depth_ignored(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The wrong law: one layer makes an induction head."""
    return _deep(diagnosis)[:1] if fact(diagnosis, "layers") == 1 else ()


def distance_ignored(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The wrong law: whoever copies has an induction head."""
    return _deep(diagnosis)[:1] if fact(diagnosis, "random_distance") == 0 else ()


def experiment(steps: int, layers: int = 2, distance: int | None = None) -> Experiment:
    options = {"layers": layers, "distance": distance}
    return Experiment("copying", steps, {"circuits": {"every": 10, "vocab": 32}}, options=options, optimizer={"lr": 1e-2}, schedule="wsd", warmup=0.1)


LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "two layers, random distance: score ≥ 0.8, risen within 60 steps of the loss's fall; one layer: ≤ 0.2; fixed distance: copied with score ≤ 0.15",
    predict,
    score,
    (experiment(600), experiment(300, layers=1), experiment(200, distance=16)),
    (
        Control("one layer", "a part of the circuit alone must not pass", predict=depth_ignored),
        Control("fixed distance", "copying by position must not pass", predict=distance_ignored),
    ),
)
