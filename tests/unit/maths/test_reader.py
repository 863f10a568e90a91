"""The linear reader against scikit-learn, and its scores against hand counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from knowhow.maths.linear import fit, loss_of, score_of


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(120, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]).double()


def test_classes_as_scikit_learn_has_them(features: torch.Tensor) -> None:
    labels = (features @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()).argmax(-1)
    reader = fit(features, labels, "one", 3, penalty=0.1, steps=400)
    ready = (features - features.mean(0)) / features.std(0, unbiased=False)
    other = LogisticRegression(C=1 / (0.1 * len(features)), tol=1e-10, max_iter=2000).fit(ready.numpy(), labels.numpy())
    assert np.allclose(torch.softmax(reader(features), -1).numpy(), other.predict_proba(ready.numpy()), atol=1e-4)


def test_numbers_as_ridge_has_them(features: torch.Tensor) -> None:
    gold = features[:, 0] * 2 - 1 + torch.randn(120, generator=torch.Generator().manual_seed(2)).double()
    reader = fit(features, gold, "number", 1, penalty=0.01, steps=400)
    ready = (features - features.mean(0)) / features.std(0, unbiased=False)
    other = Ridge(alpha=0.01 * len(features)).fit(ready.numpy(), gold.numpy())
    assert np.allclose(reader(features)[:, 0].numpy(), other.predict(ready.numpy()), atol=1e-5)


def test_without_bias_nothing_is_added(features: torch.Tensor) -> None:
    reader = fit(features, (features[:, :2] > 0).double(), "many", 2, bias=False)
    assert torch.equal(reader.bias_C, torch.zeros(2).double())
    assert reader(torch.zeros(1, 5).double()).abs().sum() == 0


def test_scores_by_hand() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0]])
    assert score_of(outputs, torch.tensor([0, 0, 0]), "one") == pytest.approx(2 / 3)
    assert score_of(outputs, torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), "many") == pytest.approx(4 / 6)
    assert score_of(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 3.0]), "number") == 1.0
    shares = torch.tensor([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    assert float(loss_of(outputs, shares, "one")) == pytest.approx(float(-(shares * torch.log_softmax(outputs, -1)).sum(-1).mean()))
