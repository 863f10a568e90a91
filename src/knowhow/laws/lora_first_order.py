"""LoRA's first move is the full gradient seen through the random A, and AAᵀ − BᵀB is kept by every step.

**Statement** For W + sBA with B = 0 at the start, plain gradient descent on the same rows gives B_K ≈ −ηK s G A₀ᵀ, G = ∂L/∂W at the base, while the
first-order gain η K s²|G A₀ᵀ|² stays below .4% of the loss: direction, length, the split over modules and the columns' overlap with G's leading left
singular space are known before training. And under any batch, at every step, the charge C = AAᵀ − BᵀB obeys exactly
C′ = (1−ηλ)²C + η²(G_A G_Aᵀ − G_Bᵀ G_B), G_A = ∂L/∂A, G_B = ∂L/∂B.

**Derivation** The chain rule: ∂L/∂B = s G Aᵀ, ∂L/∂A = s Bᵀ G. At B = 0 the second vanishes: A stands still while B moves by −η s G A₀ᵀ. After k steps
B = O(ηk), so A has moved by O(η²k²) and G by the same order as the loss did: the sum of K first steps is −ηK s G A₀ᵀ up to that order. The loss falls by
|∂L/∂B|² Ση. The columns of B span G·(r random directions), so they lie in the left singular space that G's large singular values own: the update is of
low rank twice, by construction and because G is.
The charge: W is unchanged by A → RA, B → BR⁻¹ for every invertible R. Hence A G_Aᵀ = s A Gᵀ B = G_Bᵀ B and, transposed, G_A Aᵀ = Bᵀ G_B. A step A′ = aA − ηG_A,
B′ = aB − ηG_B with a = 1 − ηλ gives
    A′A′ᵀ = a²AAᵀ − aη(G_A Aᵀ + A G_Aᵀ) + η²G_A G_Aᵀ,    B′ᵀB′ = a²BᵀB − aη(Bᵀ G_B + G_Bᵀ B) + η²G_Bᵀ G_B;
in the difference the cross terms cancel, and what is left is the law. The flow's law, without the η² terms, is what remains as η → 0.
So this answers why low rank and separated factors appear: the factors' Gram matrices must grow together, and they grow in the directions that the
gradient of the whole matrix has, which is of low rank; and it follows from the equations of gradient-based learning alone.

**Assumptions** Plain gradient descent without momentum (gate: `lora.plain`); for the direction the same rows at every step (fact `same_rows`), at least
3 steps, and a predicted gain of at most .4% of the loss (gate); float32.

**Where it fails** Adam divides every entry by its size: the first update is a sign matrix, the modules' shares follow their sizes, the charge is not
kept (control). With fresh rows of 48 sequences at every step the cosine falls to .94, for B follows the mean gradient, not the first. The gate is narrow,
because A begins to move as the square of the time: at a predicted gain of .8% of the loss lengths were 2 to 8% above the law's, at 2.4% the cosine was
.95, at 3.5% .91 (a gate at 10%, as a first measurement on another model had suggested, does not hold here). Of modules with next to no gradient (queries
and keys of a small decoder) the charge alone is below what float32 can show; modules are therefore taken together.

**Source** LoRA-One, Zhang et al. 2025 (arXiv 2502.01235), the first step of B; Hu et al. 2021 for the parametrisation; balancedness: Du et al. 2018,
Arora et al. 2018. The discrete charge of LoRA is derived above.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from knowhow.laws.law import Control, Experiment, Law, Score, by_site, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "lora-first-order"
COSINE, LENGTH = "cosine of B and −s G A₀ᵀ, all modules", "length of B per unit of Ση"
SHARE, OVERLAP = "share of |B|² that this module holds", "overlap of B's columns with the gradient's leading left space, mean over modules"
CHARGE = "how far AAᵀ − BᵀB is from its discrete law, relative to what the gradients moved"
LEAST_COSINE, CHARGE_TOLERANCE, LENGTH_TOLERANCE, SHARE_TOLERANCE, OVERLAP_TOLERANCE = 0.98, 1e-3, 0.05, 0.02, 0.05
GATE, LEAST = 0.004, 3


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return [] if fact(diagnosis, "adam") or fact(diagnosis, "momentum") else whatever_the_optimizer(diagnosis)


def whatever_the_optimizer(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The law without its assumption on the optimizer."""
    sizes = by_site(diagnosis, "lora_gradient")
    total = math.sqrt(sum(size**2 for size in sizes.values()))
    if not total > 0:
        return []
    found = [predicted(NAME, CHARGE, 0.0, 0.0, CHARGE_TOLERANCE, diagnosis)]
    if not fact(diagnosis, "same_rows"):
        return found
    found.append(predicted(NAME, COSINE, 1.0, LEAST_COSINE, 1.0 + 1e-6, diagnosis))
    found.append(predicted(NAME, LENGTH, total, total * (1 - LENGTH_TOLERANCE), total * (1 + LENGTH_TOLERANCE), diagnosis))
    for site, size in sizes.items():
        share = (size / total) ** 2
        found.append(predicted(NAME, SHARE, share, share - SHARE_TOLERANCE, share + SHARE_TOLERANCE, diagnosis, site))
    overlaps = by_site(diagnosis, "lora_overlap")
    if overlaps:
        mean = statistics.mean(overlaps.values())
        found.append(predicted(NAME, OVERLAP, mean, mean - OVERLAP_TOLERANCE, mean + OVERLAP_TOLERANCE, diagnosis))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _scored(predictions, trace, gated=True)


def ungated(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """Direction and charge of a run outside the assumptions."""
    return _scored([p for p in predictions if p.quantity in (COSINE, CHARGE)], trace, gated=False)


def _scored(predictions: Sequence[Prediction], trace: Trace, *, gated: bool) -> Sequence[Scored]:
    looked = [row for row in trace.rows if "lora.time" in row and math.isfinite(row["loss"])]
    plain = all(row.get("lora.plain") == 1.0 for row in looked)
    held = [row for row in looked if row["lora.predicted_gain"] <= GATE * looked[0]["loss"]] if gated else looked
    inside = len(held) / len(looked) if looked else 0.0
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if not looked or (gated and not plain):
            found.append(not_applicable(prediction, "the factors do not move by plain gradient descent" if looked else "no LoRA factors were followed"))
        elif prediction.quantity == CHARGE:
            found.append(_charge(prediction, trace, len(looked)))
        elif len(held) < LEAST:
            found.append(not_applicable(prediction, f"{len(held)} steps with a predicted gain below {GATE:.1%} of the loss", inside=inside))
        else:
            step = int(held[-1]["step"])
            found.append(compared(prediction, _measured(prediction, held[-1]), because=f"at step {step}, the last inside the gate", inside=inside))
    return found


def _charge(prediction: Prediction, trace: Trace, looked: int, name: str = "lora.charge") -> Scored:
    gaps = values(trace, name)
    if len(gaps) < max(LEAST, looked):
        return not_applicable(prediction, "a charge needs every step looked at")
    return compared(prediction, gaps[-1], because=f"after {len(gaps)} steps")


def _measured(prediction: Prediction, row: Mapping[str, float]) -> float:
    names = {COSINE: "lora.cosine", OVERLAP: "lora.overlap", SHARE: f"lora.{prediction.site}.share"}
    if prediction.quantity == LENGTH:
        return row.get("lora.length", math.nan) / row["lora.time"] if row["lora.time"] > 0 else math.nan
    return row.get(names[prediction.quantity], math.nan)


def another_charge(name: str) -> Score:
    """The score of a charge that is not conserved, from its own column."""

    def scored(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
        looked = len(values(trace, "lora.time"))
        return [_charge(p, trace, looked, name) for p in predictions if p.quantity == CHARGE]

    return scored


def another_start(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The direction as it would be had A₀ its rows in another order."""
    others = values(trace, "lora.cosine_other")
    return [compared(p, others[-1]) if others else not_applicable(p, "not followed") for p in predictions if p.quantity == COSINE]


_EVERY = {"lora": {"every": 1}}
_ROWS = Experiment("lora-decoder", 20, _EVERY, optimizer={"lr": 0.05, "rule": "sgd"})

LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "cosine ≥ .98, length within 5%, shares within .02, overlap within .05; charge within 1e-3",
    predict,
    score,
    (_ROWS, Experiment("lora-decoder", 30, _EVERY, {"fixed": False}, {"lr": 0.1, "rule": "sgd", "weight_decay": 0.05, "decayed": "all"})),
    (
        Control("the sum instead of the difference", "AAᵀ + BᵀB belongs to no symmetry", score=another_charge("lora.charge_sum")),
        Control("the flow's charge", "without the η² terms the law holds only as η → 0", score=another_charge("lora.charge_flow")),
        Control("another A₀", "the direction must depend on the A that was drawn", score=another_start),
        Control(
            "AdamW",
            "a sign-like update neither follows G A₀ᵀ nor keeps the charge",
            Experiment("lora-decoder", 12, _EVERY, optimizer={"lr": 1e-3}),
            predict=whatever_the_optimizer,
            score=ungated,
        ),
    ),
)
