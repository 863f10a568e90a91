"""Pairs of factors keep the differences that they began with: the charges of the symmetries of a model's blocks.

**Statement** Whatever the loss, the data and the batch, plain gradient descent with rate η and decay λ changes each charge C = A − B of a model by
C' = (1−ηλ)²C + η²(G_A G_Aᵀ − G_B G_Bᵀ) in a step, exactly, G the gradients as the optimizer gets them (clipped or not). Charges: values against output
matrix per key-value group, W_V W_Vᵀ − Σ_h W_O,hᵀ W_O,h; queries against keys per rotary pair, Σ_h |Q_h,p|² − |K_p|² (whole matrices without rotation,
gains and sizes under query-key norms); up against down per neuron, |up_i|² − |down_i|²; a norm's gain against its readers' columns, γ_j² − Σ_r |W_r[:,
j]|²; LoRA's A Aᵀ − Bᵀ B. In the limit of small rates C(T) = C(0) Π(1 − η_k λ)², known before the run.

**Derivation** Take two factors that the loss sees only multiplied: L(A, B) = L(SA, S⁻ᵀB) for every S of a group. Put S = e^{sX} and differentiate at s = 0:

    tr(G_Aᵀ X A) − tr(G_Bᵀ Xᵀ B) = 0        for every generator X of the group.                    (1)

For all R × R matrices X this is G_A Aᵀ = B G_Bᵀ; for diagonal X, ⟨G_A, A⟩ = ⟨G_B, B⟩ row by row; where rows must move together, summed over them. It holds
on every batch, because the symmetry is the architecture's, not the data's. Now let A' = (1−ηλ)A − ηG_A, and B' likewise:

    A'A'ᵀ = (1−ηλ)² AAᵀ − η(1−ηλ)(G_A Aᵀ + A G_Aᵀ) + η² G_A G_Aᵀ,

and in A'A'ᵀ − B'B'ᵀ the terms of first order cancel by (1). As η → 0 at ηT fixed the last term vanishes: d(AAᵀ − BBᵀ)/dt = −2λ (AAᵀ − BBᵀ). Which S each
block allows:
* values and output: z_h = Σ_s p_hs (W_V x_s + b_V), y = Σ_h W_O,h z_h. Any invertible S on the group's K value dimensions: W_V → S W_V, b_V → S b_V,
  W_O,h → W_O,h S⁻¹ for all heads h that share them. A = (W_V | b_V), B = (W_O,hᵀ side by side over h).
* queries and keys: the score is (W_Q x)ᵀ R_{s−t} (W_K y), R turning the pair (i, i + K/2) by an angle that grows with distance. S must commute with every
  R: on each pair a complex number re^{iφ}. Its size r gives the charge; its phase φ has an antisymmetric X, so (1) holds for it but θᵀXθ = 0 and there is
  no charge. The full matrix W_Q W_Qᵀ − W_K W_Kᵀ is conserved only without rotation: the first control.
* up and down: down(act(gate x) ⊙ (up x + b)): one positive number per neuron. The gate is inside act, which no scaling passes unless it is homogeneous
  (ReLU): |gate_i|² − |down_i|² is the second control. GELU or SiLU without a gate: no charge.
* gain and readers: W_r(γ ⊙ x̂ + β), one number per channel, γ_j, β_j → e^s and column j of every W_r → e^{−s}. The norm must have no other reader.
* query-key norms: q = γ^q ⊙ W_Q x / |W_Q x|: the size of W_Q cannot be seen, so |W_Q,h|² is a charge alone (up to the norm's ε); the gains are a pair as
  above.
* LoRA: B A x, any S of R × R, whatever the base.

What other optimizers do instead follows from (1) too (maths/noether.py). Momentum μ: with ⟨x,y⟩ = x_A y_Aᵀ − x_B y_Bᵀ made symmetric and velocity v, the
combination C − 2ημ/(1−μ)⟨v,θ⟩ of weights and velocity is what is kept, up to η²(1+μ)/(1−μ)⟨v',v'⟩; the step's law C' = C − 2η(μ⟨v,θ⟩ + λC) + η²⟨v',v'⟩ is
scored. AdamW moves by u = m̂/(√v̂ + ε), which is not the gradient: C' = (1−ηλ)²C − 2η(1−ηλ)⟨u,θ⟩ + η²⟨u,u⟩ is driven at first order in η. (1) itself holds
under any optimizer and is scored as the gradient's asymmetry.

This answers why separated factors appear, and how it follows from the equations of gradient-based learning: with decay every charge dies as e^{−2ληt}, so the
factors of each product become balanced, AAᵀ = BBᵀ. Balanced factors share their singular values, a mode then grows at a rate set by its own size, the
small ones stay small: low rank. Without decay the imbalance of the start is kept for ever.

**Assumptions** Plain descent on both factors with one learning rate and one decay; neither tied to something that the loss sees elsewhere, nor frozen.
Where that fails the charge is not judged and the cause is named: tied, frozen, adapter, different rates or decays (biases and gains are often not decayed,
their partners are), momentum, Adam, Muon. Steps larger than four roundings of the weights. Residuals are |C' − predicted| / (|ΔA| + |ΔB|), ΔA and ΔB what
the step moved beside decay: with it in the measure a large decay would hide everything, a wrong charge too.

**Where it fails** Weights are kept in 32 bits. Rounding moves a charge by about 2·10⁻⁷|θ|²/√n a step, and where the gradient's pull on both halves is
small beside its length (queries and keys on a task that needs no attention; gains near 1) that is not small beside |ΔA| + |ΔB|: of the weights as stored
the residual of queries and keys reached .0018 (rate .05) and .026 (.003) in the small model, .0092 (.05) in the embedded base, .0050 (.05) and .12 (.003)
in stories260K, above the tolerance of .001; gains .0016 and .026 in the small model.
The law is therefore judged on weights taken back to before their rounding, no further than rounding can have moved them; the experiment in 64 bits has no
such correction to speak of and gives the same. The flow limit is off by what η² adds: at η = .05 by up to .9. AdamW .3–.9 and
momentum .9 up to 1 by the plain law. Norms of queries and keys: up to ε/σ².

**Source** Noether 1918; Du, Hu and Lee 2018 (arXiv 1806.00900) and Arora, Cohen and Hazan 2018 (1802.06509) for linear layers; Kunin et al. 2021
(2012.04728) for flow, decay and momentum. The discrete law, rotary pairs, grouped values and gains are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from knowhow.laws.law import RUN, Control, Experiment, Law, column, columns, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "noether"
DISCRETE = "largest residual of the discrete law"
SYMMETRY = "largest asymmetry of the gradient"
FLOW = "largest residual of the flow limit"
VELOCITY = "largest residual of the law with velocity"
TOLERANCE = 1e-3
FLOW_TOLERANCE = 0.05
FLOW_RATE = 0.003
WRONG = 0.1
LEAST = 3
CAUSES = {
    "adam": "Adam: preconditioned steps drive charges at first order in the rate",
    "muon": "Muon: orthogonalised steps drive charges at first order in the rate",
    "momentum": "momentum: the velocity remembers gradients of other weights",
    "rates": "different learning rates of the two factors",
    "decay": "different decays of the two factors (decay groups)",
    "frozen": "a factor that is frozen",
    "rounding": "rounding: steps not larger than four roundings of the weights",
}


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    rate, momentum = fact(diagnosis, "lr"), fact(diagnosis, "momentum")
    adam, decay = fact(diagnosis, "adam"), fact(diagnosis, "weight_decay")
    kinds = [
        m.metric.removeprefix("charges.")
        for m in diagnosis.measurements
        if m.site == RUN and m.metric.startswith("charges.") and m.metric != "charges.excluded" and m.value > 0
    ]
    if not kinds or rate is None or momentum is None or adam is None or decay is None:
        return ()
    found = [predicted(NAME, DISCRETE, 0.0, 0.0, TOLERANCE, diagnosis, kind) for kind in kinds]
    found += [predicted(NAME, SYMMETRY, 0.0, 0.0, TOLERANCE, diagnosis, kind) for kind in kinds]
    if not adam and momentum:
        found += [predicted(NAME, VELOCITY, 0.0, 0.0, TOLERANCE, diagnosis, kind) for kind in kinds]
    if not adam and not momentum and rate <= FLOW_RATE:
        found += [predicted(NAME, FLOW, 0.0, 0.0, FLOW_TOLERANCE, diagnosis, kind) for kind in kinds]
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    names = {DISCRETE: "residual", SYMMETRY: "symmetry", FLOW: "flow", VELOCITY: "velocity"}
    return [_scored(prediction, trace, names[prediction.quantity]) for prediction in predictions if prediction.law == NAME and prediction.quantity in names]


def _scored(prediction: Prediction, trace: Trace, name: str) -> Scored:
    kind = f"charges.{prediction.site}"
    kept, looks = [row[f"{kind}.{name}"] for row in trace.rows if f"{kind}.{name}" in row], len(values(trace, f"{kind}.sites"))
    inside = len(kept) / looks if looks else 0.0
    if not all(map(math.isfinite, kept)):
        return not_applicable(prediction, f"{kind}.{name} holds what is no number", inside=0.0)
    if len(kept) < LEAST or not values(trace, f"{kind}.symmetry"):
        return not_applicable(prediction, _broken(trace, kind) or f"{len(kept)} of {looks} looks could be judged", measured=_worst(trace, kind), inside=inside)
    said = compared(prediction, kept[-1] if name == "flow" else max(kept), because=f"{len(kept)} of {looks} looks", inside=inside)
    notes = []
    if name == "residual":
        notes = [f"{_most(trace, f'{kind}.stored'):.2g} of the weights as rounded", _broken(trace, kind), _excluded(trace)]
    if said.verdict == "violated":
        notes.insert(0, _why(trace, kind))
    return replace(said, because="; ".join([said.because, *filter(None, notes)]))


def _broken(trace: Trace, kind: str) -> str:
    """What the way the factors are moved does to the charges: cause and size of the residual."""
    causes = {name.removeprefix(f"{kind}.broken."): _most(trace, name) for name in columns(trace, f"{kind}.broken.")}
    return "; ".join(f"broken by {CAUSES.get(word, word)} (residual up to {size:.2g})" for word, size in causes.items())


def _worst(trace: Trace, kind: str) -> float | None:
    found = [value for name in columns(trace, f"{kind}.broken.") for value in values(trace, name)]
    return max(found, default=None)


def _excluded(trace: Trace) -> str:
    counts = {name.removeprefix("charges.excluded."): int(_most(trace, name)) for name in columns(trace, "charges.excluded.")}
    return "not derived: " + ", ".join(f"{count} {word}" for word, count in counts.items()) if counts else ""


def _why(trace: Trace, kind: str) -> str:
    """The cause of a violation that nothing known explains."""
    asymmetry, shown = _most(trace, f"{kind}.symmetry"), column(trace, "charges.decay")
    if asymmetry > TOLERANCE:
        return f"the gradient itself moves the charge ({asymmetry:.2g}): a factor is tied or read elsewhere, or the block is not what its anatomy says"
    declared = dict(column(trace, "charges.declared_decay"))
    off = max(((abs(value - declared[step]), value, declared[step]) for step, value in shown if step in declared), default=(0.0, 0.0, 0.0))
    if off[0] > 0.01 * max(abs(off[2]), 1e-4):
        return f"wrong decay: the charges show {off[1]:.3g}, the optimizer declares {off[2]:.3g}"
    return "the weights did not move by rate times gradient"


def _most(trace: Trace, name: str) -> float:
    return max(values(trace, name), default=math.nan)


def _instead(site: str, name: str) -> Callable[[Sequence[Prediction], Trace], Sequence[Scored]]:
    """The discrete law said of a charge that is none; it must be off by WRONG at least."""

    def scored(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
        own = [replace(one, high=WRONG) for one in predictions if one.quantity == DISCRETE and one.site == site]
        plain, kept = values(trace, f"charges.{site}.residual"), values(trace, f"charges.wrong.{name}.residual")
        return [compared(one, max(kept)) if plain and kept else not_applicable(one, "no run of plain descent") for one in own]

    return scored


def undecayed(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The law that forgets decay, where there is some."""
    own = [one for one in predictions if one.quantity == DISCRETE]
    found = [(one, values(trace, f"charges.{one.site}.undecayed")) for one in own if max(values(trace, "charges.declared_decay"), default=0.0) > 0]
    return [compared(one, max(kept)) if kept else not_applicable(one, "no run of plain descent") for one, kept in found]


def ungated(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The law of plain descent, where Adam moved the weights."""
    own = [(one, values(trace, f"charges.{one.site}.broken.adam")) for one in predictions if one.quantity == DISCRETE]
    return [compared(one, max(kept)) if kept else not_applicable(one, "no run of AdamW") for one, kept in own]


SGD = {"rule": "sgd", "decayed": "all"}
LOOKS = {"charges": {"looks": 10}}
SMALL = {"model": "seedling", "rows": 2, "length": 32, "states": 64}

LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "residual of the discrete law and asymmetry of the gradient ≤ .001; flow limit ≤ .05 where the rate is ≤ .003; wrong charges ≥ .1",
    predict,
    score,
    (
        Experiment("charges", 20, LOOKS, options={"rows": 8}, optimizer={**SGD, "lr": 0.05, "weight_decay": 0.05}, warm=150),
        Experiment("charges", 20, LOOKS, options={"rows": 8}, optimizer={**SGD, "lr": 0.003}, warm=150),
        Experiment("charges", 20, LOOKS, options={"rows": 1, "tied": True}, optimizer={"rule": "sgd", "lr": 0.0125, "weight_decay": 0.05}, warm=150, clip=0.5),
        Experiment("charges", 20, LOOKS, options={"double": True, "rows": 8}, optimizer={**SGD, "lr": 0.003, "weight_decay": 0.05}, warm=150),
        Experiment("charges", 6, {"charges": {"every": 2}}, options=SMALL, optimizer={**SGD, "lr": 0.05}),
        Experiment("charges", 6, {"charges": {"every": 2}}, options=SMALL, optimizer={**SGD, "lr": 0.05, "weight_decay": 0.05}),
        Experiment("charges", 20, LOOKS, options={"lora": 4}, optimizer={**SGD, "lr": 0.05, "weight_decay": 0.05}, warm=20),
        Experiment(
            "charges", 12, {"charges": {"every": 1}}, options={"double": True}, optimizer={**SGD, "lr": 0.005, "momentum": 0.9, "weight_decay": 0.05}, warm=20
        ),
        Experiment("charges", 20, {"charges": {"looks": 6}}, optimizer={"lr": 1e-3, "weight_decay": 0.05, "decayed": "all"}, warm=20),
    ),
    (
        Control("full query-key matrix", "rotation leaves only pairs conserved", score=_instead("qk", "qk_full")),
        Control("gate against down", "the gate is inside the activation", score=_instead("up_down", "gate_down")),
        Control("decay forgotten", "a law that does not know decay must not pass", score=undecayed),
        Control("AdamW by the law of plain descent", "a preconditioned step is not the gradient", score=ungated),
    ),
)
