"""Hessian products and Lanczos against dense linear algebra."""

from __future__ import annotations

import pytest
import torch

from knowhow.maths import hvp


@pytest.fixture
def net() -> tuple[torch.nn.Module, list[torch.Tensor], hvp.Loss]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    return model, list(model.parameters()), lambda: (model(x) - y).square().mean()


def dense(parameters: list[torch.Tensor], loss: hvp.Loss) -> torch.Tensor:
    rows = []
    for index in range(sum(p.numel() for p in parameters)):
        unit = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        unit[index] = 1
        rows.append(hvp.flat(hvp.exact(loss, parameters, hvp.like(unit, parameters))))
    return torch.stack(rows)


def test_exact_is_the_derivative_of_the_gradient(net: tuple[torch.nn.Module, list[torch.Tensor], hvp.Loss]) -> None:
    _, parameters, loss = net
    direction = [torch.randn_like(p) for p in parameters]
    exact = hvp.flat(hvp.exact(loss, parameters, direction))
    near = hvp.flat(hvp.differenced(loss, parameters, direction, step=1e-4))
    assert torch.allclose(exact, near, atol=1e-6)
    assert (exact - hvp.flat(hvp.differenced(loss, parameters, direction, step=1.0))).norm() > 0.01 * exact.norm(), "a long step must show"


def test_the_hessian_is_symmetric_and_lanczos_finds_its_ends(net: tuple[torch.nn.Module, list[torch.Tensor], hvp.Loss]) -> None:
    _, parameters, loss = net
    hessian = dense(parameters, loss)
    assert torch.allclose(hessian, hessian.T, atol=1e-10)
    start = torch.randn(len(hessian), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values, weights = hvp.lanczos(lambda v: hessian @ v, start, 21)
    truth = torch.linalg.eigvalsh(hessian)
    assert values[-1] == pytest.approx(float(truth[-1]), rel=1e-8)
    assert values[0] == pytest.approx(float(truth[0]), rel=1e-6)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_weights_come_back_to_the_bit_even_after_an_error(net: tuple[torch.nn.Module, list[torch.Tensor], hvp.Loss]) -> None:
    _, parameters, _ = net
    before = [p.detach().clone() for p in parameters]

    def interrupted() -> None:
        with hvp.moved(parameters, [torch.randn_like(p) for p in parameters], 0.3):
            assert not torch.equal(parameters[0], before[0])
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        interrupted()
    with hvp.placed(parameters, [torch.zeros_like(p) for p in parameters]):
        assert float(parameters[0].detach().abs().sum()) == 0
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_lanczos_stops_where_the_space_is_exhausted() -> None:
    values, _ = hvp.lanczos(lambda v: 2 * v, torch.ones(5), 4)
    assert values.tolist() == pytest.approx([2.0])
