"""A net that generalises modular addition computes with waves, and it does so after it has learnt by heart.

**Statement** Trained on part of the p² pairs of (a + b) mod p, a net of squared units first remembers its pairs, then builds a circuit of waves, and then
sheds what it no longer needs. At the end its centred logits are a sum Σ_k α_k cos(2πk(a+b−c)/p) (at least 90% of their variance), and each hidden unit
carries a single frequency (median share of its power at least 90%). This is why a compositional circuit appears: the features are the group's own waves, and
the unit of structure is one frequency, because units of different frequencies do not interact in the loss, so that each can be learnt, scaled and decayed by
itself.

**Derivation** Unit h computes (u_h(a) + v_h(b))² and is read out with w_h(c). Let u_h = A cos(ωa+φ), v_h = A cos(ωb+ψ), ω = 2πk/p. The square holds 2uv = A²
[cos(ω(a+b)+φ+ψ) + cos(ω(a−b)+φ−ψ)], and u², v², whose waves are cos(2ωa+2φ) and cos(2ωb+2ψ). Read out with w = cos(ωc+φ+ψ), the first wave gives ½A²
cos(ω(a+b−c)) + ½A² cos(ω(a+b+c) + 2(φ+ψ)). Averaged over units of one k with independent φ and ψ, every term that still holds a phase vanishes (the one in
a+b+c, the one in a−b, the ones in 2a and 2b), and only cos(ω(a+b−c)) is left (Gromov 2023). Summed over k = 1 … (p−1)/2 with equal weights it is ½(p δ(a+b≡c)
− 1), the answer itself: it is exact. Why descent finds it: (1) at the optimum of the squares over *all* pairs the function is δ(a+b≡c) − 1/p after centring,
and that function has no other Fourier component than (k, k, −k); the gradient of the correlation ⟨f, δ⟩ = Σ_h Σ_k û_h(k) v̂_h(k) ŵ_h(k)* + c.c. couples u, v,
w only at equal k, so within a unit each k grows as d û/dt ∝ v̂* ŵ (and cyclically): a product of three, which grows as a power and not exponentially, so the
largest frequency of a unit leaves the others behind (a race, one winner a unit; He 2026 prove it for gradient flow). (2) Weight decay λ shrinks û, v̂, ŵ
alike; the contribution û v̂ ŵ of norm r³ costs 3λr², so one frequency of norm r in a unit costs less than two of r/2^(1/3) each: sparsity in frequency within
a unit is what the norm rewards. (3) Remembering a pair costs weights that serve this pair alone; a wave serves all p² pairs, so its gradient adds up over the
pairs: it wins where pairs are many (above a critical share), later than memory since it starts from a product of three small numbers.

**Assumptions** Enough pairs (share above about one half at p = 31, see below); units enough to average the phases (several times p); trained until the seen
pairs are right. Squared units and squares of one-hot answers are used here because the solution is then exact. Not needed: in this set-up weight decay only
speeds generalising up (it came without, in a first measurement, as Gromov found).

**Where it fails** With too few pairs the net remembers and stays there; with answers dealt out at random there is no wave to find: both are controls. With
squared units *all* frequencies are used (Morwani 2023 derive this); the few key frequencies of Nanda's transformer belong to another architecture. With one
table for both operands the phases φ = ψ cannot cancel and a part |cos(ω(a−b)/2)| of the amplitude stays: explained variance was .87 to .89 there with
cross-entropy, below this law's bar. The delay is short at this size (a factor of two in steps, not of ten).

**Source** Nanda et al. 2023 (arXiv 2301.05217); Gromov 2023 (arXiv 2301.02679), the analytic solution; Morwani et al. 2023 (arXiv 2311.07568), one frequency
a unit from margin; He et al. 2026 (arXiv 2602.16849), frequencies that compete within a unit and the stages; Power et al. 2022 (arXiv 2201.02177).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "grokking"
EXPLAINED = "share of the centred logits' variance along cos(2πk(a+b−c)/p)"
SINGLE = "median share of a hidden unit's power at one frequency"
DELAY = "steps to generalise ÷ steps to remember"
SHED = "sum of squared weights at the end ÷ when all pairs were remembered"
LEAST, LATER, LESS, RIGHT = 0.9, 1.5, 0.8, 0.99


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Nothing unless the run is one of modular addition."""
    if fact(diagnosis, "prime") is None:
        return ()
    found = [
        predicted(NAME, EXPLAINED, 1.0, LEAST, 1.001, diagnosis),
        predicted(NAME, SINGLE, 1.0, LEAST, 1.001, diagnosis),
        predicted(NAME, DELAY, 2.0, LATER, math.inf, diagnosis),
    ]
    if fact(diagnosis, "weight_decay"):
        found.append(predicted(NAME, SHED, 0.6, 0.0, LESS, diagnosis))
    return found


def _measured(trace: Trace, direction: str) -> dict[str, float]:
    """Quantity → number; NaN where a phase did not come."""
    looks = [row for row in trace.rows if "fourier.seen" in row]
    last = looks[-1]
    remembered, generalised = _first(looks, "fourier.seen"), _first(looks, "fourier.unseen")
    both = remembered is not None and generalised is not None
    return {
        EXPLAINED: last[direction],
        SINGLE: last["fourier.single"],
        DELAY: generalised["step"] / remembered["step"] if both and generalised and remembered else math.nan,
        SHED: last["fourier.norm"] / remembered["fourier.norm"] if both and remembered else math.nan,
    }


def _first(looks: Sequence[Mapping[str, float]], accuracy: str) -> Mapping[str, float] | None:
    return next((row for row in looks if row[accuracy] >= RIGHT), None)


def _score(predictions: Sequence[Prediction], trace: Trace, direction: str) -> Sequence[Scored]:
    mine = [prediction for prediction in predictions if prediction.law == NAME]
    seen = values(trace, "fourier.seen")
    if not seen:
        return [not_applicable(prediction, "nobody looked at the waves") for prediction in mine]
    if max(seen) < RIGHT:
        return [not_applicable(prediction, f"the seen pairs were never all right (at best {max(seen):.2f})") for prediction in mine]
    measured = _measured(trace, direction)
    inside = sum(value >= RIGHT for value in seen) / len(seen)
    because = f"unseen pairs right at the end: {values(trace, 'fourier.unseen')[-1]:.2f}"
    return [compared(prediction, measured[prediction.quantity], because=because, inside=inside) for prediction in mine]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _score(predictions, trace, "fourier.explained")


def difference(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The wrong formula: waves of a − b − c."""
    return _score([prediction for prediction in predictions if prediction.quantity == EXPLAINED], trace, "fourier.difference")


def experiment(share: float = 0.65, shuffled: bool = False) -> Experiment:
    return Experiment(
        "modular-sum",
        1200,
        {"fourier": {"every": 20, "prime": 31}},
        options={"prime": 31, "share": share, "shuffled": shuffled},
        optimizer={"lr": 3e-3, "weight_decay": 0.3, "decayed": "all"},
    )


LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "waves explain ≥ 90%, one frequency takes ≥ 90% of the median unit, generalising takes ≥ 1.5× the steps of remembering, weights shrink to ≤ 80%",
    predict,
    score,
    (experiment(),),
    (
        Control("answers at random", "a net that can only remember has no wave to find", experiment(shuffled=True)),
        Control("too few pairs", "a net that never generalises must not pass", experiment(share=0.3)),
        Control("waves of a − b − c", "another direction of the same size must not pass", score=difference),
    ),
)
