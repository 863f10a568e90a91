"""Whether training is linear in the weights is foreseen from the start: by how far the model bends along its first gradient.

**Statement** Train f and its linearisation f₀ + JΔ with the same plain steps on the same rows. For Ση = T small beside the times in which the gradient is
used up and turned, the two end in functions that differ, relative to how far they moved, by κ = T·|f″[g,g] + J R g| / 2|J g|, all taken at the
start. Where κ ≤ .1 the run is lazy: the linear model has .9 to 1.1 of the loss gained, and its change of the outputs has a cosine ≥ .95 with the
model's. Where the bending turns the gradient by more than itself (T·|Rg|/|g| ≥ 1.5) the run is rich: the gap is at least .3. With outputs
α(h − h₀) and the loss over α², κ ∝ 1/α.

**Derivation** g = ∇L(θ₀) = Jᵀℓ′. Descent for a time T: θ − θ₀ = −Tg + ½T²Hg + O(T³), with H = Jᵀℓ″J + R, R = Σ ℓ′·f″. So the outputs move by
−TJg + ½T²(f″[g,g] + J H g). The linear model has no f″: its outputs move by −TJg + ½T² J Jᵀℓ″J g. The difference is ½T²(f″[g,g] + J R g); beside T|Jg| it
is κ. As the slope along g is used up at the pace μ = gᵀJᵀℓ″Jg/|g|², T is replaced by (1 − (1−ημ)^K)/μ. The next order, T³, is smaller by T|R|
(how fast the bending turns the gradient) and T μ: both are gates.
Scale: f = α(h − h₀), loss ½|f − y|²/α². Then Jg does not depend on α, R g ∝ 1/α, f″[g,g] ∝ 1/α: the change of the outputs is the same at every
α and the weights move by 1/α, so the model bends less (Chizat's lazy training). An output scale, a width, a small learning rate times few steps, or
a base that is close to the task are all the same thing: a small κ.
So this answers how what is learnt follows from the equations of gradient-based learning. With κ small training is a linear regression on
features that the base has already; circuits and features can only appear where κ is not small, because the linear model cannot change its kernel.

**Assumptions** Plain gradient descent without momentum, decay ≪ T⁻¹, no clipping (gate: `kernel.plain`), no dropout, smooth activations; Tμ ≤ 1.5,
T|Rg|/|g| ≤ .15 for the size of the gap (gates, known before the run; between lazy and rich no claim is made).

**Where it fails** Between the regimes: a net with α = 1 and T|Rg|/|g| = .5 had a gap three times κ (the gap was still .05). Far beyond them κ
saturates: over 80 steps at .2 a decoder's gap reached .93 at a κ of .65. Adam's kernel is another one (Malladi's sign kernel) and is not measured here.
Batches that change from step to step need a g averaged over rows.

**Source** Chizat, Oyallon, Bach 2019 (arXiv 1812.07956), the scale α; Jacot et al. 2018; Malladi et al. 2023 (arXiv 2210.05643), fine-tuning as a kernel
method. κ with its R term is derived above.
"""

from __future__ import annotations

from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, column, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "kernel-regime"
GAP, RICH = "gap between the model's outputs and its linearisation's, relative to their change", "the same gap, in a run that is to be rich"
SHARE, COSINE = "loss gained by the linearised model over that gained by the model", "cosine between the two changes of the outputs"
COLUMNS = {GAP: "kernel.gap", RICH: "kernel.gap", SHARE: "kernel.gain_share", COSINE: "kernel.cosine"}
FACTOR, LAZY, USED_UP, TURNED, RICH_TURN, RICH_GAP = 1.5, 0.1, 1.5, 0.15, 1.5, 0.3


def foreseen(lr: float, steps: float, drift: float, pace: float) -> float:
    """κ after `steps` at rate `lr`."""
    return drift * (1 - (1 - min(1.0, lr * pace)) ** steps) / pace if pace > 0 else drift * lr * steps


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _predicted(diagnosis, 1.0)


def _predicted(diagnosis: Diagnosis, factor: float) -> list[Prediction]:
    lr, steps, drift, pace, turn = (fact(diagnosis, name) for name in ("lr", "steps", "kernel_drift", "kernel_pace", "kernel_turn"))
    if lr is None or steps is None or drift is None or pace is None or turn is None or fact(diagnosis, "adam") or fact(diagnosis, "momentum"):
        return []
    time = lr * steps
    if time * turn >= RICH_TURN:
        return [predicted(NAME, RICH, 1.0, RICH_GAP, 1e3, diagnosis)]
    if time * turn > TURNED or time * pace > USED_UP:
        return []
    gap = factor * foreseen(lr, steps, drift, pace)
    found = [predicted(NAME, GAP, gap, gap / FACTOR, gap * FACTOR, diagnosis)]
    return found + (lazy(diagnosis) if gap <= LAZY else [])


def lazy(diagnosis: Diagnosis) -> list[Prediction]:
    """What lazy means."""
    return [predicted(NAME, SHARE, 1.0, 0.9, 1.1, diagnosis), predicted(NAME, COSINE, 1.0, 0.95, 1.0 + 1e-6, diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    plain = values(trace, "kernel.plain")
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        looked = column(trace, COLUMNS[prediction.quantity])
        if not plain or not looked:
            found.append(not_applicable(prediction, "no linearised model was trained beside"))
        elif min(plain) < 1:
            found.append(not_applicable(prediction, "the run did not take plain steps, each looked at"))
        elif looked[-1][0] != max(int(row["step"]) for row in trace.rows):
            found.append(not_applicable(prediction, f"the last look was at step {looked[-1][0]}, not at the end"))
        else:
            found.append(compared(prediction, looked[-1][1], because=f"at step {looked[-1][0]}"))
    return found


def without_scale(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: laziness is a matter of steps alone, κ as it would be at α = 1."""
    return _scaled(diagnosis, 1)


def square_of_scale(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: κ ∝ 1/α²."""
    return _scaled(diagnosis, -1)


def _scaled(diagnosis: Diagnosis, power: int) -> Sequence[Prediction]:
    scale = fact(diagnosis, "output_scale") or 1.0
    return [p for p in _predicted(diagnosis, scale**power) if p.quantity == GAP and scale != 1]


def always_lazy(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: fine-tuning is always linear."""
    return lazy(diagnosis)[:1]


def _net(scale: float) -> Experiment:
    return Experiment("scaled-net", 20, {"kernel": {"every": 1}}, {"scale": scale}, {"lr": 0.02, "rule": "sgd"})


LAW = Law(
    NAME,
    __doc__,
    "circuits",
    "gap within a factor 1.5 of κ; lazy: gain share .9 to 1.1, cosine ≥ .95; rich: gap ≥ .3",
    predict,
    score,
    (_net(8.0), _net(32.0), _net(0.05), Experiment("lazy-decoder", 6, {"kernel": {"every": 1}}, optimizer={"lr": 0.02, "rule": "sgd"})),
    (
        Control("no scale", "κ without the 1/α must not pass", predict=without_scale),
        Control("scale squared", "1/α² must not pass", predict=square_of_scale),
        Control("always lazy", "a net with small outputs is not linear in its weights", _net(0.05), predict=always_lazy),
    ),
)
