"""Rows and answers that the tests of the evaluation share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from knowhow.types import Example, Predictions, Task

LABELS = ("clean", "dropper", "rat")


@pytest.fixture
def task() -> Task:
    return Task("classify", LABELS)


@pytest.fixture
def examples() -> list[Example]:
    """120 rows; inputs repeat three times, so there are 40 distinct ones; two slices."""
    random = np.random.Generator(np.random.PCG64(0))
    labels = random.integers(0, 3, 40)
    return [
        Example(id=f"r{row}", prompt=f"call {row % 40}", label=LABELS[labels[row % 40]], weight=1 + row % 2, slice="short" if row % 40 < 10 else "long")
        for row in range(120)
    ]


@pytest.fixture
def model() -> Callable[..., Predictions]:
    """model(examples, skill, seed): softmax answers, the same for equal inputs; skill 0 knows nothing."""

    def make(examples: list[Example], skill: float, seed: int = 1, name: str = "m") -> Predictions:
        logits = []
        for example in examples:
            noise = np.random.Generator(np.random.PCG64([seed, *str(example.prompt).encode()])).normal(size=3)
            logits.append(noise + skill * np.eye(3)[LABELS.index(example.label)])
        logits_NC = np.array(logits)
        probs_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(1, keepdims=True)
        return Predictions(name, tuple(example.id for example in examples), probs_NC=probs_NC, logits_NC=logits_NC)

    return make
