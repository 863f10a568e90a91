"""The learning rate above which training breaks down is foreseen from one gradient.

**Statement** With AdamW at a constant rate a run ends above the loss that it started from when the rate exceeds the distance d* at which one step along
the signs of the first gradient, the fresh head's included, makes the loss 2.2 times what it was: η_max ≈ 1.45 d*, up to a factor of two.

**Derivation** Adam moves every weight by about η a step, whatever the gradient's size: u₁ = −η sign(g). With β₁ = .9 later steps stay about that long in
each weight, so at a constant rate the weights never come closer to anything than a step, and the loss of a run that goes nowhere is the loss at the
typical distance of one step from wherever it is. For small η that lies below the start, for large η logits of size η·|features|₁ are thrown about and
it lies above. A run's later steps are shorter than the first (m/√v is 1 at the first step and smaller wherever gradients disagree), so the rate at which
its mean loss passes its start is the one at which the first step overshoots it by a factor. The two numbers, 2.2 and 1.45, are measured on three models ×
two tasks (bench/learning_rates.py) and not derived; with 1.45 from five of the pairs the sixth is within a factor of two each time.

**Assumptions** AdamW, constant rate, β₁ = .9, β₂ = .95, gradient norm clipped at 1, a batch of the size that the gradient was taken on or so.

**Where it fails** Warm-up and decay move the ceiling up. It says where a run breaks, not which rate is best: good rates lie tens or hundreds of times
lower (the plan takes them from the distance at which the first step helps most). Within a build it can only be refuted, not confirmed at its edge: a run
far below the ceiling that stays stable says little, and the verdict says which side was seen.

**Source** The rule 2/sharpness for gradient descent: Cohen et al. 2021 (arXiv 2103.00065); preconditioned: Cohen et al. 2022 (arXiv 2207.14484). Signs
as Adam's first step: Balles and Hennig 2018 (arXiv 1705.07774). Answers what a builder needs, which rates not to try; and how the limit follows from the
equations of gradient-based learning.
"""

from __future__ import annotations

from collections.abc import Sequence

from knowhow.laws.law import Law, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "learning-rate-ceiling"
QUANTITY = "largest stable learning rate"
FACTOR, SCALE = 2.0, 1.45


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    distance = fact(diagnosis, "start.ceiling")
    if distance is None or not fact(diagnosis, "adam"):
        return ()
    value = SCALE * distance
    return [predicted(NAME, QUANTITY, value, value / FACTOR, value * FACTOR, diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """From `run.lr`, the rate that was trained at, and `run.diverged`, 1 where that broke down; several runs may stand in one trace."""
    tried = [(row["run.lr"], bool(row["run.diverged"])) for row in trace.rows if {"run.lr", "run.diverged"} <= row.keys()]
    measured = values(trace, "run.ceiling")
    found = []
    for one in (p for p in predictions if p.law == NAME):
        if measured:
            within = one.low <= measured[-1] <= one.high
            found.append(Scored(one, measured[-1], measured[-1] / one.value, "confirmed" if within else "violated", "bisected"))
            continue
        broke = [lr for lr, gone in tried if gone and lr < one.low]
        held = [lr for lr, gone in tried if not gone and lr > one.high]
        if broke or held:
            found.append(Scored(one, (broke or held)[0], None, "violated", f"{'diverged' if broke else 'stable'} at {(broke or held)[0]:g}"))
        elif below := [lr for lr, gone in tried if not gone and lr <= one.low]:
            found.append(Scored(one, None, None, "confirmed", f"stable at {max(below):g}, below the interval; its upper side was not tried"))
        else:
            found.append(not_applicable(one, "no run outside the interval" if tried else "no run", inside=0.0))
    return found


LAW = Law(NAME, __doc__, "use", "within a factor of 2 of the bisected ceiling", predict, score, ())
