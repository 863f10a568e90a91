"""Near duplicates against brute force, sketches against their sets, and numbers that depend on nothing but texts and seed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from knowhow.data import dedupe, shingles

WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnrst"]


def made(count: int, words: int, seed: int = 0) -> list[str]:
    """Texts of which about a third are changed copies of earlier ones."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.35:
            copy = texts[rng.integers(len(texts))].split(" ")
            for _ in range(rng.integers(0, 3)):
                copy[rng.integers(len(copy))] = str(rng.choice(WORDS))
            texts.append(" ".join(copy))
        else:
            texts.append(" ".join(rng.choice(WORDS, words)))
    return texts


def shingled(text: str) -> frozenset[str]:
    """The definition, one text at a time."""
    text = shingles.normalise(text)
    words = text.split(" ")
    if len(words) < shingles.SHORT:
        return frozenset(text[n : n + 5] for n in range(max(len(text) - 4, 1)))
    return frozenset(" ".join(words[n : n + 3]) for n in range(len(words) - 2))


def pairs_of(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    sets = [shingled(text) for text in texts]
    return {(a, b) for a, b in combinations(range(len(texts)), 2) if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b])}


@pytest.mark.parametrize(("words", "threshold"), [(12, 0.8), (12, 0.6), (80, 0.8), (200, 0.9)])
def test_near_pairs_are_those_of_brute_force(words: int, threshold: float) -> None:
    texts = made(250, words)
    expected, found = pairs_of(texts, threshold), set(map(tuple, dedupe.near_pairs(texts, threshold=threshold).tolist()))
    assert len(expected) > 20
    assert not found - expected
    assert len(expected - found) <= 0.02 * len(expected)


def test_clusters_are_the_chains_of_near_pairs() -> None:
    texts = made(300, 12, seed=1)
    numbers = dedupe.clusters(texts)
    for left, right in pairs_of(texts, 0.8):
        assert numbers[left] == numbers[right]
    sizes, pairs = np.bincount(numbers), pairs_of(texts, 0.8)
    assert sizes.max() > 2
    joined = {row for pair in pairs for row in pair}
    assert all(sizes[numbers[row]] == 1 for row in range(len(texts)) if row not in joined)
    assert numbers[0] == 0
    assert (np.diff(np.maximum.accumulate(numbers)) <= 1).all(), "numbered in order of first occurrence"


def test_exact_means_the_same_after_normalising() -> None:
    texts = ["Hello  World", "hello world", "hello world!", "ＨＥＬＬＯ world", "hello\nworld ", "straße", "STRASSE", "", " "]
    assert dedupe.exact(texts).tolist() == [0, 0, 1, 0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a"], ["ab", "ab", "abc"], ["\ud800 lone", "\ud800 lone"]])
def test_small_and_odd_inputs(texts: list[str]) -> None:
    numbers = dedupe.clusters(texts)
    assert len(numbers) == len(texts)
    assert len(set(numbers.tolist())) == len(set(texts))


def test_long_texts_are_judged_by_their_sketches() -> None:
    rng = np.random.default_rng(0)
    long = list(rng.choice(WORDS, 3000))
    near, far = list(long), list(long)
    for place in rng.choice(3000, 60, replace=False):
        near[place] = "changed"
    for place in rng.choice(3000, 600, replace=False):
        far[place] = "changed"
    one, other = shingled(" ".join(long)), shingled(" ".join(near))
    assert len(one & other) / len(one | other) > 0.85
    assert dedupe.clusters([" ".join(long), " ".join(near), " ".join(far)]).tolist() == [0, 0, 1]


def test_similarity_of_full_sketches_is_unbiased() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for trial in range(30):
        words = [f"{word}{trial}" for word in rng.choice(WORDS, 1500)]
        other = [word if rng.random() > 0.04 else "x" for word in words]
        a, b = shingled(" ".join(words)), shingled(" ".join(other))
        _, (_, part) = dedupe._read([" ".join(words), " ".join(other)], 0.8, 96, 0, None)
        errors.append(float(part.similarity(np.array([[0, 1]]))[0]) - len(a & b) / len(a | b))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.05


def test_texts_on_both_sides_of_the_word_border_are_compared() -> None:
    words = made(1, 52, seed=5)[0].split(" ")
    assert dedupe.clusters([" ".join(words), " ".join(words[:46])]).tolist() == [0, 0]
    words = made(1, 41, seed=5)[0].split(" ")
    assert dedupe.clusters([" ".join(words), " ".join(words[:38])]).tolist() == [0, 0]


def test_the_chunk_a_text_falls_into_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made(200, 12) + made(50, 70)
    whole = dedupe.clusters(texts)
    monkeypatch.setattr(dedupe, "_CHUNK_ROWS", 7)
    assert (dedupe.clusters(iter(texts)) == whole).all()
    assert (dedupe.clusters(texts) == dedupe.clusters(texts, seed=0)).all()


def test_crowded_buckets_still_join() -> None:
    texts = [f"the same long beginning of a sentence that goes on and on for a while {n:03d}" for n in range(400)]
    assert len(set(dedupe.clusters(texts).tolist())) == 1


def test_only_pairs_with_new_rows_when_asked() -> None:
    texts = made(120, 12)
    every = dedupe.near_pairs(texts)
    assert (dedupe.near_pairs(texts, first=60) == every[every[:, 1] >= 60]).all()
    assert 0 < (every[:, 1] >= 60).sum() < len(every)


@pytest.mark.parametrize(("threshold", "permutations"), [(0.8, 96), (0.5, 128), (0.9, 64)])
def test_bands_find_a_pair_at_the_threshold(threshold: float, permutations: int) -> None:
    rows = dedupe.band_rows(threshold, permutations)
    found = [1 - (1 - threshold**r) ** (permutations // r) for r in (rows, rows + 1)]
    assert found[0] >= 0.99 > found[1]
