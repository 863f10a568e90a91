"""Systems with known answers: clusters, regressions and sparse features are what they say."""

from __future__ import annotations

import pytest
import torch

from knowhow.experiments.clusters import clusters
from knowhow.experiments.features import sparse_features
from knowhow.experiments.regression import linear, reduced_rank
from knowhow.experiments.system import system
from knowhow.types import Batch


def batch_of(name: str, seed: int, **options: object) -> Batch:
    (batch,) = next(iter(system(name, options, seed).batches))
    return batch


@pytest.mark.parametrize("name", ["clusters", "reduced-rank", "linear-regression", "sparse-features"])
def test_a_seed_gives_the_same_system_and_another_seed_another(name: str) -> None:
    first, again, other = batch_of(name, 3), batch_of(name, 3), batch_of(name, 4)
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    assert not torch.equal(first.tokens_BT, other.tokens_BT)
    weights = [torch.cat([p.detach().flatten() for p in system(name, {}, seed).model.parameters()]) for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_clusters_are_balanced_and_apart() -> None:
    at = clusters(0, classes=4, per_class=30, separation=3.0)
    (batch,) = next(iter(at.batches))
    assert batch.labels is not None
    assert batch.labels.bincount().tolist() == [30] * 4
    means = torch.stack([batch.tokens_BT[batch.labels == c].mean(0) for c in range(4)])
    spread = torch.stack([batch.tokens_BT[batch.labels == c].std(0).mean() for c in range(4)])
    assert torch.pdist(means).min() > 5 * spread.max()
    assert at.facts == {"classes": 4, "outputs": 4, "width": 64, "rows": 120}


def test_targets_of_clusters() -> None:
    number = clusters(0, classes=5, target="number")
    (batch,) = next(iter(number.batches))
    assert number.model(batch.tokens_BT).shape == batch.labels.shape == (200, 1)  # type: ignore[union-attr]
    assert float(batch.labels.var()) == pytest.approx(1.0, rel=0.01)  # type: ignore[union-attr]
    frozen = clusters(0, target="features-frozen").model
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    assert clusters(0, classes=5, outputs=12).facts["outputs"] == 12


def test_regressions_have_white_inputs_and_a_truth_of_the_rank_they_say() -> None:
    for at, rank in ((reduced_rank(1, inputs=6, outputs=4, hidden=5, true_rank=2), 2), (linear(1), 1)):
        (batch,) = next(iter(at.batches))
        inputs = batch.tokens_BT
        assert torch.allclose(inputs.T @ inputs / len(inputs), torch.eye(inputs.shape[1]), atol=1e-5)
        assert int(torch.linalg.matrix_rank(batch.labels, rtol=1e-4)) == rank
    singular = torch.linalg.svdvals(next(iter(reduced_rank(1).batches))[0].labels / 32**0.5)
    assert singular[:2].tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


def test_features_are_present_as_often_as_they_say() -> None:
    at = sparse_features(0, probability=0.2, decay=0.5, rows=20_000)
    (batch,) = next(iter(at.batches))
    assert float((batch.tokens_BT > 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert batch.tokens_BT.max() <= 1
    with torch.no_grad():
        for parameter in at.model.parameters():
            parameter.zero_()
    loss = at.objective(at.model, batch)[0].item() / at.objective.units(batch)
    assert loss == pytest.approx(0.2 / 3 * (1 + 0.5 + 0.25 + 0.125 + 0.0625), rel=0.05)


def test_the_toy_without_its_relu_is_linear() -> None:
    model = sparse_features(0, rectified=False).model
    inputs = torch.rand(4, 5)
    assert torch.allclose(model(-inputs), -model(inputs), atol=1e-6)
    assert bool((sparse_features(0).model(-inputs) >= 0).all())
