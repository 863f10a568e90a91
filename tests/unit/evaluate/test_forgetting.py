from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

from knowhow.evaluate import forgetting


def test_the_sample_ships_and_says_where_it_is_from() -> None:
    texts, sources = forgetting.general_text(), forgetting.general_sources()
    assert len(texts) == len(sources) == 60
    assert len(set(sources)) == 6
    assert all(240 <= len(text.split()) <= 330 for text in texts)
    assert all(text.isprintable() or "\n" in text for text in texts)
    assert "public domain" in forgetting.provenance()["licence"]
    assert len(resources.files("knowhow.evaluate").joinpath("general.jsonl.xz").read_bytes()) < 200_000


def test_rise_is_per_token_and_paired() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    counts = random.integers(200, 400, 60)
    before = counts * random.normal(4, 1, 60)
    after = before + counts * 0.3 + random.normal(size=60)
    rise = forgetting.forgetting(before, after, counts)
    assert rise.value == pytest.approx((after - before).sum() / counts.sum())
    assert 0.29 < rise.low < rise.value < rise.high < 0.31, "the spread between passages cancels"
    books = forgetting.forgetting(before, after, counts, np.repeat(np.arange(6), 10))
    assert (rise.n, books.n) == (60, 6)
    same = forgetting.forgetting(before, before, counts)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_long_passages_weigh_more() -> None:
    assert forgetting.forgetting(np.zeros(2), np.array([90.0, 0.0]), np.array([90, 10])).value == pytest.approx(0.9)
