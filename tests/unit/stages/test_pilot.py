"""What knowing nothing costs: the loss of the best constant, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knowhow.data.batch import rows
from knowhow.stages.pilot import constant
from knowhow.types import Task


def made(labels: np.ndarray):
    return rows([[1, 2]] * len(labels), [str(at) for at in range(len(labels))], labels=labels)


def test_of_classes_it_is_their_entropy() -> None:
    assert constant(made(np.array([0, 0, 0, 1])), Task("classify", ("a", "b"))) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_of_many_labels_the_mean_of_theirs() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], np.float32)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.25)]
    assert constant(made(labels), Task("classify", ("a", "b"), many=True)) == pytest.approx(sum(entropy) / 2, rel=1e-6)


def test_of_numbers_half_their_variance() -> None:
    assert constant(made(np.array([1.0, 3.0, 5.0])), Task("regress")) == pytest.approx(np.var([1, 3, 5]) / 2)
    assert constant(rows([[1]], ["a"]), Task("generate")) == math.inf
