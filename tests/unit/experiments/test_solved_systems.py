"""Systems whose training can be solved: what they say they are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from knowhow.experiments.linear import InContext, deep_linear, in_context_regression
from knowhow.experiments.perceptron import perceptron
from knowhow.laws.linear_attention import plateaus
from knowhow.types import Batch


def first(batches: object) -> Batch:
    assert isinstance(batches, object)
    return next(iter(batches))[0]  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("layers", [1, 2])
def test_deep_linear_has_white_inputs_and_the_strengths_it_names(layers: int) -> None:
    at = deep_linear(3, strengths=(2.0, 1.0, 0.5), layers=layers, start=1e-3)
    batch = first(at.batches)
    assert batch.labels is not None
    count = len(batch.tokens_BT)
    assert torch.allclose(batch.tokens_BT.T @ batch.tokens_BT / count, torch.eye(3, dtype=torch.float64), atol=1e-12)
    correlation_DD = batch.labels.T @ batch.tokens_BT / count
    assert torch.linalg.svdvals(correlation_DD).tolist() == pytest.approx([2.0, 1.0, 0.5])
    map_DD = at.model(torch.eye(3, dtype=torch.float64)).T.detach()
    assert torch.linalg.svdvals(map_DD).tolist() == pytest.approx([1e-3] * 3)
    loss = at.objective(at.model, batch)[0] / at.objective.units(batch)
    assert float(loss.detach()) == pytest.approx(float((map_DD - correlation_DD).square().sum()) / 2)
    starts = [one.value for one in at.sites if one.metric == "start"]
    assert starts == pytest.approx([1e-3] * 3)


def test_an_unaligned_start_overlaps_less_in_a_wide_layer() -> None:
    narrow = [deep_linear(seed, aligned=False, start=0.01).facts["overlap"] for seed in range(5)]
    wide = [deep_linear(seed, aligned=False, start=0.01, width=100).facts["overlap"] for seed in range(5)]
    assert max(wide) < 0.4 < min(narrow)
    assert deep_linear(0).facts["overlap"] < 1e-9


def test_inputs_can_be_coloured() -> None:
    inputs_BD = first(deep_linear(0, spread=2.0).batches).tokens_BT
    variances_D = inputs_BD.square().mean(0)
    assert float(variances_D.max() / variances_D.min()) == pytest.approx(math.exp(2.0))


def test_expected_loss_is_the_mean_over_sequences() -> None:
    at = in_context_regression(0, eigenvalues=(1.0, 0.5), context=5, heads=3, start=0.8, rows=20_000)
    batch = first(at.batches)
    loss, metrics = at.objective(at.model, batch)
    assert float(loss.detach()) / 20_000 == pytest.approx(float(metrics["risk"]) / 20_000, rel=0.05)
    merged = in_context_regression(0, eigenvalues=(1.0, 0.5), context=5, heads=3, start=0.8, rows=20_000, merged=True)
    loss, metrics = merged.objective(merged.model, batch)
    assert float(loss.detach()) == pytest.approx(float(metrics["risk"]), rel=0.05)


def test_plateaus_are_the_least_losses_with_that_many_directions() -> None:
    eigenvalues = (1.0, 0.5, 0.25)
    at = in_context_regression(0, eigenvalues=eigenvalues, heads=3)
    objective, model = at.objective, at.model
    assert isinstance(objective, InContext)
    trace, levels = sum(eigenvalues), plateaus(eigenvalues, 31)
    best_D = torch.tensor([1 / (value * (1 + 1 / 31) + trace / 31) for value in eigenvalues], dtype=torch.float64)
    values_H, keys_HD, queries_HD = model.parameters()
    with torch.no_grad():
        keys_HD.copy_(torch.eye(3))
        queries_HD.copy_(torch.eye(3))
    for learned in range(4):
        with torch.no_grad():
            values_H.copy_(torch.where(torch.arange(3) < learned, best_D, 0.0))
        assert float(objective.risk(model).detach()) == pytest.approx(levels[learned])
        objective.risk(model).backward()
        assert values_H.grad is not None
        assert float(values_H.grad[:learned].abs().max() if learned else 0.0) < 1e-9
        model.zero_grad()


def test_perceptron_sees_all_rows_at_every_step() -> None:
    at = perceptron(1)
    assert at.facts == {"full_batch": 1.0, "rows": 64.0}
    once, twice = itertools.islice(iter(at.batches), 2)
    assert torch.equal(once[0].tokens_BT, twice[0].tokens_BT)
    assert all(torch.equal(a, b) for a, b in zip(at.model.parameters(), perceptron(1).model.parameters(), strict=True))
    labels = once[0].labels
    assert labels is not None
    assert labels.std(0).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    few = perceptron(1, hidden=(), activation="linear")
    assert [tuple(p.shape) for p in few.model.parameters()] == [(2, 10), (2,)]
