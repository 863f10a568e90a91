"""A deep linear network learns one mode after another, each at a time that can be told beforehand.

**Statement** A two-layer linear network W = W₂W₁ on whitened inputs learns the singular modes of its task one by one, the strongest first. The part
u of a mode of strength s that is learned at time t = step × learning rate follows u(t) = s / (1 + (s/u₀ − 1) e^{−2st}): nothing for a long time, then a
sudden rise. It passes the share f of s at t = ln((s/u₀ − 1) f/(1 − f)) / 2s; half of it at t½ = ln(s/u₀ − 1) / 2s.

This is an answer to how low rank and separated factors appear: nothing in the loss asks for low rank, but the gradient of a product of weights is
proportional to the weights themselves, so that strong modes outrun weak ones exponentially and the network passes through maps of rank 1, 2, 3, … on its
way; stopped early, it has kept few factors, each of them a singular direction of the data.

**Derivation** Let 1/n Σ xxᵀ = 1 and 1/n Σ yxᵀ = M = Σ s_α u_α v_αᵀ. The loss ½⟨|y − W₂W₁x|²⟩ is ½|W₂W₁ − M|² plus a constant, so gradient flow is
dW₁/dt = W₂ᵀ(M − W₂W₁), dW₂/dt = (M − W₂W₁)W₁ᵀ. Look along one mode: a = W₁v_α and b = W₂ᵀu_α, both vectors of the hidden layer. If different modes
use orthogonal hidden directions (aligned start), u_β·W₂W₁v_α = 0 for β ≠ α and the equations close: da/dt = (s − a·b) b, db/dt = (s − a·b) a.
Their difference obeys d(a − b)/dt = −(s − a·b)(a − b): it does not grow, so after a small start a = b, and u = a·b = |a|² obeys
du/dt = 2u(s − u), the logistic equation. Separate: ∫ du / u(s − u) = 2t, hence ln[u(s − u₀) / u₀(s − u)] = 2st, which is the statement.
From a small random start: while u ≪ s, d(a ± b)/dt = ±s(a ± b), so only (a + b)/2 grows, and u₀ = |a + b|²/4 takes the place of the start. A step of
plain gradient descent is t → t + η, with an error of relative size ηs/2 in the time: (1 + ηs) stands in place of e^{ηs}.

**Assumptions** Whitened inputs (gate: the largest entry of |⟨xxᵀ⟩ − 1| ≤ 1%); plain full-batch gradient descent with ηs ≪ 1, no decay; a small start
(u₀ < 5% of s); nearly orthogonal hidden directions of the modes (no prediction where two of them overlap by more than .4 at the start: random directions
in R hidden units overlap by about R^−½, so a wide hidden layer will do); the mode is due before the run ends (else not applicable for that mode).

**Where it fails** In a narrow layer with a random start modes share hidden directions, and a strong mode that is being learned takes room from the weak
ones: with as many hidden units as modes (six) the third mode came up to 18% late, while with 100 hidden units every mode came within 2.5%. With one
layer there are no plateaus at all (u = s(1 − e^{−st}); control), and with momentum or Adam time is another. Nonlinear networks follow it only in so far
as they are linear in the modes concerned.

**Source** Saxe, McClelland and Ganguli 2014 (arXiv 1312.6120): the two-layer equations for aligned modes and their logistic solution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from knowhow.laws.law import Control, Experiment, Law, by_site, column, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "mode-times"
SHARES = {f"step at which {round(100 * share)}% of the mode is learned": share for share in (0.1, 0.5, 0.9)}
ALIGNED, RANDOM = 0.005, 0.05
WHITE, OVERLAP = 0.01, 0.4


def time(strength: float, start: float, share: float) -> float:
    """When a mode has grown from `start` to `share` of its strength, in units of step × learning rate (Saxe 2014)."""
    return math.log((strength / start - 1) * share / (1 - share)) / (2 * strength)


def shallow(strength: float, start: float, share: float) -> float:
    """The same with one layer: u = s − (s − u₀)e^{−st}."""
    return math.log((1 - start / strength) / (1 - share)) / strength


def _predict(diagnosis: Diagnosis, when: Callable[[float, float, float], float]) -> Sequence[Prediction]:
    strengths, starts = by_site(diagnosis, "strength"), by_site(diagnosis, "start")
    rate, aligned = fact(diagnosis, "lr"), fact(diagnosis, "aligned")
    if not rate or aligned is None or fact(diagnosis, "adam") or fact(diagnosis, "momentum") or fact(diagnosis, "weight_decay"):
        return ()
    if (fact(diagnosis, "overlap") or 0.0) > OVERLAP:
        return ()
    tolerance = ALIGNED if aligned else RANDOM
    sites = [site for site in strengths if 0 < starts.get(site, 0.0) < 0.05 * strengths[site]]
    sites = sites
    found = []
    for site in sites:
        for quantity, share in SHARES.items():
            step = 1 + when(strengths[site], starts[site], share) / rate
            found.append(predicted(NAME, quantity, step, step * (1 - tolerance), step * (1 + tolerance), diagnosis, site))
    return found


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _predict(diagnosis, time)


def one_layer(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The times of a network without a hidden layer."""
    return _predict(diagnosis, shallow)


def crossed(steps: Sequence[tuple[int, float]], level: float) -> float | None:
    """The step at which a series first reaches `level`, interpolated; None when it never does or starts above."""
    for (before, low), (after, high) in itertools.pairwise(steps):
        if low < level <= high:
            return before + (after - before) * (level - low) / (high - low)
    return None


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    white = values(trace, "modes.whiteness")
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        learned = column(trace, f"modes.learned.{prediction.site.rpartition('.')[2]}")
        if not learned or not white:
            found.append(not_applicable(prediction, "nobody watched the modes"))
        elif max(white) > WHITE:
            found.append(not_applicable(prediction, f"the inputs are not white: ⟨xxᵀ⟩ is {max(white):.2g} away from 1"))
        elif prediction.high > learned[-1][0]:
            found.append(not_applicable(prediction, f"the run ended at step {learned[-1][0]}, before the mode was surely due"))
        else:
            step = crossed(learned, SHARES[prediction.quantity])
            residual = None if step is None else step / prediction.value - 1
            found.append(compared(prediction, math.nan if step is None else step, residual=residual))
    return found


_WATCH = {"modes": {"every": 10}}
_PLAIN = {"lr": 0.002, "rule": "sgd"}
LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "times of 10, 50 and 90% of every mode within .5% (aligned start) or 5% (random start, wide layer)",
    predict,
    score,
    (
        Experiment("deep-linear", 2400, _WATCH, optimizer=_PLAIN),
        Experiment("deep-linear", 1800, _WATCH, options={"aligned": False, "start": 0.003, "width": 100}, optimizer=_PLAIN),
    ),
    (
        Control("the times of one layer", "a formula without the product of weights must miss the plateaus", predict=one_layer),
        Control("a network of one layer", "without the product no plateaus appear", Experiment("deep-linear", 1200, _WATCH, {"layers": 1}, optimizer=_PLAIN)),
    ),
)
