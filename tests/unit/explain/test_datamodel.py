"""The linear datamodelling score is 1 for a perfect datamodel and 0 for none; drivers are believed only after retraining."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from knowhow.errors import UsageError
from knowhow.explain.influence.datamodel import drivers, lds, lds_difference, outcomes, spearman, subsets
from knowhow.types import Interval

N, M, S = 60, 12, 50
TRUTH = np.random.default_rng(0).normal(size=(N, M))


def linear(mask_N: np.ndarray, seed: int) -> np.ndarray:
    """A training whose outcomes are a sum over the rows it saw, and a little noise."""
    found: np.ndarray = mask_N @ TRUTH + 0.05 * np.random.default_rng([seed, int(mask_N.sum())]).normal(size=M)
    return found


def test_a_perfect_datamodel_and_none_at_all() -> None:
    masks = subsets(N, S)
    measured = outcomes(masks, lambda mask, seed: np.exp(mask @ TRUTH / 10))
    perfect = lds(TRUTH, masks, measured)
    assert perfect.mean.value == perfect.mean.low == pytest.approx(1.0)
    assert perfect.wide.low == pytest.approx(1.0)
    assert lds(-TRUTH, masks, measured).mean.value == pytest.approx(-1.0)
    assert abs(perfect.null.value) < 0.03
    assert -0.2 < perfect.null.low < 0 < perfect.null.high < 0.2
    for seed in range(5):
        chance = lds(np.random.default_rng([9, seed]).normal(size=(N, M)), masks, measured)
        assert abs(chance.mean.value) < 0.15
        assert chance.wide.low < 0 < chance.wide.high
    half = lds(TRUTH + np.random.default_rng(1).normal(size=TRUTH.shape), masks, measured)
    assert chance.mean.high < half.mean.low < half.mean.high < 1
    assert half.wide.high - half.wide.low > half.mean.high - half.mean.low
    assert half.mean.n == M


def test_one_attribution_against_another() -> None:
    masks = subsets(N, S)
    measured = outcomes(masks, linear)
    drawn = np.random.default_rng(6)
    near, far = (TRUTH + size * drawn.normal(size=TRUTH.shape) for size in (0.5, 3.0))
    found = lds_difference(near, far, masks, measured)
    assert found.value == pytest.approx(lds(near, masks, measured).mean.value - lds(far, masks, measured).mean.value)
    assert 0 < found.low < found.value < found.high
    assert lds_difference(near, 2 * near, masks, measured) == Interval(0.0, 0.0, 0.0, M)
    twin = lds_difference(far, TRUTH + 3.0 * drawn.normal(size=TRUTH.shape), masks, measured)
    assert twin.low < 0 < twin.high
    with pytest.raises(UsageError, match="three subsets"):
        lds_difference(near, far[:-1], masks, measured)
    assert np.isnan(lds_difference(near, np.zeros_like(near), masks, measured).value)


def test_ranks_are_those_of_scipy_and_what_does_not_change_says_nothing() -> None:
    drawn = np.random.default_rng(2)
    a, b = drawn.normal(size=(20, 3)), np.round(drawn.normal(size=(20, 3)))
    assert spearman(a, b) == pytest.approx([stats.spearmanr(a[:, at], b[:, at]).statistic for at in range(3)])
    masks = subsets(N, S)
    measured = outcomes(masks, linear)
    measured[:, 3] = 1.0
    found = lds(TRUTH, masks, measured)
    assert np.isnan(found.each[3])
    assert found.mean.n == M - 1
    assert found.mean.value > 0.95
    assert np.isnan(lds(TRUTH, masks, np.ones((S, M))).mean.value)


def test_subsets_are_halves_each_on_its_own_draw() -> None:
    masks = subsets(N, S, seed=3)
    assert (masks.sum(1) == N // 2).all()
    assert np.array_equal(masks[:7], subsets(N, 7, seed=3))
    assert not np.array_equal(masks, subsets(N, S, seed=4))
    assert len({mask.tobytes() for mask in masks}) == S
    assert (subsets(10, 4, share=0.8).sum(1) == 8).all()
    with pytest.raises(UsageError, match="neither empty nor everything"):
        subsets(10, 4, share=0.01)


def test_outcomes_are_means_over_seeds() -> None:
    masks, calls = subsets(N, 4), []
    found = outcomes(masks, lambda mask, seed: calls.append(seed) or np.full(2, float(seed)), seeds=(1, 4), progress=lambda *_: None)
    assert found.tolist() == [[2.5, 2.5]] * 4
    assert calls == [1, 4] * 4
    with pytest.raises(UsageError, match="seeds"):
        outcomes(masks, linear, seeds=())
    with pytest.raises(UsageError, match="three subsets"):
        lds(TRUTH, masks[:2], np.zeros((2, M)))


def test_drivers_that_are_and_drivers_that_are_not() -> None:
    true = drivers(TRUTH[:, 5], k=4, retrain=linear, test=5)
    order = np.argsort(TRUTH[:, 5])
    assert [one.row for one in true.helpful] == order[::-1][:4].tolist()
    assert [one.row for one in true.harmful] == order[:4].tolist()
    helped, hurt = true.findings
    assert helped.verdict == hurt.verdict == "supported"
    assert helped.effect == pytest.approx(sum(one.score for one in true.helpful), abs=0.2)
    assert hurt.effect == pytest.approx(sum(one.score for one in true.harmful), abs=0.2)
    assert abs(helped.control) < helped.effect / 2
    assert helped.interval.value == pytest.approx(helped.effect - helped.control)
    assert helped.interval.n == 8
    assert "4 training rows" in helped.claim
    turned = drivers(-TRUTH[:, 5], k=4, retrain=linear, test=5)
    assert [finding.verdict for finding in turned.findings] == ["refuted", "refuted"]
    nothing = drivers(
        np.random.default_rng(4).normal(size=N), k=4, retrain=lambda mask, seed: np.random.default_rng([seed, *mask.astype(int)]).normal(size=M), test=5
    )
    assert [finding.verdict for finding in nothing.findings] == ["undecided", "undecided"]


def test_drivers_without_retraining_and_with_one_side_alone() -> None:
    assert drivers(TRUTH[:, 0]).findings == ()
    only = drivers(np.abs(TRUTH[:, 5]), k=3, retrain=linear, test=5, seeds=(0, 1))
    assert only.harmful == ()
    assert len(only.findings) == 1
    with pytest.raises(UsageError, match="third"):
        drivers(TRUTH[:, 0], k=30, retrain=linear)
    with pytest.raises(UsageError, match="two seeds"):
        drivers(TRUTH[:, 0], k=3, retrain=linear, seeds=(0,))
