"""Where a model and its linearisation part, overlap of subspaces, noise of gradients: against closed forms."""

from __future__ import annotations

import pytest
import torch

from knowhow.maths.kernel import Linearised, bend
from knowhow.maths.noise import direct, two_batch
from knowhow.maths.subspaces import leading, overlap


def test_bend_of_a_product_in_closed_form() -> None:
    a, b, y = 1.3, 0.7, 2.0
    weights = {"a": torch.tensor([a], dtype=torch.float64), "b": torch.tensor([b], dtype=torch.float64)}
    found = bend(lambda at: at["a"] * at["b"], lambda out: (out - y).square().sum() / 2, weights)
    r = a * b - y
    square = a * a + b * b
    assert found.pace == pytest.approx(square)
    assert found.turn == pytest.approx(abs(r))
    # f″[g,g] = 2 r² a b; R g = r (g_b, g_a) = r² (a, b), J R g = 2 r² a b; J g = r (a² + b²)
    assert found.drift == pytest.approx(abs(2 * r * r * a * b + 2 * r * r * a * b) / 2 / abs(r * square))


def test_bend_foresees_the_gap_of_small_steps() -> None:
    a, b, y, rate, steps = 1.3, 0.7, 2.0, 1e-4, 50
    weights = {"a": torch.tensor([a], dtype=torch.float64), "b": torch.tensor([b], dtype=torch.float64)}
    found = bend(lambda at: at["a"] * at["b"], lambda out: (out - y).square().sum() / 2, weights)
    u, v, line = a, b, a * b
    for _ in range(steps):
        r = u * v - y
        u, v, line = u - rate * r * v, v - rate * r * u, line - rate * (line - y) * (a * a + b * b)
    gap = abs(u * v - line) / abs(line - a * b)
    assert gap == pytest.approx(found.drift * rate * steps, rel=0.05)
    assert gap != pytest.approx(found.drift * rate * steps * 2, rel=0.3)


def test_linearised_is_the_tangent() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = {name: torch.randn_like(p) for name, p in start.items()}
    inputs = torch.randn(5, 3, dtype=torch.float64)
    tangent = Linearised(model, start, moved)(inputs) - model(inputs)
    ends = []
    for sign in (1, -1):
        ends.append(torch.func.functional_call(model, {name: start[name] + sign * 1e-5 * moved[name] for name in start}, (inputs,)))
    assert torch.allclose(tangent, (ends[0] - ends[1]) / 2e-5, atol=1e-8)


def test_overlap_of_same_orthogonal_and_random_spaces() -> None:
    basis = leading(torch.diag(torch.arange(8.0, 0, -1)), 2)
    assert overlap(torch.eye(8)[:, :2] @ torch.tensor([[2.0, 1.0], [0.0, 3.0]]), basis) == pytest.approx(1.0)
    assert overlap(torch.eye(8)[:, 2:4], basis) == pytest.approx(0.0, abs=1e-12)
    assert overlap(torch.zeros(8, 2), basis) == 0.0
    torch.manual_seed(0)
    assert sum(overlap(torch.randn(8, 2), basis) for _ in range(300)) / 300 == pytest.approx(0.25, abs=0.03)


def test_noise_estimators_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_P = torch.tensor([1.0, -0.5, 0.0, 2.0])
    traces, squares, small, large = [], [], [], []
    for _ in range(400):
        rows_NP = mean_P + 3 * torch.randn(16, 4, generator=generator)
        trace, square = direct(rows_NP)
        traces.append(trace)
        squares.append(square)
        small += [float(part.mean(0).square().sum()) for part in rows_NP.split(4)]
        large.append(float(rows_NP.mean(0).square().sum()))
    assert sum(traces) / 400 == pytest.approx(36.0, rel=0.02)
    assert sum(squares) / 400 == pytest.approx(5.25, rel=0.06)
    paired = two_batch(sum(small) / len(small), sum(large) / 400, (4, 16))
    assert paired == pytest.approx((36.0, 5.25), rel=0.08)
    assert two_batch(1 + 40 / 4, 1 + 40 / 32, (4, 32)) == pytest.approx((40.0, 1.0))
