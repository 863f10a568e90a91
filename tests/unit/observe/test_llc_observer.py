"""The observed learning coefficient: gradients at many weights at once, a known value, and no trace of having looked."""

from __future__ import annotations

import copy

import pytest
import torch

from knowhow.experiments.regression import linear, reduced_rank
from knowhow.experiments.system import System
from knowhow.maths import hvp
from knowhow.observe.llc import LocalLearningCoefficient, chained
from knowhow.types import StepInfo


def info(at: System, step: int = 5) -> StepInfo:
    return StepInfo(step, 0, 0.0, {}, 0.1, 0.0, at.model, list(next(iter(at.batches))), at.objective, 32.0)


def test_loss_and_gradient_of_each_chain() -> None:
    at = reduced_rank(0, scale=0.5)
    shown = info(at)
    parameters = list(at.model.parameters())
    here = hvp.flat(parameters)
    loss_K, gradient_KP = chained(shown, shown.batches[0])(torch.stack([here, here + 0.1]))

    def loss() -> torch.Tensor:
        return at.objective(at.model, shown.batches[0])[0] / 32

    assert float(loss_K[0]) == pytest.approx(loss().item(), rel=1e-5)
    assert torch.allclose(gradient_KP[0], hvp.flat(hvp.gradient(loss, parameters)), atol=1e-6)
    with hvp.moved(parameters, [torch.ones_like(p) for p in parameters], 0.1):
        assert float(loss_K[1]) == pytest.approx(loss().item(), rel=1e-5)


def test_a_regular_model_at_its_minimum_and_no_trace_of_having_looked() -> None:
    at = linear(0, inputs=8)
    shown = info(at)
    inputs, targets = shown.batches[0].tokens_BT, shown.batches[0].labels
    with torch.no_grad():
        at.model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)  # type: ignore[union-attr, operator]
    before, random = copy.deepcopy(at.model.state_dict()), torch.get_rng_state()
    observer = LocalLearningCoefficient(lambda _: True, n=1000, chains=32, draws=(100, 200))
    observer.after(shown)
    (row,) = observer.rows()
    assert row["llc.value"] == pytest.approx(4.0, rel=0.12)
    assert row["llc.loss"] == pytest.approx(0.0, abs=1e-9)
    assert row["llc.error"] < 0.5
    assert all(torch.equal(before[name], value) for name, value in at.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in at.model.parameters())


def test_away_from_a_minimum_the_value_is_negative() -> None:
    at = linear(0, inputs=8)
    with torch.no_grad():
        at.model.weight.add_(2.0)  # type: ignore[union-attr, operator]
    observer = LocalLearningCoefficient(lambda _: True, n=1000, chains=8, draws=(100, 50))
    observer.after(info(at))
    assert observer.rows()[0]["llc.value"] < 0


def test_looks_before_since_are_left_out() -> None:
    observer = LocalLearningCoefficient(lambda step: step in (1, 9), since=2)
    assert [step for step in range(1, 12) if observer.due(step)] == [9]
