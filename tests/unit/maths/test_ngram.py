"""Kneser–Ney: probabilities sum to one, unseen contexts back off, and order helps where there is order."""

from __future__ import annotations

import numpy as np
import pytest

from knowhow.maths.ngram import fit, losses, unigram_losses

V = 12


def chain(count: int, seed: int) -> np.ndarray:
    """A second-order Markov chain over V tokens: the next token is decided by the last two, with some noise."""
    random = np.random.default_rng(seed)
    tokens = [0, 1]
    for _ in range(count):
        tokens.append(int(random.integers(V)) if random.random() < 0.1 else (3 * tokens[-1] + 5 * tokens[-2] + 1) % V)
    return np.array(tokens)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_tokens_sum_to_one(order):
    model = fit(chain(400, 0), V, 5)
    for context in ([4, 7, 1, 2], [0, 1, 6, 0]):
        total = sum(np.exp(-losses(model, np.array([*context, token]), order)[-1]) for token in range(V))
        assert total == pytest.approx(1.0, abs=1e-9)


def test_a_short_text_by_hand():
    # a b a c a b: continuation counts of the bigrams' second tokens are a: 2 (b, c), b: 1 (a), c: 1 (a)
    model = fit(np.array([0, 1, 0, 2, 0, 1]), 3, 2)
    lower = {1: 0.25 / 4 + 0.75 * 3 / 4 / 3, 0: 1.25 / 4 + 0.75 * 3 / 4 / 3}
    expected = (2 - 0.75) / 3 + 0.75 * 2 / 3 * lower[1]
    assert np.exp(-losses(model, np.array([0, 1]))[1]) == pytest.approx(expected)


def test_more_order_helps_where_the_text_has_it():
    train, held_out = chain(6000, 0), chain(1000, 1)
    model = fit(train, V, 5)
    by_order = [losses(model, held_out, order).mean() for order in (1, 2, 3)]
    assert by_order[2] < 1.1 < by_order[0] - 1.0
    assert unigram_losses(train, held_out, V).mean() == pytest.approx(np.log(V), abs=0.1)
