"""Intervals cover what they promise, exact tests equal brute force, and the same seed gives the same draws."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from knowhow.maths import statistics as s


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_bootstrap_covers_the_true_mean_of_clustered_rows() -> None:
    """90% intervals over 200 data sets of 60 clusters × 5 equal rows cover the truth; intervals that ignore the clusters do not."""
    hits = naive = 0
    for seed in range(200):
        values_N = np.repeat(generator(seed).normal(size=60), 5)
        clusters_N = np.repeat(np.arange(60), 5)
        interval = s.bootstrap(s.weighted_mean(values_N), clusters_N, draws=200, seed=seed, confidence=0.9, vectorised=True)
        blind = s.bootstrap(s.weighted_mean(values_N), np.arange(300), draws=200, seed=seed, confidence=0.9, vectorised=True)
        hits += interval.low <= 0 <= interval.high
        naive += blind.low <= 0 <= blind.high
    assert 0.83 <= hits / 200 <= 0.95
    assert naive / 200 < 0.7


def test_width_is_that_of_the_standard_error() -> None:
    values_N = generator().normal(size=2000)
    interval = s.bootstrap(s.weighted_mean(values_N), np.arange(2000), draws=2000, vectorised=True)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values_N.std() / np.sqrt(2000), rel=0.08)
    assert interval.n == 2000


def test_clusters_come_and_go_together_and_keep_the_total() -> None:
    clusters_N = np.array([7, 7, 3, 9, 3, 7])
    weights_DN = np.vstack(list(s.resample(clusters_N, draws=50, seed=1)))
    assert weights_DN.shape == (50, 6)
    assert (weights_DN[:, 0] == weights_DN[:, 1]).all()
    assert (weights_DN[:, 2] == weights_DN[:, 4]).all()
    assert (weights_DN[:, [0, 2, 3]].sum(1) == 3).all()
    assert len(np.unique(weights_DN, axis=0)) > 5


def test_same_seed_same_draws_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters_N = generator().integers(0, 40, 100)
    whole = np.vstack(list(s.resample(clusters_N, draws=30, seed=5)))
    monkeypatch.setattr(s, "BLOCK", 700)
    assert np.array_equal(whole, np.vstack(list(s.resample(clusters_N, draws=30, seed=5))))
    assert not np.array_equal(whole, np.vstack(list(s.resample(clusters_N, draws=30, seed=6))))


def test_rowwise_and_vectorised_agree() -> None:
    values_N, clusters_N = generator().random(50), np.arange(50) // 2
    one = s.bootstrap(lambda w: float((w * values_N).sum() / w.sum()), clusters_N, draws=100)
    assert one == s.bootstrap(s.rowwise(lambda w: float((w * values_N).sum() / w.sum())), clusters_N, draws=100, vectorised=True)
    assert one.value == pytest.approx(values_N.mean())


def test_paired_is_tighter_than_apart() -> None:
    random = generator()
    shared_N = random.normal(size=300)
    a, b = s.weighted_mean(shared_N + 0.1 + 0.01 * random.normal(size=300)), s.weighted_mean(shared_N)
    paired = s.paired_bootstrap(a, b, np.arange(300), draws=500, vectorised=True)
    alone = s.bootstrap(a, np.arange(300), draws=500, vectorised=True)
    assert paired.low > 0.09
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_no_interval_without_two_clusters_or_with_an_undefined_statistic() -> None:
    single = s.bootstrap(s.weighted_mean(np.ones(3)), np.zeros(3), vectorised=True)
    assert single.value == 1
    assert np.isnan([single.low, single.high]).all()
    assert np.isnan(s.percentile(0.5, np.array([np.nan, np.nan, 0.5]), 10).low)


def test_a_thousand_draws_of_ten_thousand_rows_are_quick() -> None:
    """About .15 s on a free core; the bound leaves room for a loaded machine and none for re-indexing rows draw by draw."""
    features_NF = generator().random((10_000, 24))
    start = time.process_time()
    s.replicates([lambda w: (w @ features_NF).T], np.arange(10_000), np.ones(10_000), draws=1000)
    assert time.process_time() - start < 4


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a_N, b_N = np.array([1] * 9 + [0] * 3 + [1] * 20), np.array([0] * 9 + [1] * 3 + [1] * 20)
    assert s.mcnemar(a_N, b_N) == pytest.approx(stats.binomtest(9, 12, 0.5).pvalue)
    assert s.mcnemar(a_N, b_N, np.ones(32)) == pytest.approx(s.mcnemar(a_N, b_N), abs=1e-12)
    assert s.mcnemar(a_N, a_N) == 1.0


def test_a_thousand_copies_of_one_row_are_one_piece_of_evidence() -> None:
    a_N, b_N = np.ones(1000), np.zeros(1000)
    assert s.mcnemar(a_N, b_N) < 1e-100
    assert s.mcnemar(a_N, b_N, clusters_N=np.zeros(1000)) == 1.0
    assert s.mcnemar(a_N[:1], b_N[:1], np.array([1000.0])) == 1.0


def test_sign_flip_equals_all_signs_and_its_sampled_form_comes_near() -> None:
    few = np.array([0.5, -1.0, 2.0, 3.0, 0.0, 0.7])
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    assert s.sign_flip(few) == pytest.approx((np.abs(signs @ few) >= abs(few.sum()) - 1e-9).mean())
    ones = np.r_[np.ones(30), -np.ones(14)]
    assert s.sign_flip(ones, draws=100_000) == pytest.approx(stats.binomtest(30, 44, 0.5).pvalue, rel=0.1)
    assert 0 < s.sign_flip(np.ones(200)) < 2e-4


def test_sign_flip_keeps_its_level() -> None:
    p = [s.sign_flip(generator(seed).normal(size=25), draws=500, seed=seed) for seed in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_wilson_and_clopper_pearson_against_published_values() -> None:
    interval = s.wilson(81, 263)  # Newcombe 1998, table I
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert s.wilson(0, 20).low == 0
    assert np.isnan(s.wilson(0, 0).value)
    assert s.clopper_pearson_upper(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert s.clopper_pearson_upper(3, 3, 0.05) == 1


def test_risk_p_value_is_the_binomial_tail_and_valid_for_shares() -> None:
    assert s.risk_p_value(np.r_[np.ones(2), np.zeros(98)], 0.05) == pytest.approx(stats.binom.cdf(2, 100, 0.05))
    assert s.risk_p_value(np.ones(5), 0.5) == 1
    assert s.risk_p_value(np.zeros(0), 0.5) == 1
    shares = [s.risk_p_value(generator(seed).uniform(0, 0.2, 200), 0.1) for seed in range(300)]
    assert np.mean(np.array(shares) <= 0.1) <= 0.1


def test_effective_n() -> None:
    assert s.effective_n(np.ones(10)) == 10
    assert s.effective_n(np.array([1000.0, 1.0])) == pytest.approx(1.002, abs=1e-3)
    assert s.effective_n(np.ones(10), np.repeat([0, 1], 5)) == 2
    assert s.effective_n(np.zeros(3)) == 0
