"""Linear read-outs of states and n-grams."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from knowhow.adapt.readout import Linear, fit, scale


def test_labels_that_a_line_parts_are_learnt() -> None:
    draws = np.random.default_rng(0)
    gold = draws.integers(0, 3, 300)
    points_ND = np.eye(3)[gold] * 3 + draws.normal(size=(300, 3)) * 0.3
    for given in (points_ND, sparse.csr_matrix(points_ND)):
        assert (fit(given, gold, np.ones(300), 3, strength=1.0, bias=True)(given).argmax(1) == gold).mean() > 0.99


def test_a_label_that_no_row_has_is_never_given_and_weights_count() -> None:
    points, gold = np.array([[0.0], [0.0], [1.0]]), np.array([0, 1, 0])
    first = fit(points, gold, np.array([100.0, 1.0, 1.0]), 3, strength=1.0, bias=True)(points)
    other = fit(points, gold, np.array([1.0, 100.0, 1.0]), 3, strength=1.0, bias=True)(points)
    assert first[0].argmax() == 0
    assert other[0].argmax() == 1
    assert (first[:, 2] == -1).all()


def test_many_labels_are_told_apart_one_by_one() -> None:
    points = np.random.default_rng(1).normal(size=(200, 2))
    gold = (points > 0).astype(int)
    given = fit(points, gold, np.ones(200), 2, strength=1.0, bias=True)(points)
    assert ((given > 0) == gold).mean() > 0.97


def test_what_is_fitted_on_scaled_states_is_said_of_the_states() -> None:
    states = np.random.default_rng(2).normal(3, 2, size=(50, 4))
    for centred in (True, False):
        scaled = scale(states, centred=centred)
        linear = Linear(np.random.default_rng(3).normal(size=(4, 2)), np.array([0.5, -1.0]))
        assert np.allclose(scaled.undone(linear)(states), linear(scaled(states)))
    assert np.isclose((scale(states, centred=True)(states) ** 2).sum(1).mean(), 1)
