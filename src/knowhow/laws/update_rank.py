"""Training changes a matrix in few directions, and how few is foreseen from its first gradient.

**Statement** The stable rank |ΔW|²_F / |ΔW|²_2 of what AdamW adds to a hidden matrix is far below the matrix's size, and about that of the first
gradient after Adam's normalisation, G/√(E G²): within a factor of four.

**Derivation** The gradient of a linear map is a sum of outer products of what came in and what comes back, G = Σ_i δ_i x_iᵀ, so its column space is
spanned by the errors and its row space by the features: for a task of C classes the errors behind the head live in C − 1 directions, and upstream in
their images. Gradient descent adds such matrices up and adds few new directions. Adam divides each entry by its own root mean square, which makes weak
entries as large as strong ones: a rank-one matrix of varied entries becomes a sign matrix, of rank one still when signs are uᵀ-and-v-like, of higher
stable rank where noise decides the signs. So the normalised first gradient, not the bare one, has about the spectrum of what AdamW will add.

**Assumptions** AdamW, a full-rank fine-tune (an adapter's rank is its own), at least some tens of steps, hidden matrices.

**Where it fails** After very many steps directions that came later add up, and the rank grows; the factor says so by its upper side.

**Source** LoRA: Hu et al. 2021 (arXiv 2106.09685); low rank by gradient descent on a product: Arora et al. 2019 (arXiv 1905.13655). It answers why low
rank appears: a gradient is an outer product of few errors with few features, and descent adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence

from knowhow.laws.law import Law, by_site, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "update-rank"
QUANTITY = "stable rank of what training adds to this matrix"
SCALE, FACTOR = 1.0, 4.0
LEAST_STEPS = 20


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    steps = fact(diagnosis, "steps")
    if not steps or steps < LEAST_STEPS or not fact(diagnosis, "adam"):
        return ()
    ranks = by_site(diagnosis, "adam.stable_rank")
    return [predicted(NAME, QUANTITY, SCALE * rank, max(1.0, SCALE * rank / FACTOR), SCALE * rank * FACTOR, diagnosis, site) for site, rank in ranks.items()]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    measured: dict[str, float] = {}
    for row in trace.rows:
        measured |= {name.split(":", 1)[1]: value for name, value in row.items() if name.startswith("update.stable_rank:") and value == value}
    found = []
    for one in (p for p in predictions if p.law == NAME):
        value = measured.get(one.site)
        if value is None:
            found.append(not_applicable(one, "what training added to this matrix was not measured" if not measured else "this matrix was not trained"))
        else:
            found.append(Scored(one, value, value / one.value, "confirmed" if one.low <= value <= one.high else "violated"))
    return found


LAW = Law(NAME, __doc__, "simplicity", "within a factor of 4 for each matrix", predict, score, ())
