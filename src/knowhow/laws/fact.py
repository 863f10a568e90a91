"""Where training with L2 comes to rest, every layer's weights are made of the features that lower the loss.

**Statement** At a stationary point of L + (λ/2)|W|² every linear layer z = Wh obeys WᵀW = −(1/λ) 1/n Σ_i ∇_hℓ_i h_iᵀ, in all entries, where h_i is the
layer's input on row i and ∇_hℓ_i the loss's gradient by it, through this layer. How far the two sides agree (their cosine, layer by layer) is a
meter of convergence that rises to 1 as training comes to rest.

This is an answer to why features appear: the directions that a layer reads, WᵀW, are neither an accident nor the data's variance; they are exactly those
input directions h whose products with the loss's own gradient still add up when training rests. What no longer helps any row decays as e^{−ηλt}; so low
rank and separated factors follow from the decay and from the stationarity of gradient descent.

**Derivation** Stationarity in W: 0 = 1/n Σ_i (∂ℓ_i/∂z_i) h_iᵀ + λW. Multiply by Wᵀ from the left: WᵀW = −(1/λ) 1/n Σ_i (Wᵀ∂ℓ_i/∂z_i) h_iᵀ, and
Wᵀ∂ℓ_i/∂z_i = ∇_hℓ_i by the chain rule. No assumption on the network enters, not even on the other layers. It is a theorem about a point; the claim that can
fail is that training gets there: with steps of size η the part of W that no gradient holds up decays as e^{−ηλt}, which takes a few times 1/(ηλ)
steps, divided by 1 − β with momentum β.

**Assumptions** Decay in the gradient (gate: not Adam's decoupled decay, and λ > 0); long enough, 3 ≤ ηλ·steps/(1 − β) (gate); all rows at every step
(gate: minibatch gradients scatter); a loss that is smooth in the weights; a rate below the edge of stability at the end.

**Where it fails** ReLU networks come to lie on kinks, where the gradient jumps and never vanishes: the first layer's cosine stays at .86 to .95 however
long the run (control). Before convergence the cosine is anything, negative at the start (control). Under AdamW the rest point is another: the
preconditioned gradient stands where the gradient does here (control). The neural feature ansatz, WᵀW ∝ (1/n Σ ∇_h f ∇_h fᵀ)^½ (Radhakrishnan 2024),
describes the same matrices without λ and holds less well (control): .95 to .989 in its worst layer, where the theorem comes to .997 and more.

**Source** Boix-Adsera et al. 2025 (arXiv 2507.05644): the theorem, there called FACT, and its comparison with the ansatz of Radhakrishnan et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, column, columns, compared, not_applicable, predicted
from knowhow.laws.law import fact as known
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "fact"
AGREEMENT = "lowest cosine of the two sides over layers, at the end"
TOLERANCE = 0.995
LONG = 3.0
LEAST = 4


def times(diagnosis: Diagnosis) -> float:
    """ηλ·steps/(1 − β): how many times the decay alone would have divided the weights by e; 0 without decay or when a setting is not known."""
    rate, decay, steps, momentum = (known(diagnosis, name) for name in ("lr", "weight_decay", "steps", "momentum"))
    if not rate or not decay or not steps or momentum is None:
        return 0.0
    return rate * decay * steps / (1 - momentum)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    if known(diagnosis, "adam") or not known(diagnosis, "full_batch") or times(diagnosis) < LONG:
        return ()
    return anyhow(diagnosis)


def anyhow(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The law's prediction whatever the optimizer and however short the run."""
    return [predicted(NAME, AGREEMENT, 1.0, TOLERANCE, 1.0 + 1e-6, diagnosis)] if times(diagnosis) else []


def lowest(trace: Trace, prefix: str) -> list[tuple[int, float]]:
    """(step, least value over layers) at the steps at which every layer has a number."""
    layers = [dict(column(trace, name)) for name in columns(trace, prefix)]
    shared = set.intersection(*map(set, layers)) if layers else set()
    return [(step, min(layer[step] for layer in layers)) for step in sorted(shared)]


def _score(predictions: Sequence[Prediction], trace: Trace, prefix: str) -> Sequence[Scored]:
    looks = lowest(trace, prefix)
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if len(looks) < LEAST:
            found.append(not_applicable(prediction, f"the layers were looked at {len(looks)} times; {LEAST} looks are needed"))
            continue
        measured = looks[-1][1]
        because = f"{looks[0][1]:.2f} at step {looks[0][0]}, {looks[len(looks) // 2][1]:.3f} at step {looks[len(looks) // 2][0]}"
        found.append(compared(prediction, measured if math.isfinite(measured) else math.nan, because=because))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    return _score(predictions, trace, "fact.cosine:")


def ansatz(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The neural feature ansatz in place of the theorem."""
    return _score(predictions, trace, "fact.ansatz:")


def _run(steps: int, decay: float, activation: str = "tanh", rule: str = "sgd") -> Experiment:
    optimizer = {"lr": 0.03, "momentum": 0.9, "weight_decay": decay, "rule": "sgd"} if rule == "sgd" else {"lr": 0.003, "weight_decay": decay}
    return Experiment("perceptron", steps, {"fact": {"looks": 16, "outputs": True}}, {"activation": activation}, optimizer)


LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "cosine of the two sides ≥ .995 in every layer at the end",
    predict,
    score,
    (_run(1500, 0.02), _run(2000, 0.01)),
    (
        Control("neural feature ansatz", "the law without λ describes the same weights less well", score=ansatz),
        Control("stopped early", "before rest the two sides must disagree", _run(100, 0.01), anyhow),
        Control("decoupled decay", "AdamW rests elsewhere", _run(1000, 0.02, rule="adamw"), anyhow),
        Control("kinks", "ReLU networks come to lie on kinks, where no gradient vanishes", _run(1500, 0.02, "relu")),
    ),
)
