"""Exact learning coefficients of reduced-rank regression, and the law about the sampler."""

from __future__ import annotations

import pytest

from knowhow.laws.law import facts
from knowhow.laws.local_learning_coefficient import counted, identified, predict, reduced_rank, score
from knowhow.types import Trace

SINGULAR = {"inputs": 5, "outputs": 5, "hidden": 5, "true_rank": 2, "weights": 50}


@pytest.mark.parametrize(
    ("shape", "value", "multiplicity"),
    [
        ((5, 5, 5, 2), 11.5, 2),
        ((8, 8, 4, 2), 19.5, 1),
        ((6, 4, 5, 1), 10.0, 1),
        ((1, 1, 1, 0), 0.5, 2),
        ((2, 2, 1, 0), 1.0, 2),
        ((3, 1, 1, 0), 0.5, 1),
        ((1, 3, 1, 0), 0.5, 1),
        ((2, 2, 5, 0), 2.0, 1),
    ],
)
def test_known_values(shape: tuple[int, int, int, int], value: float, multiplicity: int) -> None:
    assert reduced_rank(*shape) == (value, multiplicity)


def test_full_rank_is_half_the_dimension_of_the_matrices_of_that_rank() -> None:
    for inputs in range(1, 7):
        for outputs in range(1, 7):
            for rank in range(1, min(inputs, outputs) + 1):
                assert reduced_rank(inputs, outputs, rank, rank)[0] == rank * (inputs + outputs - rank) / 2


def test_the_coefficient_is_symmetric_grows_with_hidden_and_is_at_most_half_the_weights() -> None:
    for inputs in range(1, 7):
        for outputs in range(1, 7):
            for hidden in range(1, 7):
                for rank in range(min(inputs, outputs, hidden) + 1):
                    value = reduced_rank(inputs, outputs, hidden, rank)[0]
                    assert value == reduced_rank(outputs, inputs, hidden, rank)[0]
                    assert value <= reduced_rank(inputs, outputs, hidden + 1, rank)[0] <= inputs * outputs / 2
                    assert value <= hidden * (inputs + outputs) / 2


def test_a_rank_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 3"):
        reduced_rank(5, 5, 2, 3)


def test_the_law_predicts_from_the_shape_and_wrong_counts_fail() -> None:
    trace = Trace(({"step": 300, "llc.value": 11.2, "llc.error": 0.2},))
    assert [one.verdict for one in score(predict(facts(SINGULAR)), trace)] == ["confirmed"]
    for wrong in (counted, identified):
        assert [one.verdict for one in score(wrong(facts(SINGULAR)), trace)] == ["violated"]
    assert predict(facts({"regular_weights": 20}))[0].value == 10
    assert predict(facts({"classes": 3})) == counted(facts({"classes": 3})) == identified(facts({"classes": 3})) == ()


@pytest.mark.parametrize(
    "row", [{}, {"llc.value": -3.0, "llc.error": 0.1}, {"llc.value": 11.5, "llc.error": 2.0}, {"llc.value": float("nan"), "llc.error": 0.1}]
)
def test_no_verdict_without_a_minimum_or_with_chains_that_disagree(row: dict[str, float]) -> None:
    (only,) = score(predict(facts(SINGULAR)), Trace(({"step": 1, **row},)))
    assert only.verdict == "not applicable"
    assert only.because
