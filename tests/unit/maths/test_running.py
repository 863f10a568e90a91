"""Running statistics equal those of everything at once, however the vectors came in."""

from __future__ import annotations

import torch

from knowhow.maths.running import Moments, Quantiles, TopK

VALUES = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]) + 1000.0


def test_moments() -> None:
    whole, parts = Moments(covariance=True), Moments()
    for chunk in VALUES.split([1, 7, 0, 200, 292]):
        whole.update(chunk)
        parts.update(chunk)
    assert whole.count == parts.count == 500
    torch.testing.assert_close(whole.covariance, VALUES.double().T.cov())
    torch.testing.assert_close(parts.variance, VALUES.double().var(0))
    torch.testing.assert_close(parts.mean, VALUES.double().mean(0))


def test_quantiles_are_exact_while_everything_fits_and_close_after() -> None:
    exact, sampled = Quantiles((0.1, 0.9)), Quantiles((0.1, 0.9), size=200)
    for chunk in VALUES.split(90):
        exact.update(chunk)
        sampled.update(chunk)
    want = torch.quantile(VALUES.double(), torch.tensor([0.1, 0.9], dtype=torch.float64), dim=0)
    torch.testing.assert_close(exact.values, want)
    assert ((sampled.values - want).abs() < 0.5 * VALUES.std(0)).all()
    assert sampled.count == 500


def test_top_values_know_where_they_were() -> None:
    top = TopK(4)
    for chunk in VALUES.split(61):
        top.update(chunk)
    values, index = VALUES.topk(4, dim=0)
    assert torch.equal(top.values, values)
    assert torch.equal(top.index, index)
    assert top.count == 500
