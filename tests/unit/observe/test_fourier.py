"""Waves against brute force, and the observer on nets whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from knowhow.experiments.modular import modular_sum
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import observer
from knowhow.observe.fourier import one_frequency, waves

P = 7
PAIRS = torch.cartesian_prod(torch.arange(P), torch.arange(P))
SUM = PAIRS.sum(1)


def test_the_answer_itself_is_all_waves_of_the_sum() -> None:
    exact = torch.nn.functional.one_hot(SUM % P, P).float()
    assert float(waves(exact, SUM).sum()) == pytest.approx(1.0, abs=1e-5)
    assert waves(exact, SUM).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert float(waves(exact, PAIRS[:, 0] - PAIRS[:, 1]).sum()) < 0.2


def test_shares_are_projections() -> None:
    logits = torch.randn(P * P, P, generator=torch.Generator().manual_seed(0))
    centred = logits - logits.mean(1, keepdim=True)
    for k in (1, 2, 3):
        wave = torch.cos(2 * math.pi * k * (SUM[:, None] - torch.arange(P)) / P)
        share = float((centred * wave).sum() ** 2 / wave.square().sum() / centred.square().sum())
        assert float(waves(logits, SUM)[k - 1]) == pytest.approx(share, rel=1e-4)


def test_a_constant_has_no_waves() -> None:
    assert float(waves(torch.ones(P * P, P), SUM).sum()) == 0.0


def test_power_at_one_frequency() -> None:
    numbers = torch.arange(P)
    pure = 3 + torch.cos(2 * math.pi * 2 * numbers / P + 0.4)
    both = pure + torch.cos(2 * math.pi * 3 * numbers / P)
    assert one_frequency(torch.stack([pure, both], 1)).tolist() == pytest.approx([1.0, 0.5], abs=1e-5)


def looked(shuffled: bool, look: bool = True) -> tuple[list[torch.Tensor], list]:
    at = modular_sum(0, prime=P, hidden=16, share=0.6, shuffled=shuffled)
    observers = [observer("fourier", {"every": 50, "prime": P}, 150)] if look else []
    spec = OptimSpec(1e-2)
    list(train(at.model, at.objective, at.batches, Optim(at.model, spec), lambda _: 1.0, LoopSpec(150, clip=math.inf, precision="float32"), observers))
    return [p.detach().clone() for p in at.model.parameters()], [row for each in observers for row in each.rows()]


def test_the_observer_tells_memory_from_the_sum() -> None:
    weights, rows = looked(shuffled=True)
    assert rows[-1]["fourier.seen"] == 1.0
    assert rows[-1]["fourier.unseen"] < 0.5
    assert rows[-1]["fourier.explained"] < 0.3
    assert rows[-1]["fourier.norm"] == pytest.approx(sum(float(w.square().sum()) for w in weights), rel=0.2)
    assert all(torch.equal(one, other) for one, other in zip(weights, looked(True, look=False)[0], strict=True))
