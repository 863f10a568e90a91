"""Choices from numbers: budgets are kept, the user wins, and ranks go where the gradient is."""

from __future__ import annotations

import itertools

import pytest

from knowhow import plan
from knowhow.laws import forgetting, layer_skip, learning_rate_ceiling
from knowhow.laws.law import facts
from knowhow.plan import Asked, Matrix
from knowhow.types import Diagnosis, Measurement, Prediction

MATRICES = {"a": Matrix(4, 4, [5.0, 1.0, 0.5, 0.1]), "b": Matrix(4, 4, [3.0, 2.9, 0.2, 0.1]), "mlp.c": Matrix(8, 8, [4.0, 0.1, 0.1, 0.1])}


def with_sites(values: dict[str, float], *more: Measurement) -> Diagnosis:
    found = facts(values)
    return Diagnosis((*found.measurements, *more), "d")


def test_ranks_reach_the_most_that_the_parameters_allow() -> None:
    equal = {name: Matrix(4, 4, matrix.values) for name, matrix in MATRICES.items()}
    pattern = plan.allocated(equal, 8 * 4)
    best = max(
        (dict(zip(equal, ranks, strict=True)) for ranks in itertools.product(range(5), repeat=3) if sum(ranks) == 4), key=lambda each: plan.reached(equal, each)
    )
    assert plan.reached(equal, pattern) == pytest.approx(plan.reached(equal, best))
    assert sum(pattern.values()) == 4


@pytest.mark.parametrize("parameters", [0, 7, 8, 40, 1000])
def test_no_pattern_is_larger_than_its_budget(parameters: int) -> None:
    for pattern in (plan.allocated(MATRICES, parameters), plan.uniform(MATRICES, parameters)):
        assert sum(MATRICES[name].price * rank for name, rank in pattern.items()) <= parameters
        assert all(rank <= len(MATRICES[name].values) for name, rank in pattern.items())


def test_a_dear_matrix_must_be_worth_its_price() -> None:
    assert "mlp.c" not in plan.allocated(MATRICES, 24)
    assert plan.allocated(MATRICES, 24) == {"a": 1, "b": 2}


def ceiling(value: float) -> Prediction:
    return Prediction(learning_rate_ceiling.NAME, learning_rate_ceiling.QUANTITY, "run", value, value / 2, value * 2, "d")


CURVE = tuple(Measurement(f"{10.0**-k:g}", "line.general", 10.0 ** (2 - 2 * (k - 1)), "nats", 1) for k in range(5, 0, -1))


def test_the_rate_is_some_strides_below_a_share_of_the_ceiling_and_the_user_wins() -> None:
    diagnosis = with_sites({"steps": 100, "lr": 1e-3, "lr.mean": 5e-4, "line.best": 1e-3}, *CURVE)
    planned = plan.rate(diagnosis, [ceiling(8.0)], Asked())
    assert planned is not None
    assert planned.value == pytest.approx(1e-3 * plan.STRIDES)
    held = plan.rate(diagnosis, [ceiling(0.08)], Asked())
    assert held is not None
    assert held.value == pytest.approx(0.08 * plan.SHARE)
    own = plan.rate(diagnosis, [ceiling(0.08)], Asked({"lr": 7e-5}))
    assert own is not None
    assert (own.value, own.alternatives["planned"]) == (7e-5, pytest.approx(0.01))
    assert plan.rate(with_sites({"steps": 100}, *CURVE), [], Asked()) is None, "where no step helps there is no rate to take"


def test_a_budget_of_forgetting_lowers_the_rate() -> None:
    diagnosis = with_sites({"steps": 100, "lr": 1e-3, "lr.mean": 5e-4, "line.best": 1e-3}, *CURVE)
    free = plan.rate(diagnosis, [ceiling(0.08)], Asked())
    assert free is not None
    bound = forgetting.forecast(forgetting.curve(diagnosis), free.value / 2, 100) / 3
    held = plan.rate(diagnosis, [ceiling(0.08)], Asked(forgetting=bound))
    assert held is not None
    assert held.value < free.value


def test_layers_go_in_the_order_of_their_predicted_cost() -> None:
    costs = [Prediction(layer_skip.NAME, layer_skip.COST, f"layers.{k}", value, 0, 9, "d") for k, value in enumerate((3.0, 0.1, 0.5))]
    choice = plan.dispensable(costs)
    assert choice is not None
    assert choice.value == ["layers.1", "layers.2", "layers.0"]


def test_shares_leave_out_what_shuffled_labels_explain() -> None:
    found = plan.shares(
        Diagnosis(
            (
                Measurement("x", "gradient.signal", 3.0, "", 1),
                Measurement("x", "gradient.shuffled", 3.5, "", 1),
                Measurement("y", "gradient.signal", 1.0, "", 1),
                Measurement("y", "gradient.shuffled", 0.2, "", 1),
            ),
            "d",
        )
    )
    assert found == {"x": 0.0, "y": 1.0}


def test_a_rate_is_taken_from_the_pilot_that_ended_lowest() -> None:
    pilots = [Measurement(f"{lr:g}", plan.PILOT, loss, "nats", 1) for lr, loss in ((3e-4, 0.9), (1e-3, 0.5), (3e-3, 0.7))]
    found = plan.rate(with_sites({"steps": 100, "line.best": 1e-5}, *CURVE, *pilots), [], Asked())
    assert found is not None
    assert found.value == 1e-3


@pytest.mark.parametrize(("best", "asked"), [(3, [3, 4, 2]), (5, [3, 4, 5, 6]), (6, [3, 4, 5, 6]), (1, [3, 4, 2, 1, 0]), (0, [3, 4, 2, 1, 0])])
def test_a_climb_goes_up_while_that_helps_or_else_down(best: int, asked: list[int]) -> None:
    seen = []

    def loss(rate: float) -> float:
        seen.append(int(rate))
        return abs(rate - best)

    assert plan.climbed(range(7), loss) == best
    assert seen == asked


def test_a_climb_past_rates_that_break_ends_on_one_that_holds() -> None:
    assert plan.climbed((1.0, 2.0, 3.0), lambda rate: 1.0 if rate == 1.0 else float("inf")) == 1.0
