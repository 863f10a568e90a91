"""Observers of products, modes, curvature and stationarity against what dense linear algebra says."""

from __future__ import annotations

import math

import pytest
import torch

from knowhow.experiments.linear import deep_linear, stack
from knowhow.experiments.perceptron import perceptron
from knowhow.experiments.system import MeanSquare, numbers
from knowhow.observe.fact import Fact, outer_products, root
from knowhow.observe.factors import Factors
from knowhow.observe.modes import Modes
from knowhow.observe.sharpness import EPSILON, Sharpness
from knowhow.types import Batch, Rate, StepInfo

Tensor = torch.Tensor


def always(_: int) -> bool:
    return True


def info(model: torch.nn.Module, batch: Batch, *, step: int = 1, decay: float = 0.0, momentum: float = 0.0) -> StepInfo:
    """A step whose gradients have just been computed."""
    objective = MeanSquare()
    units = objective.units(batch)
    model.zero_grad()
    loss = objective(model, batch)[0] / units
    loss.backward()
    rates = {name: Rate(0.1, decay, "sgd", momentum) for name, _ in model.named_parameters()}
    return StepInfo(step, 0, float(loss.detach()), {}, 0.1, 1.0, model, [batch], objective, units, rates=rates)


def whole(at: object) -> Batch:
    return next(iter(at.batches))[0]  # type: ignore[attr-defined,no-any-return]


def test_modes_of_an_aligned_start() -> None:
    at = deep_linear(0, strengths=(2.0, 1.0), start=0.1)
    watching = Modes(always)
    watching.before(info(at.model, whole(at)))
    row = watching.rows()[0]
    assert [row["modes.learned.1"], row["modes.learned.2"]] == pytest.approx([0.05, 0.1])
    assert row["modes.whiteness"] < 1e-12
    assert row["modes.coupling"] == pytest.approx(0.0, abs=1e-12)
    coloured = deep_linear(0, strengths=(2.0, 1.0), start=0.1, spread=2.0)
    watching.before(info(coloured.model, whole(coloured)))
    assert watching.rows()[1]["modes.whiteness"] > 0.1


def test_factors_of_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    first_RD, second_OR = torch.randn(3, 4, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    watching = Factors(always)
    watching.before(info(stack([first_RD, second_OR]), numbers(torch.zeros(2, 4).double(), torch.zeros(2, 5).double())))
    row = watching.rows()[0]
    singular = torch.linalg.svdvals(second_OR @ first_RD).tolist()
    assert [row[f"factors.singular.{k + 1}"] for k in range(3)] == pytest.approx(singular[:3])
    assert row["factors.nuclear"] == pytest.approx(sum(singular))
    assert row["factors.half_square"] == pytest.approx(float(first_RD.square().sum() + second_OR.square().sum()) / 2)
    assert row["factors.imbalance"] == pytest.approx(float((first_RD @ first_RD.T - second_OR.T @ second_OR).norm()))


def dense(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The Hessian PP of the mean loss, column by column."""
    parameters = list(model.parameters())
    loss = MeanSquare()(model, batch)[0] / len(batch.tokens_BT)
    flat_P = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.cat([h.reshape(-1) for h in torch.autograd.grad(one, parameters, retain_graph=True)]) for one in flat_P]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def small() -> tuple[torch.nn.Module, Batch]:
    at = perceptron(0, rows=16, size=3, hidden=(4,), outputs=2)
    batch = whole(at)
    assert batch.labels is not None
    return at.model.double(), numbers(batch.tokens_BT.double(), batch.labels.double())


def test_sharpness_is_the_largest_eigenvalue(small: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = small
    watching = Sharpness(always, krylov=25)
    watching.before(info(model, batch))
    assert watching.rows()[0]["sharpness.top"] == pytest.approx(float(torch.linalg.eigvalsh(dense(model, batch))[-1]), rel=1e-6)


def test_preconditioned_sharpness_is_that_of_adams_coordinates(small: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = small
    watching = Sharpness(always, krylov=26, beta2=0.95, period=2)
    squares = []
    for step in (1, 2, 3):
        at = info(model, batch, step=step, momentum=0.9)
        squares.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).square())
        watching.before(at)
    assert [row["step"] for row in watching.rows()] == [1, 3]
    mean_P = sum((0.05 * 0.95 ** (2 - k) * square for k, square in enumerate(squares)), torch.zeros_like(squares[0])) / (1 - 0.95**3)
    scale_P = ((1 - 0.9**3) * (mean_P.sqrt() + EPSILON)).rsqrt()
    expected = float(torch.linalg.eigvalsh(scale_P[:, None] * dense(model, batch) * scale_P[None, :])[-1])
    assert watching.rows()[1]["sharpness.preconditioned"] == pytest.approx(expected, rel=1e-5)


def test_fact_holds_at_the_ridge_solution_and_not_beside_it() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs_BD, targets_BO = torch.randn(20, 4, generator=generator).double(), torch.randn(20, 3, generator=generator).double()
    decay = 0.3
    ridge_DO = torch.linalg.solve(inputs_BD.T @ inputs_BD / 20 + decay * torch.eye(4).double(), inputs_BD.T @ targets_BO / 20)
    watching = Fact(always)
    batch = numbers(inputs_BD, targets_BO)
    watching.before(info(stack([ridge_DO.T]), batch, decay=decay))
    watching.before(info(stack([ridge_DO.T]), batch, decay=2 * decay))
    watching.before(info(stack([torch.randn(3, 4, generator=generator).double()]), batch, decay=decay))
    at, wrong, beside = watching.rows()
    assert at["fact.cosine:0"] == pytest.approx(1.0)
    assert at["fact.error:0"] == pytest.approx(0.0, abs=1e-9)
    assert wrong["fact.error:0"] == pytest.approx(0.5)
    assert beside["fact.cosine:0"] < 0.9


def test_outer_products_are_those_of_the_jacobian(small: tuple[torch.nn.Module, Batch]) -> None:
    model, batch = small
    layers = {"0": model[0], "2": model[2]}  # type: ignore[index]
    found = outer_products(model, layers, batch.tokens_BT)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for x_D in batch.tokens_BT:
        jacobian_OD = torch.autograd.functional.jacobian(model, x_D)
        assert isinstance(jacobian_OD, Tensor)
        expected += jacobian_OD.T @ jacobian_OD / len(batch.tokens_BT)
    assert torch.allclose(found["0"], expected)
    last = layers["2"].weight.detach()
    assert torch.allclose(found["2"], last.T @ last)
    assert torch.allclose(root(expected) @ root(expected), expected, atol=1e-9)
    assert not any(len(module._forward_pre_hooks) for module in model.modules())
    assert math.isfinite(float(expected.sum()))
