"""Under AdamW, rows whose length does not matter settle at a length and a turning rate that the configuration alone fixes.

**Statement** For a row w of C weights whose length the loss does not feel, under AdamW with rate η, decay λ and momentum β and a gradient that is
mostly noise: |w| → √(ηC/2λ), and the row turns by √(2ηλ(1−β)/(1+β)) radians a step, whatever the task, the model or where w began, once Σηλ ≥ 3.
A run with Σηλ ≪ 1 is too short for that: decay takes at most the share Σηλ of the weights' length, so it has done nothing.

**Derivation** Scale invariance, L(aw) = L(w) for every a > 0, differentiated at a = 1 gives w·∇L = 0: gradients only turn w, and each lengthens it.
Adam divides every entry of the gradient by its own root mean square, so the normalised gradient ĝ has |ĝ|² = C, and noise makes ĝ at different steps
orthogonal on average. With m the running mean of ĝ, E|m|² = M = C(1−β)/(1+β). The update is w′ = aw − ηm with a = 1 − ηλ, hence
    E|w′|² = a²|w|² − 2ηa E[w·m] + η²M.
Momentum remembers gradients that were orthogonal to where w was, not to where it is. Let A = E[w·m] after a step; the fresh gradient adds nothing to
it, so A = β E[w′·m] = β(aA − ηM), A = −βηM/(1 − βa). Put in, with |w′| = |w| at equilibrium:
    |w|² = η²M [1 + 2aβ/(1 − βa)] / (1 − a²)  →  ηC/2λ  for ηλ ≪ 1 − β,
since [1 + 2β/(1−β)](1−β)/(1+β) = 1. The part of the step across w has length η√(M − A²/|w|²), so the angle has that over |w| for its sine:
→ η√M/|w| = √(2ηλ(1−β)/(1+β)). The gap of |w|² to equilibrium falls as a²ᵗ ≈ e^(−2Σηλ). For a short run, decay multiplies what was there by Π(1−ηλ) ≥ 1 − Σηλ.
So this answers how what training does follows from the equations of gradient-based learning: length, which no loss asked for, is set by a balance of
noise that lengthens and decay that shortens, and with it the rate at which features turn; that rate, not η, is the learning rate that such rows feel.

**Assumptions** Rows are scale-invariant (facts: `invariant_fan_in` at a site; gate: |cos(w, ∇L)| ≤ .02); constant η with Σηλ ≥ 3 (gate: Ση λ as
observed); noise-dominated (gate: mean cosine of gradients of different steps ≤ .01, since a share s of signal makes |m|² larger by 2sβ/(1−β)); Adam's
second moment forgets ten times faster than the length changes (gate: 2ηλ ≤ .1(1−β2)).

**Where it fails** Rows whose length matters (no normalisation behind them) settle elsewhere: the control (23% shorter
on labels that are all noise; on labels without noise growth by the signal happens to make up for it). With β2 near 1 the second moment lags behind
gradients that grow as 1/|w|: with β2 = .999 and ηλ = 1e-3 the length was 11% short after Σηλ = 4. With β2 = .95 the second moment holds some of the
gradient that it divides, which takes 1 to 4% off the length. Warm-up and cosine rates never reach one equilibrium. Learned gains and biases have none.

**Source** Kosson, Messmer, Jaggi 2023 (arXiv 2305.17212), the AdamW row of its table of equilibria; the terms in a are ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.laws.law import Control, Experiment, Law, by_site, column, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "rotational-equilibrium"
LENGTH, ANGLE = "root mean square length of the rows at the end", "radians by which a row turns in a step at the end"
LOST = "share of the decayed weights' length that the run takes away"
LENGTH_TOLERANCE, ANGLE_TOLERANCE = 0.05, 0.08
LONG, SETTLED, SHORT, SLACK = 3.0, 2.0, 0.1, 0.01
RADIAL, SIGNAL, LAG = 0.02, 0.01, 0.1


def equilibrium(lr: float, decay: float, momentum: float, fan_in: float) -> tuple[float, float]:
    """Length and angle per step (radians) at equilibrium, exact in ηλ. Needs 0 < lr·decay < 1 and momentum < 1."""
    kept = 1 - lr * decay
    update = fan_in * (1 - momentum) / (1 + momentum)
    length = lr * math.sqrt(update * (1 + 2 * kept * momentum / (1 - momentum * kept)) / (1 - kept**2))
    inwards = momentum * lr * update / (1 - momentum * kept) / length
    return length, math.asin(lr * math.sqrt(update - inwards**2) / length)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return [*short(diagnosis), *settled(diagnosis)]


def short(diagnosis: Diagnosis) -> list[Prediction]:
    """That decay will have done nothing, where rate, decay and steps say so."""
    lr, decay, steps = fact(diagnosis, "lr"), fact(diagnosis, "weight_decay"), fact(diagnosis, "steps")
    if not (lr and decay and steps) or not 0 < lr * decay * steps <= SHORT:
        return []
    time = lr * decay * steps
    return [predicted(NAME, LOST, -math.expm1(-time), 0.0, time + SLACK, diagnosis)]


def settled(diagnosis: Diagnosis) -> list[Prediction]:
    """Length and angle of every site whose rows are known to be scale-invariant."""
    lr, decay, momentum, beta2 = (fact(diagnosis, name) for name in ("lr", "weight_decay", "momentum", "beta2"))
    if not (lr and decay and beta2 and fact(diagnosis, "adam")) or momentum is None or not 2 * lr * decay <= LAG * (1 - beta2):
        return []
    found = []
    for site, fan_in in by_site(diagnosis, "invariant_fan_in").items():
        length, angle = equilibrium(lr, decay, momentum, fan_in)
        found.append(predicted(NAME, LENGTH, length, length * (1 - LENGTH_TOLERANCE), length * (1 + LENGTH_TOLERANCE), diagnosis, site))
        found.append(predicted(NAME, ANGLE, angle, angle * (1 - ANGLE_TOLERANCE), angle * (1 + ANGLE_TOLERANCE), diagnosis, site))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """Residuals: of length and angle relative to the prediction; of the lost share its excess over it."""
    return [_lost(p, trace) if p.quantity == LOST else _settled(p, trace, gated=True) for p in predictions if p.law == NAME]


def ungated(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """The equilibrium claimed of rows whatever they are."""
    return [_settled(p, trace, gated=False) for p in predictions if p.law == NAME and p.quantity != LOST]


def _lost(prediction: Prediction, trace: Trace) -> Scored:
    lengths = values(trace, "rotation.length")
    if len(lengths) < 2:
        return not_applicable(prediction, "nothing that decays was followed")
    ratio = lengths[-1] / lengths[0]
    return compared(prediction, max(0.0, 1 - ratio), because=f"length at the end {ratio:.4f} of that at the start")


def decay_time(trace: Trace) -> dict[int, float]:
    """Σηλ up to each look, the rates between two looks taken as at the later one."""
    found, total, seen = {}, 0.0, 0
    for step, pull in column(trace, "rotation.pull"):
        total, seen = total + (step - seen) * pull, step
        found[step] = total
    return found


def _settled(prediction: Prediction, trace: Trace, *, gated: bool) -> Scored:
    name = f"rotation.{prediction.site}."
    time = decay_time(trace)
    which = "norm" if prediction.quantity == LENGTH else "angle"
    looks = column(trace, name + which)
    late = [value for step, value in looks if time.get(step, 0.0) >= SETTLED]
    if not late or max(time.values()) < LONG:
        return not_applicable(prediction, f"Σηλ = {max(time.values(), default=0.0):.3g}, equilibrium takes {LONG:.0f}")
    radial, signal = values(trace, name + "radial"), values(trace, name + "signal")
    if gated and not (radial and max(radial) <= RADIAL):
        return not_applicable(prediction, f"|cos(row, gradient)| up to {max(radial, default=math.nan):.2g} > {RADIAL}: the rows' length matters")
    if gated and not (signal and statistics.mean(signal) <= SIGNAL):
        return not_applicable(prediction, f"gradients of different steps agree: mean cosine {statistics.mean(signal or [math.nan]):.2g} > {SIGNAL}")
    measured = math.sqrt(statistics.mean(value**2 for value in late))
    off = measured / prediction.value - 1
    return compared(prediction, measured, residual=off, because=f"{off:+.1%} over {len(late)} looks after Σηλ = {SETTLED:.0f}", inside=len(late) / len(looks))


def length_not_square(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong formula: decay balanced against |w|, not |w|²: √(ηC/λ)."""
    found = [p for p in settled(diagnosis) if p.quantity == LENGTH]
    grown = math.sqrt(2)
    return [predicted(NAME, LENGTH, p.value * grown, p.low * grown, p.high * grown, diagnosis, p.site) for p in found]


def without_momentum(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong formula: the angle √(2ηλ) of an optimizer that does not average."""
    momentum = fact(diagnosis, "momentum") or 0.0
    found = [p for p in settled(diagnosis) if p.quantity == ANGLE]
    grown = math.sqrt((1 + momentum) / (1 - momentum))
    return [predicted(NAME, ANGLE, p.value * grown, p.low * grown, p.high * grown, diagnosis, p.site) for p in found]


def always_nothing(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """A wrong law: decay does nothing, however long the run."""
    return [predicted(NAME, LOST, 0.0, 0.0, SLACK, diagnosis)]


def _experiment(lr: float, decay: float, options: Mapping[str, Any]) -> Experiment:
    observers = {"rotation": {"every": 20, "sites": ("hidden.weight",)}}
    return Experiment("row-normalised", 2000, observers, options, {"lr": lr, "weight_decay": decay})


LAW = Law(
    NAME,
    __doc__,
    "dynamics",
    "length within 5%, angle within 8%; in short runs the lost share ≤ Σηλ + 1%",
    predict,
    score,
    (
        _experiment(1e-2, 0.2, {}),
        _experiment(4e-3, 0.5, {}),
        Experiment("markov-decoder", 60, {"rotation": {"looks": 10}}, optimizer={"lr": 1e-3, "weight_decay": 0.1}),
    ),
    (
        Control("decay against length", "√(ηC/λ), the balance without the square, must not pass", predict=length_not_square),
        Control("angle without momentum", "√(2ηλ) must not pass", predict=without_momentum),
        Control(
            "rows whose length matters",
            "without normalisation, on labels that are nothing but noise, there is no such equilibrium",
            _experiment(1e-2, 0.2, {"normalised": False, "noise": 1.0}),
            score=ungated,
        ),
        Control(
            "decay that is not nothing",
            "with Σηλ = .3 the loss of length must show",
            Experiment("row-normalised", 60, {"rotation": {"looks": 10}}, {"gain": 10.0}, {"lr": 1e-2, "weight_decay": 0.5}),
            predict=always_nothing,
        ),
    ),
)
