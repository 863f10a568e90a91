"""Linear attention learns to regress in context one direction at a time, and its plateaus have losses that can be told beforehand.

**Statement** A layer of linear attention whose heads have keys and queries of their own, trained on in-context linear regression with inputs of
covariance Λ and N examples, goes through plateaus: after m directions are learned, those of the largest eigenvalues first, the loss stands at
L_m = trΛ − Σ_{d ≤ m} λ_d / (1 + (1 + trΛ/λ_d)/N), between sudden drops.

This is an answer to why circuits appear at all, and appear suddenly: each drop is one head that becomes "key · value along an eigenvector of the data,
query along the same"; the heads grow by multiplying each other (value × key × query), so for a long time nothing, then all of it, and one after the
other because the strongest direction's product grows first. The skill is composed of one factor per head, not spread over all of them.

**Derivation** One head writes value · (1/N Σ yₙ k·xₙ)(q·x): all heads together ŷ = β·Mx with β = 1/N Σ yₙxₙ and M = Σ v k qᵀ. With x ~ N(0, Λ),
w ~ N(0, 1), y = w·x and S = 1/N Σ xxᵀ, β = Sw, so L = E(w·x − w·S M x)² = tr E[(1 − SM) Λ (1 − SM)ᵀ] = trΛ − 2 tr(ΛMΛ) + tr(E[S²] M Λ Mᵀ). For
Gaussian inputs E[S²] = Λ² + (Λ² + Λ trΛ)/N. In Λ's own basis a diagonal M = diag(m_d) gives L = Σ_d [λ_d − 2λ_d² m_d + λ_d² (λ_d(1 + 1/N) + trΛ/N) m_d²];
each direction has its minimum at m_d = 1/(λ_d(1 + 1/N) + trΛ/N), which is worth λ_d²·m_d = λ_d / (1 + (1 + trΛ/λ_d)/N). A direction that is learned is
at its minimum and one that is not is at zero; these are the saddles, which is L_m. Order: near zero the gradient of a head is dv/dt = 2 kᵀΛ²q and likewise
for k and q; the product along direction d grows as 2λ_d² times the square of the head's size, so the direction of the largest eigenvalue escapes
first; at the m-th saddle Λ² is left without the learned directions, and the next one is λ_{m+1}.
With key and query merged into one matrix U per head, dU/dt = 2vΛ² and dv/dt = 2 tr(UΛ²): one growing direction, all eigenvectors at once: one drop.

**Assumptions** A small start (else plateaus blur); separate eigenvalues; more heads than directions; gradient flow (small steps, plain descent, no
decay; no prediction otherwise); the loss is the expectation over sequences. Gate: what follows the last drop is scored only when the run has come down to
within .1% of the loss of all directions (else it ended too soon: not applicable).

**Where it fails** With fresh sequences at each step (no prediction) the noise of the gradient lifts plateaus by some tenths of a per cent and shakes them
so that drops can no longer be told from noise in runs of a few thousand steps. With a start that is not small a plateau becomes a bend, and the law
says violated; with few heads the last direction may wait ten times as long. Softmax attention, several layers and inputs that are not Gaussian are
outside of it: it is a toy, whose worth is that every number is known.

**Source** Zhang, Singh, Latham and Saxe 2025 (arXiv 2501.16265): the plateaus' losses for separate keys and queries, and the single drop for merged ones.
Derived again above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import find_peaks

from knowhow.laws.law import Control, Experiment, Law, by_site, column, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "linear-attention"
PLATEAU = "loss at the plateau"
COUNT = "number of sudden drops"
TOLERANCE = 1e-3
POINTS = 400
SLOW, PROMINENCE = 1e-3, 0.3
"""A drop: the loss's fall between two of the POINTS, of at least SLOW of the first loss, stands out by so many decades over what is on either side."""


def plateaus(eigenvalues: Sequence[float], context: float) -> list[float]:
    """L_0 … L_D (Zhang 2025)."""
    ordered, trace = sorted(eigenvalues, reverse=True), sum(eigenvalues)
    worth = [value / (1 + (1 + trace / value) / context) for value in ordered]
    return [trace - total for total in itertools.accumulate(worth, initial=0.0)]


def without_context(eigenvalues: Sequence[float], _: float) -> list[float]:
    """The same with endless context: a direction learned is a direction gone."""
    return [sum(eigenvalues) - total for total in itertools.accumulate(sorted(eigenvalues, reverse=True), initial=0.0)]


def weakest_first(eigenvalues: Sequence[float], context: float) -> list[float]:
    """The same directions learned in the opposite order."""
    falls = [before - after for before, after in itertools.pairwise(plateaus(eigenvalues, context))]
    return [sum(eigenvalues) - total for total in itertools.accumulate(reversed(falls), initial=0.0)]


def _predict(diagnosis: Diagnosis, losses: Callable[[Sequence[float], float], list[float]]) -> Sequence[Prediction]:
    eigenvalues, context = by_site(diagnosis, "eigenvalue"), fact(diagnosis, "context")
    if not eigenvalues or not context or fact(diagnosis, "adam") or fact(diagnosis, "momentum") or fact(diagnosis, "weight_decay"):
        return ()
    if fact(diagnosis, "sampled"):
        return ()
    levels = losses(list(eigenvalues.values()), context)
    found = [predicted(NAME, COUNT, len(eigenvalues), len(eigenvalues), len(eigenvalues), diagnosis)]
    for place, level in enumerate(levels[1:], 1):
        found.append(predicted(NAME, PLATEAU, level, level * (1 - TOLERANCE), level * (1 + TOLERANCE), diagnosis, f"plateau.{place}"))
    return found


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _predict(diagnosis, plateaus)


def _levels(diagnosis: Diagnosis, losses: Callable[[Sequence[float], float], list[float]]) -> Sequence[Prediction]:
    """A wrong formula's plateaus, where they are not the law's own."""
    pairs = zip(_predict(diagnosis, losses), _predict(diagnosis, plateaus), strict=True)
    return [wrong for wrong, right in pairs if wrong.low > right.high or wrong.high < right.low]


def endless(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _levels(diagnosis, without_context)


def reversed_order(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _levels(diagnosis, weakest_first)


def measured_plateaus(risks: Sequence[tuple[int, float]]) -> list[float]:
    """Losses at which descent is slowest between two drops, and the last one. A drop is a peak of the loss's speed; the loss is read at POINTS even steps."""
    loss = np.asarray([risk for _, risk in risks])
    loss = loss[np.unique(np.linspace(0, len(loss) - 1, POINTS).round().astype(int))]
    falls = -np.diff(loss)
    speed = np.log10(np.maximum(falls, SLOW * loss[0]))
    peaks, _ = find_peaks(np.concatenate([[speed.min()], speed, [speed.min()]]), prominence=PROMINENCE)
    between = [first + int(np.argmin(falls[first:second])) for first, second in itertools.pairwise(peaks - 1)]
    return [float(loss[place]) for place in between] + ([float(loss[-1])] if len(peaks) else [])


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    risks = column(trace, "risk")
    mine = [p for p in predictions if p.law == NAME]
    if len(risks) < POINTS:
        return [not_applicable(p, f"the expected loss was kept at {len(risks)} steps; {POINTS} are needed to tell plateaus from drops") for p in mine]
    found = measured_plateaus(risks)
    last = min((p.value for p in mine if p.quantity == PLATEAU), default=math.inf)
    unfinished = risks[-1][1] > last * (1 + TOLERANCE)
    scored = []
    for prediction in mine:
        place = int(prediction.value) if prediction.quantity == COUNT else int(prediction.site.rpartition(".")[2])
        if unfinished and place >= max(1, len(found)):
            scored.append(not_applicable(prediction, f"the run ended at a loss of {risks[-1][1]:.3g}, before everything was learned"))
        elif prediction.quantity == COUNT:
            scored.append(compared(prediction, float(len(found))))
        else:
            scored.append(compared(prediction, found[place - 1] if place <= len(found) else math.nan))
    return scored


_TASK = {"eigenvalues": (1.0, 0.55, 0.3, 0.17), "heads": 64, "start": 0.01}
_SEPARATE = Experiment("in-context-regression", 3600, {}, _TASK, {"lr": 0.25, "rule": "sgd"})
_MERGED = Experiment("in-context-regression", 1500, {}, {**_TASK, "merged": True}, {"lr": 0.05, "rule": "sgd"})
LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "every plateau within .1%; as many drops as directions, strongest first",
    predict,
    score,
    (_SEPARATE,),
    (
        Control("merged keys and queries", "one growing direction: one drop", _MERGED),
        Control("endless context", "a formula without N must miss the plateaus", predict=endless),
        Control("weakest direction first", "the wrong order must miss the plateaus", predict=reversed_order),
    ),
)
