"""Interpolated Kneser–Ney n-gram models over token ids: what a language model must beat. Shape letters: N training tokens, M tokens to score, V vocabulary.

Kneser & Ney 1995; interpolated form as in Chen & Goodman 1998, §2.7, with one discount for all orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Level:
    """All n-grams of one order: sorted keys (context number × V + token), their (continuation) counts, and per context number the total and
    the number of different followers."""

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    followers: np.ndarray


@dataclass(frozen=True, slots=True)
class NGram:
    """`levels[k]` has order k + 1."""

    levels: tuple[Level, ...]
    vocabulary: int
    discount: float


def fit(tokens_N: np.ndarray, vocabulary: int, order: int = 5, discount: float = 0.75) -> NGram:
    """Counts of every n-gram up to `order`; below the highest order they are counts of different left neighbours."""
    tokens = tokens_N.astype(np.int64)
    numbers = tokens
    keys = [np.arange(vocabulary)]
    places: list[np.ndarray] = []
    ids = [numbers]
    for _ in range(1, order):
        key = np.full(len(tokens), -1, np.int64)
        key[len(tokens) - len(numbers) + 1 :] = numbers[:-1] * vocabulary + tokens[len(tokens) - len(numbers) + 1 :]
        found, first, numbers = np.unique(key[len(tokens) - len(numbers) + 1 :], return_index=True, return_inverse=True)
        keys.append(found)
        places.append(first)
        ids.append(numbers)
    levels = []
    for n in range(order):
        size = len(keys[n])
        if n == order - 1:
            counts = np.bincount(ids[n], minlength=size)
        else:
            # the n-gram that ends where an (n+1)-gram was first seen: one different left neighbour
            counts = np.bincount(ids[n][1:][places[n]], minlength=size)
        contexts = keys[n] // vocabulary if n else np.zeros(size, np.int64)
        wide = len(keys[n - 1]) if n else 1
        levels.append(Level(keys[n], counts, np.bincount(contexts, counts, minlength=wide), np.bincount(contexts, counts > 0, minlength=wide)))
    return NGram(tuple(levels), vocabulary, discount)


def losses(model: NGram, tokens_M: np.ndarray, order: int | None = None) -> np.ndarray:
    """−log p of each token given those before it, in nats: float M. `order` uses only the first orders (1: the unigram of continuations)."""
    tokens = tokens_M.astype(np.int64)
    share = np.full(len(tokens), 1.0 / model.vocabulary)
    context = np.zeros(len(tokens), np.int64)
    for n, level in enumerate(model.levels[: order or len(model.levels)]):
        known = context >= 0
        key = context * model.vocabulary + tokens if n else tokens
        at = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
        seen = known & (level.keys[at] == key)
        total = np.where(known, level.totals[np.maximum(context, 0)], 0)
        use = total > 0
        count = np.where(seen, level.counts[at], 0)
        rest = np.where(use, level.followers[np.maximum(context, 0)], 0)
        safe = np.maximum(total, 1)
        share = np.where(use, np.maximum(count - model.discount, 0) / safe + model.discount * rest / safe * share, share)
        context = np.concatenate([[-1], np.where(seen, at, -1)[:-1]])
    return -np.log(share)


def unigram_losses(tokens_N: np.ndarray, tokens_M: np.ndarray, vocabulary: int) -> np.ndarray:
    """−log p by plain relative frequencies with one added to each count (Laplace), in nats: float M."""
    counts = np.bincount(tokens_N, minlength=vocabulary) + 1.0
    return -np.log(counts / counts.sum())[tokens_M.astype(np.int64)]


def following(model: NGram, tokens_M: np.ndarray, at_P: np.ndarray) -> np.ndarray:
    """The share PV that the model gives to every token after each position `at_P` of `tokens_M` (its context: that token and those before it)."""
    tokens, at_P = tokens_M.astype(np.int64), np.asarray(at_P, np.int64)
    shares_PV = np.full((len(at_P), model.vocabulary), 1.0 / model.vocabulary)
    context_P = np.zeros(len(at_P), np.int64)
    for n, level in enumerate(model.levels):
        if n:
            context_P = _context(model, tokens, at_P, n)
        use_P = (context_P >= 0) & (level.totals[np.maximum(context_P, 0)] > 0)
        safe_P = np.where(use_P, context_P, 0)
        low_P, high_P = (np.searchsorted(level.keys, (safe_P + at) * model.vocabulary) if n else np.full(len(at_P), at * len(level.keys)) for at in (0, 1))
        total_P, rest_P = level.totals[safe_P][:, None], level.followers[safe_P][:, None]
        new_PV = model.discount * rest_P / np.maximum(total_P, 1) * shares_PV
        sizes_P = high_P - low_P
        row_K = np.repeat(np.arange(len(at_P)), sizes_P)
        entry_K = np.arange(len(row_K)) - np.repeat(np.cumsum(sizes_P) - sizes_P, sizes_P) + np.repeat(low_P, sizes_P)
        new_PV[row_K, level.keys[entry_K] % model.vocabulary] += np.maximum(level.counts[entry_K] - model.discount, 0) / np.maximum(total_P[row_K, 0], 1)
        shares_PV = np.where(use_P[:, None], new_PV, shares_PV)
    return shares_PV


def _context(model: NGram, tokens: np.ndarray, at_P: np.ndarray, length: int) -> np.ndarray:
    """The number of the context of `length` tokens that ends at each position; −1 where it was never seen or would begin before the first token."""
    number_P = np.zeros(len(at_P), np.int64)
    for n, level in enumerate(model.levels[:length]):
        place_P = at_P - length + 1 + n
        key_P = number_P * model.vocabulary + tokens[np.maximum(place_P, 0)]
        found_P = np.minimum(np.searchsorted(level.keys, key_P), len(level.keys) - 1)
        number_P = np.where((number_P >= 0) & (place_P >= n) & (level.keys[found_P] == key_P), found_P, -1)
    return number_P
