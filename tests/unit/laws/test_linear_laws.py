"""Laws whose formulas have closed forms: times of modes, the nuclear norm, plateaus of linear attention."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from knowhow.laws import linear_attention, mode_times, nuclear_norm
from knowhow.types import Diagnosis, Measurement, Prediction, Trace


def diagnosis(run: dict[str, float], sites: dict[str, dict[str, float]]) -> Diagnosis:
    rows = [Measurement("run", name, value, "", 1) for name, value in run.items()]
    rows += [Measurement(site, name, value, "", 1) for site, each in sites.items() for name, value in each.items()]
    return Diagnosis(tuple(rows), "digest")


MODES = {"mode.1": {"strength": 2.0, "start": 1e-3}, "mode.2": {"strength": 1.0, "start": 1e-3}}
PLAIN = {"lr": 0.01, "adam": 0.0, "momentum": 0.0, "weight_decay": 0.0, "aligned": 1.0, "overlap": 0.0, "steps": 900.0}


def modes_trace(steps: int = 900, slower: float = 1.0, white: float = 0.0) -> Trace:
    """Modes that follow the logistic law at a rate divided by `slower`, by Euler steps so fine that they are its flow."""
    rows, shares = [], {1: 1e-3 / 2, 2: 1e-3}
    for step in range(1, steps + 1):
        rows.append({"step": float(step), "modes.whiteness": white} | {f"modes.learned.{k}": share for k, share in shares.items()})
        for k, strength in ((1, 2.0), (2, 1.0)):
            for _ in range(40):
                shares[k] += 2 * strength * shares[k] * (1 - shares[k]) * 0.01 / 40 / slower
    return Trace(tuple(rows))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_time_solves_the_logistic_equation(share: float) -> None:
    when = mode_times.time(3.0, 1e-3, share)
    assert 3 / (1 + (3 / 1e-3 - 1) * math.exp(-6 * when)) == pytest.approx(3 * share)
    assert mode_times.time(3.0, 1e-3, 0.5) == pytest.approx(math.log(3 / 1e-3 - 1) / 6)
    assert 3 - (3 - 1e-3) * math.exp(-3 * mode_times.shallow(3.0, 1e-3, share)) == pytest.approx(3 * share)


def test_modes_on_time_are_confirmed_and_slow_ones_violated() -> None:
    predictions = mode_times.predict(diagnosis(PLAIN, MODES))
    assert len(predictions) == 6
    assert {one.verdict for one in mode_times.score(predictions, modes_trace())} == {"confirmed"}
    assert {one.verdict for one in mode_times.score(predictions, modes_trace(slower=1.02))} == {"violated"}
    assert {one.verdict for one in mode_times.score(mode_times.one_layer(diagnosis(PLAIN, MODES)), modes_trace())} == {"violated"}


def test_modes_close_their_gates() -> None:
    predictions = mode_times.predict(diagnosis(PLAIN, MODES))
    assert {one.verdict for one in mode_times.score(predictions, modes_trace(white=0.1))} == {"not applicable"}
    early = mode_times.score(predictions, modes_trace(steps=220))
    assert [one.verdict for one in early] == ["confirmed", "confirmed", "not applicable", *["not applicable"] * 3]
    for setting in ({"adam": 1.0}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"overlap": 0.6}):
        assert mode_times.predict(diagnosis(PLAIN | setting, MODES)) == ()
    assert mode_times.predict(diagnosis(PLAIN, {"mode.1": {"strength": 1.0, "start": 0.5}})) == []


def test_soft_threshold_minimises_the_charged_loss() -> None:
    grid = np.linspace(0, 2, 20001)
    for strength, threshold in ((1.0, 0.3), (0.2, 0.3), (0.6, 0.1)):
        best = grid[np.argmin((grid - strength) ** 2 / 2 + threshold * grid)]
        assert nuclear_norm.soft(strength, threshold) == pytest.approx(best, abs=2e-4)
        assert nuclear_norm.ridge(strength, threshold) == pytest.approx(grid[np.argmin((grid - strength) ** 2 / 2 + threshold * grid**2 / 2)], abs=2e-4)


def test_no_factors_cost_less_than_the_nuclear_norm() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        first, second = random.normal(size=(3, 4)), random.normal(size=(5, 3))
        left, values, right = np.linalg.svd(second @ first, full_matrices=False)
        assert (np.square(first).sum() + np.square(second).sum()) / 2 >= values.sum()
        balanced = np.diag(np.sqrt(values)) @ right, left @ np.diag(np.sqrt(values))
        assert sum(np.square(each).sum() for each in balanced) / 2 == pytest.approx(values.sum())


FACTORED = {"lr": 0.05, "adam": 0.0, "momentum": 0.0, "weight_decay": 0.3, "curvature": 1.0}
STRENGTHS = {"mode.1": {"strength": 1.0}, "mode.2": {"strength": 0.2}}


def factors_trace(rate: float, moving: float = 0.0, kept: float = 0.7) -> Trace:
    rows = []
    for step in range(1, 1001, 50):
        end = kept + moving * (1 - step / 951)
        row = {"step": float(step), "factors.singular.1": end, "factors.singular.2": 0.0, "factors.nuclear": end}
        rows.append(row | {"factors.half_square": end, "factors.imbalance": math.exp(-rate * step)})
    return Trace(tuple(rows))


def test_nuclear_norm_is_scored() -> None:
    predictions = nuclear_norm.predict(diagnosis(FACTORED, STRENGTHS))
    rate = -2 * math.log(1 - 0.05 * 0.3)
    assert [one.value for one in predictions] == pytest.approx([0.7, 0.0, rate, 1.0])
    assert [one.verdict for one in nuclear_norm.score(predictions, factors_trace(rate))] == ["confirmed"] * 4
    wrong = nuclear_norm.score(predictions, factors_trace(rate * 1.02, kept=0.71))
    assert [one.verdict for one in wrong] == ["violated", "confirmed", "violated", "confirmed"]
    still = nuclear_norm.score(predictions, factors_trace(rate, moving=0.1))
    assert [one.verdict for one in still] == ["not applicable", "not applicable", "confirmed", "not applicable"]
    assert [one.value for one in nuclear_norm.twice(diagnosis(FACTORED, STRENGTHS))] == pytest.approx([0.4])
    assert nuclear_norm.predict(diagnosis(FACTORED | {"adam": 1.0}, STRENGTHS)) == ()
    assert nuclear_norm.predict(diagnosis(FACTORED | {"weight_decay": 0.0}, STRENGTHS)) == []


def test_a_short_run_says_nothing_of_the_balance() -> None:
    predictions = nuclear_norm.predict(diagnosis(FACTORED | {"weight_decay": 0.01}, STRENGTHS))
    assert nuclear_norm.score(predictions, factors_trace(0.001))[2].verdict == "not applicable"


EIGENVALUES = (1.0, 0.5, 0.25)
TASK = {f"direction.{k}": {"eigenvalue": value} for k, value in enumerate(EIGENVALUES)}
CONTEXT = {"lr": 0.1, "adam": 0.0, "momentum": 0.0, "weight_decay": 0.0, "context": 31.0, "sampled": 0.0}


def stairs(levels: list[float], steps: int = 1200) -> Trace:
    """Logistic falls from each level to the next, in equal distances."""
    wide = steps / len(levels)
    fall = lambda step, k: 1 / (1 + math.exp(-(step - k * wide) / 8))  # noqa: E731
    loss = [levels[0] - sum((a - b) * fall(step, k) for k, (a, b) in enumerate(itertools.pairwise(levels), 1)) for step in range(steps)]
    return Trace(tuple({"step": float(step + 1), "risk": value} for step, value in enumerate(loss)))


def test_plateaus_of_the_paper() -> None:
    """The eigenvalues and losses of the first measurement of this law."""
    levels = linear_attention.plateaus((16 / 15, 8 / 15, 4 / 15, 2 / 15), 31)
    assert levels == pytest.approx([2.0, 1.0239, 0.5614, 0.3521, 0.2642], abs=1e-4)
    assert linear_attention.without_context(EIGENVALUES, 31)[-1] == pytest.approx(0.0)
    assert linear_attention.plateaus(EIGENVALUES, 1e12) == pytest.approx(linear_attention.without_context(EIGENVALUES, 31), abs=1e-9)


def test_stairs_are_read_and_wrong_ones_caught() -> None:
    predictions = linear_attention.predict(diagnosis(CONTEXT, TASK))
    levels = linear_attention.plateaus(EIGENVALUES, 31)
    assert len(predictions) == 4
    assert {one.verdict for one in linear_attention.score(predictions, stairs(levels))} == {"confirmed"}
    shifted = linear_attention.score(predictions, stairs([levels[0], levels[1] * 1.003, levels[2] * 1.003, levels[3]]))
    assert [one.verdict for one in shifted] == ["confirmed", "violated", "violated", "confirmed"]
    once = linear_attention.score(predictions, stairs([levels[0], levels[-1]]))
    assert {one.verdict for one in once} == {"violated"}
    for wrong in (linear_attention.endless, linear_attention.reversed_order):
        found = {one.verdict for one in linear_attention.score(wrong(diagnosis(CONTEXT, TASK)), stairs(levels))}
        assert "violated" in found
        assert "confirmed" not in found


def test_a_run_that_ended_too_soon_says_nothing_of_what_is_left() -> None:
    predictions = linear_attention.predict(diagnosis(CONTEXT, TASK))
    scored = linear_attention.score(predictions, stairs(linear_attention.plateaus(EIGENVALUES, 31)[:3]))
    assert [one.verdict for one in scored] == ["not applicable", "confirmed", "not applicable", "not applicable"]
    flat = Trace(tuple({"step": float(step), "risk": 1.75} for step in range(1, 600)))
    assert {one.verdict for one in linear_attention.score(predictions, flat)} == {"not applicable"}
    for setting in ({"sampled": 1.0}, {"adam": 1.0}, {"weight_decay": 0.1}):
        assert linear_attention.predict(diagnosis(CONTEXT | setting, TASK)) == ()


@pytest.mark.parametrize("law", [mode_times.LAW, nuclear_norm.LAW, linear_attention.LAW])
def test_traces_without_numbers_confirm_nothing(law: mode_times.Law) -> None:
    both = diagnosis(PLAIN | CONTEXT | FACTORED, {**MODES, **TASK})
    plain = diagnosis(PLAIN | CONTEXT, {**MODES, **TASK})
    predictions: list[Prediction] = [*law.predict(both), *law.predict(plain)]
    assert predictions
    names = ("modes.learned.1", "modes.whiteness", "factors.singular.1", "factors.nuclear", "factors.imbalance", "risk")
    blank = Trace(tuple({"step": float(step), **dict.fromkeys(names, math.nan)} for step in range(1, 900)))
    for trace in (Trace(()), Trace(({"step": 1.0, "loss": 1.0},)), blank):
        assert "confirmed" not in {one.verdict for one in law.score(predictions, trace)}
