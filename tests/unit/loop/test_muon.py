"""Muon: torch's own updates in torch's type, nearly orthogonal ones in any."""

from __future__ import annotations

import pytest
import torch

from knowhow.loop.muon import Muon, orthogonal


def test_in_bfloat16_it_is_torchs():
    torch.manual_seed(0)
    start = [torch.randn(24, 16), torch.randn(8, 16)]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    steppers = Muon(ours, lr=0.05, weight_decay=0.1, dtype=torch.bfloat16), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for stepper in steppers:
            stepper.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_singular_values_come_near_one(shape):
    made = orthogonal(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), torch.float32)
    values = torch.linalg.svdvals(made)
    assert made.shape == shape
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
