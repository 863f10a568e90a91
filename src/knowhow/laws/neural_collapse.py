"""Past zero training error, weight decay draws the features of each class to one point, and the points to a regular simplex.

**Statement** Let a classifier of C balanced classes read d features, C ≤ d + 1. When it has long been trained past zero error under weight decay, the
class means of what its head reads, centred on their mean, have equal lengths and pairwise cosines −1/(C−1), and rows differ from their class's mean
by little beside the distances between means (NC1 → 0).
Why low rank and separated factors appear: features end in C − 1 dimensions whatever their number, and the classes stand as far apart as C directions can,
because among all ways to fit the labels this one costs the fewest squared weights.

**Derivation** The layers below are free enough to place each row's features anywhere, at a price: weight decay on head W (C×d) and on the layers that
make the features h_i acts as L = (1/N) Σ_i ℓ(W h_i, c_i) + (λ_W/2)|W|² + (λ_H/2N) Σ_i |h_i|², ℓ the cross-entropy.
(1) One point a class. ℓ is convex in h_i. Put every row of class c at its mean h_c: by Jensen's inequality the first term does not rise, and Σ|h_i|²
falls by exactly the spread inside the class. So at a minimum there is none.
(2) What is left. With M = (h_1 … h_C) and Z = WM the logits C×C, the two penalties at a given Z are least when W and M share them evenly, and that least
is μ|Z|_*, μ = √(λ_W λ_H / C), the nuclear norm (the law `nuclear-norm`). So Z minimises F(Z) = (1/C) Σ_c ℓ(Z_c, c) + μ|Z|_*, which is convex.
(3) Symmetry. F(PZPᵀ) = F(Z) for every relabelling P when classes are balanced; the average of a minimum over all P is then a minimum too, and only
aI + b11ᵀ is invariant under all P. Cross-entropy does not feel a vector 1 added to a column, and projecting it out lowers the nuclear norm, so
Z = a(I − 11ᵀ/C); the minimum is unique since ℓ is strictly convex once the vector 1 is projected out. For μ above a threshold a = 0.
(4) Evenly shared: M = √(a/s) U (I − 11ᵀ/C) and W = √(as) (I − 11ᵀ/C) Uᵀ, s² = λ_H/(Cλ_W), U (d×C) orthonormal on the C − 1 dimensions that are used.
Hence MᵀM ∝ I − 11ᵀ/C: equal lengths, cosine (−1/C)/(1 − 1/C) = −1/(C−1), and W parallel to Mᵀ.
Where a normalisation fixes the size of the features, Σ|h_i|² is given instead of penalised: the same minimum, with λ_H as its multiplier.
How fast: at a rate set by decay; e.g. the imbalance of W and M dies like e^{−2ηλt}. A short fine-tune has no time for it.
What the mean cosine does not test: centred means sum to zero, so with equal lengths the mean cosine is −1/(C−1) whatever the angles. The standard deviation
of the cosines and NC1 carry the weight of the evidence.

**Assumptions** Gates: two classes or more; C ≤ d + 1; smallest class at least .8 of the largest and of 10 rows; training accuracy 100% at the end; decay
has acted since zero error for Σ ηλ ≥ 1 (with momentum μ of plain descent ηλ/(1−μ)).

**Where it fails** Shallow nets without normalisation: placing features is not equally cheap in all directions, so what the inputs looked like stays (two ReLU
layers of 64 on these clusters: standard deviation of cosines .06–.14, NC1 .07–.08, and they stay there). Decay on the gains and biases of the
normalisation as well: unstable late (standard deviation .07–.13 while NC1 falls to .003). Frozen features: not at all (the control). Unbalanced classes:
small classes' heads fall together (Fang 2021), which is outside the gate.

**Source** Papyan, Han, Donoho 2020 (arXiv 2008.08186), NC1–NC3; the derivation follows Zhu et al. 2021 (arXiv 2105.02375) and Fang et al. 2021 (arXiv
2101.12699).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "neural-collapse"
MEAN = "mean cosine between centred class means"
SPREAD = "standard deviation of the cosines between centred class means"
WITHIN = "spread inside classes in units of the spread between them (NC1)"
LENGTHS = "coefficient of variation of the class means' lengths"
COLUMNS = {MEAN: "geometry.cosine_mean", SPREAD: "geometry.cosine_std", WITHIN: "geometry.nc1", LENGTHS: "geometry.norm_cv"}
TOLERANCES = {MEAN: 0.01, SPREAD: 0.05, WITHIN: 0.05, LENGTHS: 0.05}
BALANCE, LEAST, ACTED = 0.8, 10, 1.0


def _predictions(diagnosis: Diagnosis, cosine: float, quantities: Sequence[str]) -> Sequence[Prediction]:
    made = []
    for quantity in quantities:
        value = cosine if quantity == MEAN else 0.0
        low = value - TOLERANCES[MEAN] if quantity == MEAN else 0.0
        made.append(predicted(NAME, quantity, value, low, value + TOLERANCES[quantity], diagnosis))
    return made


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """From the number of classes alone; of a single class nothing is said (see `score`)."""
    classes = fact(diagnosis, "classes")
    if classes is None:
        return ()
    return _predictions(diagnosis, -1 / (classes - 1) if classes > 1 else 0.0, list(COLUMNS))


def _shut(last: Mapping[str, float], looked: Sequence[Mapping[str, float]]) -> str:
    """Why the assumptions do not hold at the end of a run; empty when they do."""
    classes, width = last["geometry.classes"], last["geometry.width"]
    if not classes >= 2:
        return "rows of one class only"
    if not classes <= width + 1:
        return f"{classes:.0f} classes do not fit a simplex in {width:.0f} features"
    if not last["geometry.balance"] >= BALANCE:
        return f"classes are unbalanced: the smallest has {last['geometry.balance']:.0%} of the rows of the largest"
    if not last["geometry.least"] >= LEAST:
        return f"a class has {last['geometry.least']:.0f} rows, too few to tell the spread inside it"
    if last["geometry.accuracy"] != 1.0:
        return f"training accuracy is {last['geometry.accuracy']:.1%}, not 100%"
    acted = decayed(looked)
    return "" if acted >= ACTED else f"since zero error, decay has acted for Σηλ = {acted:.2g}, less than {ACTED:.0f}: too short or too weak"


def decayed(looked: Sequence[Mapping[str, float]]) -> float:
    """Σ ηλ over the steps since the first look after the last one at which a row was answered wrongly."""
    total = 0.0
    for before, after in itertools.pairwise(looked):
        right = before["geometry.accuracy"] == 1.0 and after["geometry.accuracy"] == 1.0
        total = total + after["geometry.decay"] * (after["step"] - before["step"]) if right else 0.0
    return total


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    looked = [row for row in trace.rows if "geometry.classes" in row]
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        because = _shut(looked[-1], looked) if looked else "no row with one class was observed"
        measured = looked[-1].get(COLUMNS[prediction.quantity]) if looked else None
        if because or measured is None:
            found.append(not_applicable(prediction, because or "the class means were not observed", measured=measured))
        else:
            share = sum(row["geometry.accuracy"] == 1.0 for row in looked) / len(looked)
            found.append(compared(prediction, measured, because=f"Σηλ = {decayed(looked):.2g} since zero error", inside=share))
    return found


def orthogonal(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong formula: class means at right angles."""
    return _predictions(diagnosis, 0.0, [MEAN])


def one_too_many(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong formula: the cosine of a simplex of C + 1 corners, −1/C."""
    return _predictions(diagnosis, -1 / (fact(diagnosis, "classes") or 1.0), [MEAN])


def angles_and_spread(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Without the mean cosine, which equal lengths alone would set, and the lengths themselves."""
    return [prediction for prediction in predict(diagnosis) if prediction.quantity in (SPREAD, WITHIN)]


DESCENT = {"lr": 0.05, "rule": "sgd", "momentum": 0.9, "weight_decay": 5e-3}
LOOKS = {"geometry": {"looks": 16}}

LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "mean cosine within .01 of −1/(C−1), standard deviation ≤ .05, NC1 ≤ .05, lengths' coefficient of variation ≤ .05",
    predict,
    score,
    (
        Experiment("clusters", 900, LOOKS, options={"classes": 5, "normalised": True}, optimizer=DESCENT, schedule="wsd"),
        Experiment("clusters", 900, LOOKS, options={"classes": 3, "normalised": True}, optimizer=DESCENT, schedule="wsd"),
    ),
    (
        Control("orthogonal class means", "a wrong angle must not pass", predict=orthogonal),
        Control("one corner too many", "the cosine of a simplex of C + 1 corners must not pass", predict=one_too_many),
        Control(
            "frozen features",
            "zero error and decay of the head alone must not collapse features that nothing moves",
            experiment=Experiment(
                "clusters",
                1000,
                LOOKS,
                options={"classes": 5, "normalised": True, "target": "features-frozen"},
                optimizer={"lr": 0.15, "rule": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
            ),
            predict=angles_and_spread,
        ),
    ),
)
