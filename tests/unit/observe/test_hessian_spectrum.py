"""The observed eigenvalues are the Hessian's, and looking leaves no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from knowhow.experiments.clusters import clusters
from knowhow.observe.hessian import Hessian
from knowhow.types import StepInfo


def look_at(observer: Hessian, loss: float = 1.0) -> torch.Tensor:
    """The exact eigenvalues, falling, of what the observer was shown."""
    at = clusters(0, classes=3, per_class=6, width=4)
    (batch,) = next(iter(at.batches))
    model = at.model.train()
    before = copy.deepcopy(model.state_dict())
    observer.after(StepInfo(3, 0, loss, {}, 0.1, 1.0, model, [batch], at.objective, 18.0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    names = list(before)

    def of(*values: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch.tokens_BT,))
        return torch.nn.functional.cross_entropy(logits, batch.labels)

    blocks = torch.autograd.functional.hessian(of, tuple(before.values()))
    sizes = [value.numel() for value in before.values()]
    rows = [torch.cat([block.reshape(high, wide) for block, wide in zip(row, sizes, strict=True)], 1) for row, high in zip(blocks, sizes, strict=True)]
    return torch.linalg.eigvalsh(torch.cat(rows)).flip(0)


@pytest.mark.parametrize(("step", "near"), [(None, 1e-4), (1e-3, 2e-2)])
def test_the_largest_eigenvalues(step: float | None, near: float) -> None:
    observer = Hessian(lambda _: True, largest=4, lanczos=60, step=step)
    exact = look_at(observer)
    (row,) = observer.rows()
    found = [row[f"hessian.value.{k}"] for k in range(1, 5)]
    assert found == pytest.approx(exact[:4].tolist(), rel=near, abs=near)
    assert "hessian.value.5" not in row
    assert math.isfinite(row["hessian.loss"])


def test_it_looks_only_between_the_losses_it_was_told() -> None:
    observer = Hessian(lambda _: True, lanczos=3, between=(0.1, 0.5))
    look_at(observer, loss=0.9)
    assert observer.rows() == []
    look_at(observer, loss=0.3)
    assert len(observer.rows()) == 1


def test_random_state_is_left_alone() -> None:
    at = clusters(1, classes=3, per_class=6, width=4)
    random = torch.get_rng_state()
    Hessian(lambda _: True, lanczos=3).after(StepInfo(3, 0, 1.0, {}, 0.1, 1.0, at.model, list(next(iter(at.batches))), at.objective, 18.0))
    assert torch.equal(random, torch.get_rng_state())
