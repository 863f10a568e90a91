"""Laws of charges under the optimizers of torch, on a product of two matrices, in float64: exact, and wrong where they should be."""

from __future__ import annotations

import pytest
import torch

from knowhow.maths import noether

WHOLE = None
ROWS = (0, 0, 1)


class Two:
    """L = ½|BᵀA x − y|², A 3 × 5, B 3 × 4, data drawn anew at every step; with a diagonal between the factors only rows can be scaled."""

    def __init__(self, diagonal: bool = False) -> None:
        torch.manual_seed(0)
        self.a, self.b = (torch.randn(3, n, dtype=torch.float64).requires_grad_() for n in (5, 4))
        self.diagonal = diagonal

    def pair(self) -> noether.Pair:
        return self.a.detach().clone(), self.b.detach().clone()

    def gradients(self, step: int) -> noether.Pair:
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(n, 7, dtype=torch.float64, generator=generator) for n in (5, 4))
        hidden = self.a @ x
        hidden = hidden.relu() if self.diagonal else hidden
        self.a.grad = self.b.grad = None
        (0.5 * (self.b.T @ hidden - y).square().sum()).backward()
        return self.a.grad.clone(), self.b.grad.clone()


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-11) -> bool:
    return bool((left - right).abs().max() <= tolerance * (1 + right.abs().max()))


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("labels", "diagonal"), [(WHOLE, False), (ROWS, False), (ROWS, True)])
def test_descent_changes_a_charge_at_second_order_only(decay: float, labels: noether.Labels, diagonal: bool) -> None:
    net = Two(diagonal)
    optim = torch.optim.SGD([net.a, net.b], lr=0.01, weight_decay=decay)
    for step in range(5):
        old, slope = net.pair(), net.gradients(step)
        optim.step()
        new = noether.charge(net.pair(), net.pair(), labels)
        assert close(new, noether.descended(old, slope, labels, 0.01, decay))
        assert not close(new, noether.descended(old, slope, labels, 0.01, decay + 0.01))
        assert not close(new, (1 - 0.01 * decay) ** 2 * noether.charge(old, old, labels), 1e-6)
        assert noether.asymmetry(old, slope, labels) < 1e-13


def test_a_matrix_is_no_charge_where_only_rows_may_be_scaled() -> None:
    net = Two(diagonal=True)
    assert noether.asymmetry(net.pair(), net.gradients(0), WHOLE) > 0.05


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_momentum_obeys_the_law_with_velocity_and_keeps_weights_and_velocity_together(decay: float) -> None:
    net, rate, mu = Two(), 0.003, 0.9
    optim = torch.optim.SGD([net.a, net.b], lr=rate, momentum=mu, weight_decay=decay)
    velocity: noether.Pair = (torch.zeros_like(net.a), torch.zeros_like(net.b))
    plain = 0.0
    for step in range(8):
        old, slope = net.pair(), net.gradients(step)
        kept = noether.kept_by_momentum(old, velocity, WHOLE, rate, mu)
        optim.step()
        new, expected = net.pair(), noether.with_velocity(old, slope, velocity, WHOLE, rate, decay, mu)
        velocity = (optim.state[net.a]["momentum_buffer"].clone(), optim.state[net.b]["momentum_buffer"].clone())
        assert close(noether.charge(new, new, WHOLE), expected)
        off = noether.charge(new, new, WHOLE) - noether.descended(old, slope, WHOLE, rate, decay)
        plain = max(plain, float(off.norm()) / noether.turnover(old, new, WHOLE))
        if not decay:
            gained = noether.kept_by_momentum(new, velocity, WHOLE, rate, mu) - kept
            assert close(gained, rate**2 * (1 + mu) / (1 - mu) * noether.charge(velocity, velocity, WHOLE))
    assert plain > 0.01


def test_adam_drives_a_charge_by_its_step_and_its_mean_does_the_old_means_work() -> None:
    net, rate, decay, beta = Two(), 1e-3, 0.1, 0.9
    optim = torch.optim.AdamW([net.a, net.b], lr=rate, weight_decay=decay, betas=(beta, 0.95), eps=1e-8)
    mean: noether.Pair = (torch.zeros_like(net.a), torch.zeros_like(net.b))
    for step in range(1, 7):
        old, slope = net.pair(), net.gradients(step)
        optim.step()
        new = net.pair()
        states = [optim.state[p] for p in (net.a, net.b)]
        spread = [(state["exp_avg_sq"] / (1 - 0.95**step)).sqrt() + 1e-8 for state in states]
        u = (states[0]["exp_avg"] / (1 - beta**step) / spread[0], states[1]["exp_avg"] / (1 - beta**step) / spread[1])
        assert close(noether.charge(new, new, WHOLE), noether.driven(old, u, WHOLE, rate, decay))
        off = float((noether.charge(new, new, WHOLE) - noether.descended(old, slope, WHOLE, rate, decay)).norm())
        assert off > 0.03 * noether.turnover(old, new, WHOLE)
        work = noether.charge((spread[0] * u[0], spread[1] * u[1]), old, WHOLE) * (1 - beta**step)
        assert close(work, beta * noether.charge(mean, old, WHOLE))
        mean = (states[0]["exp_avg"].clone(), states[1]["exp_avg"].clone())


def test_adams_drive_is_of_first_order_in_the_rate_and_descents_of_second() -> None:
    changes: dict[str, list[float]] = {"adam": [], "sgd": []}
    for rate in (1e-3, 5e-4):
        for name in changes:
            net = Two()
            optim = torch.optim.AdamW([net.a, net.b], lr=rate, weight_decay=0) if name == "adam" else torch.optim.SGD([net.a, net.b], lr=rate)
            old, _ = net.pair(), net.gradients(0)
            optim.step()
            changes[name].append(float((noether.charge(net.pair(), net.pair(), WHOLE) - noether.charge(old, old, WHOLE)).norm()))
    assert changes["adam"][0] / changes["adam"][1] == pytest.approx(2, rel=0.02)
    assert changes["sgd"][0] / changes["sgd"][1] == pytest.approx(4, rel=0.02)


def test_rounding_is_taken_back_and_nothing_larger() -> None:
    reached = torch.linspace(0.3, 2, 50, dtype=torch.float64) / 3
    stored, step, eps = reached.float().double(), torch.full_like(reached, 1e-3), torch.finfo(torch.float32).eps
    assert (noether.unrounded(stored, reached, step, eps) - reached).abs().max() == 0
    wrong = reached * (1 + 1e-5)
    assert ((noether.unrounded(stored, wrong, step, eps) - wrong).abs() > 0.9 * (stored - wrong).abs()).all()


def test_one_factor_alone_is_measured_by_what_a_step_could_have_changed() -> None:
    old, new = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.1]])
    assert noether.turnover((old, None), (new, None), (0,)) == pytest.approx(2 * 5 * 0.1, rel=1e-5)
    assert noether.asymmetry((old, None), (torch.tensor([[4.0, -3.0]]), None), (0,)) == 0
    assert noether.asymmetry((old, None), (old, None), (0,)) == pytest.approx(1)
    assert noether.asymmetry((old, None), (0 * old, None), (0,)) != noether.asymmetry((old, None), (0 * old, None), (0,))
