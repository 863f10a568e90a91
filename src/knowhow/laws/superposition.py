"""Sparse features share directions, dense ones do not, and how many share is known before training.

**Statement** A narrow layer of 2 dimensions that must rebuild n features, each present with probability p, gives directions to as many of them as make the
expected loss least among regular arrangements: 2 at right angles (dense), 4 in two opposite pairs (between), all 5 as a pentagon with cosines cos 72° = .309
and cos 144° = −.809 (sparse). Number, cosines (±.02) and lengths (±2%) follow from n, p and the importances. Why compositional features appear, and why they
are not one to a neuron: what is rarely present at the same time can be kept in shared directions at the price of a little interference, so descent keeps more
features than it has dimensions and each as a direction of its own, readable apart from the others.

**Derivation** x̂ = ReLU(WᵀWx + b), loss Σ_i I_i E(x̂_i − x_i)², x_i uniform on 0…1 with probability p, else 0; w_i the columns of W.
(1) Dropping a feature (w_i = 0, b_i its mean) costs its variance I_i (p/3 − p²/4).
(2) Sparse: to first order in p at most one feature is present. Feature i with |w_i|² = 1 and b = 0 is rebuilt exactly, and it disturbs x̂_j by
ReLU(w_i·w_j x_i): nothing when w_i·w_j ≤ 0. Opposite pairs on two orthogonal axes keep 4 features free of charge. The fifth then costs p/3 if dropped. In a
pentagon every feature disturbs its two neighbours by cos 72° = .309: 5·2·(.309)²·p/3 = .955·p/3, already less than p/3; with longer directions and a negative
bias, which cuts small disturbances off, .54·p/3 at p = .05 and .24·p/3 at p = .001. So the pentagon wins, and by symmetry all angles are equal.
(3) Denser: several at once. Disturbances add, an opposite partner masks (of a pair both present the ReLU returns only the difference), at order p². Each
arrangement's loss has one length √a and one bias b: L_k(a, b) = Σ over present sets S of p^|S|(1−p)^{n−|S|} E_S Σ_i I_i (ReLU(a Σ_j cos_ij x_j + b) − x_i)²,
plus the dropped ones' variance; it is minimised over a and b by quadrature, for k = 2 at right angles (a = 1, b = 0: exact) and regular k-gons, k = 3 … n.
(4) Dense, p = 1: outputs are seldom negative, the ReLU does nothing, and the best linear map of rank 2 is the projection on the two directions of most weighted
variance (principal components): the 2 most important features at right angles, the others dropped.
At importances .9^i the least L_k is k = 5 up to p ≈ .12, k = 4 up to .5, k = 3 in a narrow band, k = 2 from .6: a phase diagram without a fitted number.

**Assumptions** Two dimensions and at most 8 features, independent, uniform when present; a run long enough to converge (gate: the directions' lengths changed
by less than 5% between the last two looks).

**Where it fails** Importances that differ bend the pentagon (.9^i: cosines off by .03, outside tolerance). Which features are dropped is chance where it costs
little (p = .3: not always the least important). Close to a change of phase the arrangements cost nearly the same, and either may be found (not tried).
Without a ReLU nothing is shared (the control). Equal importances at p = 1 leave the plane free. More dimensions have many more arrangements than polygons.

**Source** Elhage et al. 2022, Toy Models of Superposition (arXiv 2209.10652); the losses L_k are computed here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "superposition"
KEPT = "number of features that get a direction"
ANGLES = "greatest distance of a cosine between directions from the predicted arrangement"
LENGTH = "mean length of the directions"
COSINE, LENGTHS, HALF, SETTLED = 0.02, 0.02, 0.5, 0.05
MOST = 8
FARTHEST = 2.0
"""Distance of cosines where the number of directions differs from the arrangement's."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """`kept` directions, their common `length`, and the expected loss."""

    kept: int
    length: float
    loss: float


def directions(kept: int) -> np.ndarray:
    """Unit vectors 2K: two at right angles, or the corners of a regular polygon."""
    angles = np.arange(kept) * (np.pi / 2 if kept == 2 else 2 * np.pi / kept)
    return np.stack([np.cos(angles), np.sin(angles)])


def cosines(kept: int) -> list[float]:
    """Cosines of all pairs of the arrangement, rising."""
    unit = directions(kept)
    return sorted(float(value) for value in (unit.T @ unit)[np.triu_indices(kept, 1)])


@lru_cache(maxsize=256)
def arranged(kept: int, features: int, probability: float, decay: float, draws: int = 128) -> Arrangement:
    """The arrangement's least loss over length and bias: all sets of features present, with their probability, × `draws` points of the cube."""
    importance = decay ** np.arange(features)
    dropped = float(importance[kept:].sum() * (probability / 3 - probability**2 / 4))
    if kept == 2:
        return Arrangement(2, 1.0, dropped)
    cube = np.random.default_rng(0).random((draws, kept))
    sets = np.array(list(itertools.product((0, 1), repeat=kept)))
    weight = probability ** sets.sum(1) * (1 - probability) ** (kept - sets.sum(1)) / draws
    inputs = (sets[:, None, :] * cube).reshape(-1, kept)
    weights = np.repeat(weight, draws)
    unit = directions(kept)
    mixed = inputs @ (unit.T @ unit)

    def loss(at: np.ndarray) -> float:
        errors = np.maximum(at[0] * mixed + at[1], 0) - inputs
        return float(weights @ (errors**2 @ importance[:kept]))

    found = min(
        (minimize(loss, first, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-8}) for first in ([1.0, 0.0], [1.3, -0.2])), key=lambda m: m.fun
    )
    return Arrangement(kept, math.sqrt(max(0.0, float(found.x[0]))), float(found.fun) + dropped)


def _phases(diagnosis: Diagnosis) -> list[Arrangement]:
    """Every arrangement, the one of least loss first; empty where the facts are missing or the theory does not reach."""
    features, dims = fact(diagnosis, "features"), fact(diagnosis, "dims")
    probability, decay = fact(diagnosis, "probability"), fact(diagnosis, "importance_decay")
    if features is None or dims != 2 or probability is None or decay is None or not 2 < features <= MOST:
        return []
    return sorted((arranged(kept, int(features), probability, decay) for kept in range(2, int(features) + 1)), key=lambda found: found.loss)


def _predictions(found: Arrangement, diagnosis: Diagnosis) -> Sequence[Prediction]:
    return [
        predicted(NAME, KEPT, found.kept, found.kept, found.kept, diagnosis),
        predicted(NAME, ANGLES, 0.0, 0.0, COSINE, diagnosis, site=f"{found.kept} directions"),
        predicted(NAME, LENGTH, found.length, found.length * (1 - LENGTHS), found.length * (1 + LENGTHS), diagnosis),
    ]


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    phases = _phases(diagnosis)
    return _predictions(phases[0], diagnosis) if phases else ()


def _where_it_differs(diagnosis: Diagnosis, kept: int | None) -> Sequence[Prediction]:
    """Number and angles of the arrangement of `kept` directions (None: all features) where the law says another one; lengths can be alike."""
    phases = _phases(diagnosis)
    wanted = max((found.kept for found in phases), default=0) if kept is None else kept
    return [one for found in phases[1:] if found.kept == wanted for one in _predictions(found, diagnosis) if one.quantity != LENGTH]


def always_shared(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: all features share directions however dense they are."""
    return _where_it_differs(diagnosis, None)


def never_shared(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law, that of principal components: as many features as dimensions, however sparse they are."""
    return _where_it_differs(diagnosis, 2)


def _norms(row: Mapping[str, float]) -> dict[int, float]:
    return {int(name.rsplit(".", 1)[1]): value for name, value in row.items() if name.startswith("superposition.norm.")}


def _distance(row: Mapping[str, float], kept: Sequence[int], expected: Sequence[float]) -> float:
    found = sorted(row[f"superposition.cosine.{i}.{j}"] for i, j in itertools.combinations(sorted(kept), 2))
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) if len(found) == len(expected) else FARTHEST


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    looked = [row for row in trace.rows if "superposition.norm.0" in row]
    finite = len(looked) >= 2 and all(math.isfinite(value) for row in looked[-2:] for value in row.values())
    scored = []
    for prediction in (p for p in predictions if p.law == NAME):
        if not finite:
            scored.append(not_applicable(prediction, f"directions were looked at {len(looked)} times, or were no numbers"))
            continue
        norms, before = _norms(looked[-1]), _norms(looked[-2])
        moved = max(abs(norms[i] - before[i]) for i in norms)
        if moved > SETTLED:
            scored.append(not_applicable(prediction, f"the run has not converged: a length changed by {moved:.2g} between the last looks"))
            continue
        kept = [i for i, norm in norms.items() if norm > HALF]
        measured = {KEPT: float(len(kept)), LENGTH: sum(norms[i] for i in kept) / max(1, len(kept))}
        if prediction.quantity == ANGLES:
            measured[ANGLES] = _distance(looked[-1], kept, cosines(int(prediction.site.split()[0])))
        scored.append(compared(prediction, measured[prediction.quantity], because=f"lengths {', '.join(f'{norm:.2f}' for norm in norms.values())}"))
    return scored


def _experiment(probability: float, decay: float, steps: int, *, rectified: bool = True) -> Experiment:
    options = {"features": 5, "dims": 2, "probability": probability, "decay": decay, "rectified": rectified}
    return Experiment("sparse-features", steps, {"superposition": {"looks": 20}}, options, {"lr": 2e-2}, schedule="cosine")


LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "number of directions exact, cosines within .02, lengths within 2%",
    predict,
    score,
    (_experiment(0.05, 1.0, 1500), _experiment(0.3, 0.9, 1500), _experiment(1.0, 0.9, 1000)),
    (
        Control("always shared", "sharing must not pass for features that are present together", predict=always_shared),
        Control("never shared", "principal components must not pass for sparse features", predict=never_shared),
        Control("without a ReLU", "a layer that cannot cut disturbances off must not share", _experiment(0.05, 0.9, 1000, rectified=False)),
    ),
)
