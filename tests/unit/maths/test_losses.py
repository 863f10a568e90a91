"""Losses against torch's own: values, gradients, weights, frozen sides, bf16; nothing depends on where chunks end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from knowhow.maths import losses
from knowhow.maths.losses import binary_cross_entropy, linear_cross_entropy, soft_cross_entropy, squared_error

D, V = 16, 50


def problem(N: int, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden N×D and weight V×D with gradients, targets N, weights N."""
    random = torch.Generator().manual_seed(seed)
    hidden, weight = (scale * torch.randn(rows, D, generator=random) for rows in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, V, (N,), generator=random), torch.rand(N, generator=random)


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    each = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    return (each if weights is None else each * weights).sum()


@pytest.mark.parametrize("N", [1, 7, losses.CHUNK, losses.CHUNK + 1, 2 * losses.CHUNK + 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_cross_entropy_is_torch_s(N: int, weighted: bool) -> None:
    hidden, weight, targets, weights = problem(N)
    given = weights if weighted else None
    ours, theirs = linear_cross_entropy(hidden, weight, targets, given), reference(hidden, weight, targets, given)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    # the loop divides by the units of the step: the gradient must carry what comes from above
    for mine, other in zip(torch.autograd.grad(ours / N, (hidden, weight)), torch.autograd.grad(theirs / N, (hidden, weight))):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cached", [1, 13 * V, 2**30])
def test_the_size_of_the_cached_part_changes_no_bit(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, weights = problem(300)
    before = linear_cross_entropy(hidden, weight, targets, weights)
    expected = (before, *torch.autograd.grad(before, (hidden, weight)))
    monkeypatch.setattr(losses, "CACHED", cached)
    after = linear_cross_entropy(hidden, weight, targets, weights)
    assert all(torch.equal(a, b) for a, b in zip(expected, (after, *torch.autograd.grad(after, (hidden, weight)))))


def test_bf16_under_autocast_stays_within_its_rounding() -> None:
    hidden, weight, targets, _ = problem(1500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
    theirs = reference(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-3)
    for mine, other in zip(torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight))):
        assert mine.dtype == torch.float32
        assert ((mine - other).norm() / other.norm()).item() < 0.02


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient_and_leaves_the_other_s_alone(frozen: str) -> None:
    hidden, weight, targets, _ = problem(40)
    expected = dict(zip(("hidden", "weight"), torch.autograd.grad(reference(hidden, weight, targets), (hidden, weight))))
    sides = {"hidden": hidden.detach().requires_grad_(frozen != "hidden"), "weight": weight.detach().requires_grad_(frozen != "weight")}
    linear_cross_entropy(sides["hidden"], sides["weight"], targets).backward()
    assert sides.pop(frozen).grad is None
    ((name, free),) = sides.items()
    torch.testing.assert_close(free.grad, expected[name], atol=1e-5, rtol=1e-5)


def test_without_gradients_the_value_is_the_same_and_no_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, _ = problem(40)
    expected = linear_cross_entropy(hidden, weight, targets).item()
    monkeypatch.setattr(torch, "mm", None)
    monkeypatch.setattr(torch, "zeros_like", None)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).item() == expected
    with torch.inference_mode():
        assert linear_cross_entropy(hidden, weight, targets).item() == expected


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets, _ = problem(20, scale=100.0)
    ours = linear_cross_entropy(hidden, weight, targets)
    assert ours.item() == pytest.approx(reference(hidden, weight, targets).item(), rel=1e-5)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(ours, (hidden, weight)))


def test_a_target_of_no_probability_costs_its_distance() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([0])).item() == pytest.approx(500.0)


def test_soft_cross_entropy_is_torch_s_with_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(6, 4, generator=random), torch.rand(6, generator=random)
    targets = torch.rand(6, 4, generator=random).softmax(-1)
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(soft_cross_entropy(logits, targets, weights), expected)
    hard = F.one_hot(torch.tensor([0, 1, 2, 3, 0, 1]), 4).float()
    torch.testing.assert_close(soft_cross_entropy(logits, hard, torch.ones(6)), F.cross_entropy(logits, hard.argmax(-1), reduction="sum"))


def test_binary_cross_entropy_is_the_mean_over_labels() -> None:
    random = torch.Generator().manual_seed(0)
    logits, targets, weights = torch.randn(6, 4, generator=random), torch.randint(0, 2, (6, 4), generator=random).float(), torch.rand(6, generator=random)
    expected = sum(F.binary_cross_entropy_with_logits(logits[row], targets[row]) * weights[row] for row in range(6))
    torch.testing.assert_close(binary_cross_entropy(logits, targets, weights), expected)


def test_squared_error_weighs_rows() -> None:
    assert squared_error(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), torch.tensor([2.0, 0.5])).item() == 2.0 + 4.5
