"""Which data pushes a head up: slopes against finite differences, controls, and what is left as it was."""

from __future__ import annotations

import pytest
import torch

from knowhow.adapt.lm import NextToken
from knowhow.experiments.language import decoder, next_token
from knowhow.observe.circuits import Circuits
from knowhow.observe.when import every
from knowhow.study.alignment import Rise, chunks, interval, nearest, pushes, rises, scrambled
from knowhow.study.roles import scores
from knowhow.types import StepInfo

VOCAB = 24
RISE = Rise("previous", 0, 1, 0.4, 10, 20, 0.1, 0.5)


def batch(seed: int, rows: int = 8):
    return next_token(torch.randint(VOCAB, (rows, 13), generator=torch.Generator().manual_seed(seed)))


def test_scores_are_those_of_the_observer():
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    look = Circuits(every(1), vocab=VOCAB)
    look.after(StepInfo(1, 0, 0.0, {}, 0.0, 0.0, model, [batch(0)]))
    (row,) = look.rows()
    with torch.no_grad():
        for layer in (0, 1):
            for role in ("previous", "induction"):
                found = [row[f"circuits.layers.{layer}.heads.{head}.{role}"] for head in (0, 1)]
                assert scores(model, layer)[role].tolist() == pytest.approx(found, abs=1e-5)


def test_a_slope_is_what_a_small_step_does():
    model = decoder(0, vocab=VOCAB, width=16, heads=2).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(6 if "self_attn" in name else 3 if p.ndim == 2 else 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = batch(3, rows=1)
    (found,) = pushes(model, RISE, {"all": [data]}, NextToken(), 32)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    objective = NextToken()
    (objective(model, data)[0] / objective.units(data)).backward()
    ends = []
    for step in (-1e-4, 1e-4):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name] - step * p.grad)
            ends.append(float(scores(model, 0)["previous"][1]))
    assert found.slope == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-3)
    assert found.n == 1
    assert not found.pushes  # one chunk has no interval


def test_kinds_come_strongest_first_with_their_controls():
    model = decoder(1, vocab=VOCAB, width=16, heads=2)
    found = pushes(model, RISE, {"a": [batch(1)], "b": [batch(2)]}, NextToken(), 32)
    assert [one.slope for one in found] == sorted((one.slope for one in found), reverse=True)
    assert all(one.low <= one.slope <= one.high and -1 <= one.cosine <= 1 and one.n == 8 for one in found)


def test_scrambled_rows_hold_the_same_tokens_and_true_targets():
    data = batch(0)
    data.mask_BT[0, 6:] = 0
    data.targets_BT[0, 6:] = -100
    made = scrambled(data, torch.Generator().manual_seed(0))
    assert torch.equal(made.tokens_BT[0, :6].sort().values, data.tokens_BT[0, :6].sort().values)
    assert torch.equal(made.tokens_BT[0, 6:], data.tokens_BT[0, 6:])
    assert torch.equal(made.targets_BT[1, :-1], made.tokens_BT[1, 1:])
    assert (made.targets_BT[0, 6:] == -100).all()
    assert not torch.equal(made.tokens_BT, data.tokens_BT)


def test_chunks_hold_every_row_once():
    parts = chunks([batch(0), batch(1, rows=3)], 4)
    assert sum(len(part.tokens_BT) for part in parts) == 11
    assert torch.equal(torch.cat([part.tokens_BT for part in parts]), torch.cat([batch(0).tokens_BT, batch(1, rows=3).tokens_BT]))


def test_the_head_that_rose_most_and_the_weights_before_it():
    rows = [
        {"step": step, "circuits.layers.0.heads.0.previous": a, "circuits.layers.1.heads.1.previous": b, "circuits.layers.0.heads.0.sink": 0.1}
        for step, a, b in ((1, 0.1, 0.0), (10, 0.1, 0.05), (20, 0.2, 0.6), (100, 0.2, 0.7))
    ]
    (found,) = rises(rows)
    assert (found.role, found.layer, found.head, found.before, found.step) == ("previous", 1, 1, 10, 20)
    assert found.rise == pytest.approx(0.7)
    assert nearest([1, 5, 12], found) == 5
    assert nearest([15, 30], found) == 15
    assert interval([1.0])[2] == float("inf")
