"""The nearest training rows vote."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from knowhow.evaluate import neighbours
from knowhow.evaluate.linear import Side

COUNTS = sparse.csr_matrix(np.array([[3, 0, 1], [2, 0, 2], [0, 3, 1], [0, 2, 2], [0, 4, 0]], float))


def side(gold: np.ndarray) -> Side:
    return Side(COUNTS, gold, np.ones(5))


def error(given: np.ndarray, part: Side) -> float:
    return float(np.abs(given - (np.eye(2)[part.gold] if part.gold.dtype == int else part.gold)).mean())


def test_labels_numbers_and_sets_come_from_the_nearest_rows():
    gold = np.array([0, 0, 1, 1, 1])
    model = neighbours.fit(side(gold), side(gold), "one", 2, loss=error)
    given = model(sparse.csr_matrix(np.array([[5, 0, 0], [0, 5, 0]], float)))
    assert np.allclose(given.sum(1), 1)
    assert given.argmax(1).tolist() == [0, 1]
    many = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], float)
    assert (neighbours.fit(side(many), side(many), "many", 2, loss=error)(COUNTS).round() == many).all()
    numbers = np.array([1.0, 1.5, 8.0, 8.5, 9.0])
    found = neighbours.fit(side(numbers), side(numbers), "number", 0, loss=error)(COUNTS)
    assert found.shape == (5,)
    assert np.abs(found - numbers).max() < 1


def test_the_number_of_neighbours_is_chosen_on_validation():
    noisy = np.array([1, 0, 1, 1, 1])
    truth = np.array([0, 0, 1, 1, 1])
    model = neighbours.fit(Side(COUNTS, noisy, np.array([0.1, 5, 1, 1, 1])), side(truth), "one", 2, loss=error)
    assert model(COUNTS[:1]).argmax() == 0
