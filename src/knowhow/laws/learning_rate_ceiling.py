"""The learning rate above which training breaks down is foreseen from one gradient.

**Statement** With AdamW at a constant rate, training diverges above a rate that is a fixed multiple of the distance d* at which a single step along the
signs of the first gradient stops helping: η_max ≈ c · d*, with c the same for all models and tasks up to a factor of two.

**Derivation** Adam's first step moves every weight by η, whatever the gradient's size: u₁ = −η sign(g). Along that line the loss on rows that the
gradient was not taken on falls, turns and comes back to its start at d*: −2 g·s / sᵀHs to second order, s = sign(g). Later steps are sums of
normalised gradients m/√v whose coordinates are mostly noise: their part along s is smaller by the share of a coordinate's gradient that is signal, about
1/√(batches that agree), so that many times d* can be walked before the same curvature is felt; c is that number, and it is measured, not derived.

**Assumptions** AdamW, constant rate, β₁ = .9, β₂ = .95, gradient norm clipped at 1, a batch of the size that the gradient was taken on or larger.

**Where it fails** Warm-up and decay move the ceiling up; a much larger batch makes steps more alike and moves it down. Within a build the law can only be
refuted, not confirmed at its edge: a run far below the ceiling that stays stable says little, and the verdict says which side was seen.

**Source** The rule 2/sharpness for gradient descent: Cohen et al. 2021 (arXiv 2103.00065); preconditioned: Cohen et al. 2022 (arXiv 2207.14484). Signs
as Adam's first step: Balles and Hennig 2018 (arXiv 1705.07774). Answers what a builder needs: which rates not to try; and how the limit follows from the
equations of gradient-based learning.
"""

from __future__ import annotations

from collections.abc import Sequence

from knowhow.laws.law import Law, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "learning-rate-ceiling"
QUANTITY = "largest stable learning rate"
MULTIPLE = 40.0
FACTOR = 2.0


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    distance = fact(diagnosis, "line.ceiling")
    if distance is None or not fact(diagnosis, "adam"):
        return ()
    value = MULTIPLE * distance
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
