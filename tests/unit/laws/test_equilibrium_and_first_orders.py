"""Rotational equilibrium, LoRA's first order, the kernel regime, the noise scale: formulas against simulation, gates that close, wrong formulas caught."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from knowhow import laws
from knowhow.laws import kernel_regime, lora_first_order, noise_scale, rotational_equilibrium
from knowhow.laws.law import Law, facts
from knowhow.types import Diagnosis, Measurement, Prediction, Scored, Trace

NAMES = ("rotational-equilibrium", "lora-first-order", "kernel-regime", "noise-scale")


def known(run: Mapping[str, float], sites: Mapping[str, Mapping[str, float]] | None = None) -> Diagnosis:
    rows = [Measurement(site, metric, value, "", 1) for site, found in (sites or {}).items() for metric, value in found.items()]
    return Diagnosis((*facts(run).measurements, *rows), "d")


ADAM = {"lr": 1e-2, "weight_decay": 0.2, "momentum": 0.9, "beta2": 0.95, "adam": 1.0, "steps": 2000}
SGD = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.0, "beta2": 0.0, "adam": 0.0, "steps": 20}
EVERYTHING = {
    "rotational-equilibrium": known(ADAM, {"w": {"invariant_fan_in": 64.0}}),
    "lora-first-order": known(SGD | {"same_rows": 1.0}, {"a": {"lora_gradient": 3.0, "lora_overlap": 0.5}, "b": {"lora_gradient": 4.0, "lora_overlap": 0.7}}),
    "kernel-regime": known(SGD | {"kernel_drift": 0.05, "kernel_pace": 0.5, "kernel_turn": 0.1}),
    "noise-scale": known(SGD | {"batch": 4.0, "noise_scale": 16.0}),
}


def verdicts(scored: Sequence[Scored]) -> list[str]:
    return [one.verdict for one in scored]


def only(predictions: Sequence[Prediction], quantity: str) -> Prediction:
    (found,) = [p for p in predictions if p.quantity == quantity]
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [(), ({"step": 1.0, "loss": 1.0},), ({"step": 1.0, "loss": math.nan},)])
def test_nothing_is_confirmed_without_its_columns(name: str, rows: tuple[Mapping[str, float], ...]) -> None:
    law = laws.law(name)
    predictions = law.predict(EVERYTHING[name])
    assert predictions
    scores = [law.score, *(control.score for control in law.controls if control.score)]
    assert all(one.verdict == "not applicable" and one.because for score in scores for one in score(predictions, Trace(rows)) if score is law.score)
    assert all(one.verdict != "confirmed" for score in scores for one in score(predictions, Trace(rows)))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_a_law_must_say(name: str) -> None:
    law: Law = laws.law(name)
    assert {"Statement", "Derivation", "Assumptions", "Where it fails", "Source"} <= set(law.sections)
    assert "answers" in law.sections["Derivation"]
    assert law.controls


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_law_is_silent_without_its_facts(name: str) -> None:
    assert not laws.law(name).predict(facts({}))
    assert not laws.law(name).predict(facts({"lr": 1e-3}))


# rotational equilibrium


def test_equilibrium_is_what_a_random_walk_with_decay_reaches() -> None:
    random, lr, decay, beta, rows, fan_in = np.random.default_rng(0), 0.02, 0.5, 0.9, 150, 64
    weights, momentum = random.normal(size=(rows, fan_in)) * 0.8, np.zeros((rows, fan_in))
    lengths, angles = [], []
    for step in range(700):
        push = random.normal(size=(rows, fan_in))
        push -= (push * weights).sum(1, keepdims=True) / (weights**2).sum(1, keepdims=True) * weights
        push *= math.sqrt(fan_in) / np.linalg.norm(push, axis=1, keepdims=True)
        momentum = beta * momentum + (1 - beta) * push
        new = (1 - lr * decay) * weights - lr * momentum
        if step > 300:
            cosine = (new * weights).sum(1) / np.linalg.norm(new, axis=1) / np.linalg.norm(weights, axis=1)
            lengths.append((new**2).sum(1).mean())
            angles.append((np.arccos(cosine) ** 2).mean())
        weights = new
    length, angle = rotational_equilibrium.equilibrium(lr, decay, beta, fan_in)
    assert math.sqrt(np.mean(lengths)) == pytest.approx(length, rel=0.02)
    assert math.sqrt(np.mean(angles)) == pytest.approx(angle, rel=0.04)
    assert rotational_equilibrium.equilibrium(1e-4, 0.1, 0.9, 64)[0] == pytest.approx(math.sqrt(1e-4 * 64 / 0.2), rel=1e-3)
    assert rotational_equilibrium.equilibrium(1e-4, 0.1, 0.9, 64)[1] == pytest.approx(math.sqrt(2e-5 * 0.1 / 1.9), rel=1e-3)


def turning(length: float, angle: float, *, time: float = 4.0, radial: float = 1e-6, signal: float = 0.0) -> Trace:
    rows = [
        {
            "step": float(step), "loss": 1.0, "rotation.pull": time / 10, "rotation.w.norm": length, "rotation.w.angle": angle,
            "rotation.w.radial": radial, "rotation.w.signal": signal,
        }
        for step in range(1, 11)
    ]  # fmt: skip
    return Trace(tuple(rows))


def test_equilibrium_is_confirmed_and_a_wrong_formula_caught() -> None:
    diagnosis = EVERYTHING["rotational-equilibrium"]
    length, angle = rotational_equilibrium.equilibrium(1e-2, 0.2, 0.9, 64)
    seen = turning(length * 1.02, angle * 0.95)
    predictions = rotational_equilibrium.predict(diagnosis)
    assert verdicts(rotational_equilibrium.score(predictions, seen)) == ["confirmed", "confirmed"]
    assert verdicts(rotational_equilibrium.score(predictions, turning(length * 1.06, angle * 1.09))) == ["violated", "violated"]
    for wrong in (rotational_equilibrium.length_not_square, rotational_equilibrium.without_momentum):
        assert verdicts(rotational_equilibrium.score(wrong(diagnosis), seen)) == ["violated"]


@pytest.mark.parametrize(("changed", "why"), [({"time": 2.5}, "Σηλ"), ({"radial": 0.1}, "length matters"), ({"signal": 0.05}, "agree")])
def test_equilibrium_gates_close(changed: Mapping[str, float], why: str) -> None:
    length, angle = rotational_equilibrium.equilibrium(1e-2, 0.2, 0.9, 64)
    predictions = rotational_equilibrium.predict(EVERYTHING["rotational-equilibrium"])
    scored = rotational_equilibrium.score(predictions, turning(length, angle, **changed))
    assert verdicts(scored) == ["not applicable"] * 2
    assert why in scored[0].because


def test_a_slow_second_moment_closes_the_gate_before_the_run() -> None:
    assert not rotational_equilibrium.predict(known(ADAM | {"beta2": 0.999}, {"w": {"invariant_fan_in": 64.0}}))
    assert not rotational_equilibrium.predict(known(ADAM | {"adam": 0.0}, {"w": {"invariant_fan_in": 64.0}}))


def test_a_short_run_is_told_that_decay_will_do_nothing() -> None:
    (prediction,) = rotational_equilibrium.predict(facts({"lr": 1e-3, "weight_decay": 0.1, "steps": 200}))
    assert prediction.quantity == rotational_equilibrium.LOST
    assert prediction.value == pytest.approx(0.02, rel=0.02)

    def judged(ratio: float) -> str:
        (scored,) = rotational_equilibrium.score([prediction], Trace(({"step": 1.0, "rotation.length": 5.0}, {"step": 200.0, "rotation.length": 5.0 * ratio})))
        return scored.verdict

    assert [judged(1.2), judged(0.98), judged(0.9)] == ["confirmed", "confirmed", "violated"]
    assert not rotational_equilibrium.predict(facts({"lr": 1e-3, "weight_decay": 0.1, "steps": 20_000}))
    assert not rotational_equilibrium.predict(facts({"lr": 1e-3, "weight_decay": 0.0, "steps": 200}))


# LoRA


def factors(steps: int, *, plain: float = 1.0, cosine: float = 0.999, gain: float = 1e-3, charge: float = 1e-5) -> Trace:
    rows = [
        {
            "step": float(k), "loss": 4.0, "lora.time": 0.05 * k, "lora.plain": plain, "lora.length": 0.25 * k, "lora.predicted_gain": gain * k,
            "lora.cosine": cosine, "lora.cosine_other": 0.1, "lora.overlap": 0.61, "lora.a.share": 0.35, "lora.b.share": 0.65,
            "lora.charge": charge, "lora.charge_flow": 0.02, "lora.charge_sum": 1.0,
        }
        for k in range(1, steps + 1)
    ]  # fmt: skip
    return Trace(tuple(rows))


def test_lora_predictions_come_from_the_first_gradient() -> None:
    predictions = lora_first_order.predict(EVERYTHING["lora-first-order"])
    assert only(predictions, lora_first_order.LENGTH).value == pytest.approx(5.0)
    assert {p.site: p.value for p in predictions if p.quantity == lora_first_order.SHARE} == pytest.approx({"a": 0.36, "b": 0.64})
    assert only(predictions, lora_first_order.OVERLAP).value == pytest.approx(0.6)
    assert verdicts(lora_first_order.score(predictions, factors(20))) == ["confirmed"] * 6
    assert not lora_first_order.predict(known(ADAM | {"same_rows": 1.0}, {"a": {"lora_gradient": 3.0}}))
    fresh = lora_first_order.predict(known(SGD, {"a": {"lora_gradient": 3.0}}))
    assert [p.quantity for p in fresh] == [lora_first_order.CHARGE]


def test_lora_gates_and_controls() -> None:
    predictions = lora_first_order.predict(EVERYTHING["lora-first-order"])
    assert set(verdicts(lora_first_order.score(predictions, factors(20, plain=0.0)))) == {"not applicable"}
    outside = {one.prediction.quantity: one.verdict for one in lora_first_order.score(predictions, factors(20, gain=0.03))}
    assert outside[lora_first_order.COSINE] == "not applicable"
    assert outside[lora_first_order.CHARGE] == "confirmed"
    bad = {one.prediction.quantity: one.verdict for one in lora_first_order.score(predictions, factors(20, cosine=0.9, charge=2e-3))}
    assert bad[lora_first_order.COSINE] == bad[lora_first_order.CHARGE] == "violated"
    for score in (lora_first_order.another_charge("lora.charge_sum"), lora_first_order.another_charge("lora.charge_flow"), lora_first_order.another_start):
        assert verdicts(score(predictions, factors(20))) == ["violated"]
    gaps = Trace(tuple({key: value for key, value in row.items() if key != "lora.charge" or row["step"] < 5} for row in factors(20).rows))
    assert {o.prediction.quantity: o.verdict for o in lora_first_order.score(predictions, gaps)}[lora_first_order.CHARGE] == "not applicable"


# kernel regime


def linearised(gap: float, share: float = 1.0, cosine: float = 1.0, plain: float = 1.0) -> Trace:
    columns = {"kernel.gap": gap, "kernel.gain_share": share, "kernel.cosine": cosine, "kernel.plain": plain}
    return Trace(tuple({"step": float(k), "loss": 1.0, **columns} for k in range(1, 21)))


def test_kernel_regime_is_foreseen_by_how_far_the_model_bends() -> None:
    diagnosis = EVERYTHING["kernel-regime"]
    predictions = kernel_regime.predict(diagnosis)
    kappa = 0.05 * sum(0.05 * (1 - 0.05 * 0.5) ** k for k in range(20))
    assert only(predictions, kernel_regime.GAP).value == pytest.approx(kappa)
    assert kernel_regime.foreseen(0.05, 20, 0.05, 0.0) == pytest.approx(0.05)
    assert verdicts(kernel_regime.score(predictions, linearised(kappa * 1.2))) == ["confirmed"] * 3
    assert verdicts(kernel_regime.score(predictions, linearised(kappa * 2, 0.8, 0.9))) == ["violated"] * 3
    assert set(verdicts(kernel_regime.score(predictions, linearised(kappa, plain=0.0)))) == {"not applicable"}


def test_kernel_regime_makes_no_claim_between_and_calls_rich_rich() -> None:
    bent = SGD | {"kernel_drift": 0.05, "kernel_pace": 0.5}
    assert not kernel_regime.predict(facts(bent | {"kernel_turn": 0.5}))
    (rich,) = kernel_regime.predict(facts(bent | {"kernel_turn": 4.0}))
    assert verdicts(kernel_regime.score([rich], linearised(0.6)) + kernel_regime.score([rich], linearised(0.1))) == ["confirmed", "violated"]
    assert not kernel_regime.predict(facts(bent | {"kernel_turn": 0.1, "adam": 1.0}))
    assert verdicts(kernel_regime.score(kernel_regime.always_lazy(facts({})), linearised(0.6, 0.8))) == ["violated"]


def test_kernel_scale_controls_leave_the_interval() -> None:
    scaled = known(SGD | {"kernel_drift": 0.005, "kernel_pace": 0.5, "kernel_turn": 0.01, "output_scale": 8.0})
    seen = linearised(kernel_regime.predict(scaled)[0].value)
    for wrong in (kernel_regime.without_scale, kernel_regime.square_of_scale):
        assert verdicts(kernel_regime.score(wrong(scaled), seen)) == ["violated"]


# noise scale


def raced(small: float, large: float, steps: int = 100) -> Trace:
    """Losses that fall by `small` and `large` per step at rate 0, and hardly at rate 1."""
    columns = {"race.small.0": small, "race.small.1": 0.999, "race.large.0": large, "race.large.1": 0.999}
    return Trace(tuple({"step": float(k + 1), "loss": 1.0} | {name: 3 * rate**k for name, rate in columns.items()} for k in range(steps)))


def test_saving_has_the_right_limits_and_is_scored_by_the_steps_it_takes() -> None:
    assert noise_scale.saving(1.0, 1e9) == pytest.approx(2.0)
    assert noise_scale.saving(1e9, 1.0) == pytest.approx(1.0)
    assert noise_scale.saving(4.0, 16.0) == pytest.approx(20 / 12)
    prediction = only(noise_scale.predict(EVERYTHING["noise-scale"]), noise_scale.SAVED)
    times = noise_scale.times(raced(0.9, 0.8), "race.small.")
    assert times["0"] == pytest.approx(math.log(0.1) / math.log(0.9))
    assert times["1"] == math.inf
    assert verdicts(noise_scale.score([prediction], raced(0.9, 0.9**1.7))) == ["confirmed"]
    assert verdicts(noise_scale.score([prediction], raced(0.9, 0.9**1.3))) == ["violated"]
    assert verdicts(noise_scale.score([prediction], raced(0.999, 0.999))) == ["not applicable"]
    assert verdicts(noise_scale.score(noise_scale.always_half(facts({})), raced(0.9, 0.9**1.1))) == ["violated"]


def noisy(paired: float, looks: int = 6, signal: float = 1.0) -> Trace:
    """|G|² = 1 and tr Σ = 40 from rows; from batches of 4 and 32 rows tr Σ = 40·`paired`."""
    row = {"noise.trace": 40.0, "noise.square": signal, "noise.rows_small": 4.0, "noise.rows_large": 32.0}
    row |= {"noise.small": 1 + 40 * paired / 4, "noise.large": 1 + 40 * paired / 32}
    return Trace(tuple({"step": float(k), "loss": 1.0, **row} for k in range(looks)))


def test_the_two_estimators_must_agree_and_noise_left_in_is_caught() -> None:
    prediction = only(noise_scale.predict(facts({})), noise_scale.AGREE)
    (scored,) = noise_scale.score([prediction], noisy(1.0))
    assert scored.verdict == "confirmed"
    assert scored.measured == pytest.approx(1.0)
    assert verdicts(noise_scale.score([prediction], noisy(1.6))) == ["violated"]
    assert verdicts(noise_scale.score([prediction], noisy(1.0, looks=3))) == ["not applicable"]
    assert verdicts(noise_scale.score([prediction], noisy(1.0, signal=-0.1))) == ["not applicable"]
    assert verdicts(noise_scale.uncorrected([prediction], noisy(1.0))) == ["violated"]
