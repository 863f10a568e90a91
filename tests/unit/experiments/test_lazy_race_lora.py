"""The systems of the first-order laws: what they promise of themselves."""

from __future__ import annotations

import pytest
import torch

from knowhow.experiments.lazy import lazy_decoder, scaled_net
from knowhow.experiments.lora import lora_decoder
from knowhow.experiments.normalised import row_normalised
from knowhow.experiments.race import RATES, batch_race


def first(system: object) -> object:
    return next(iter(system.batches))[0]


def test_scaled_nets_start_at_zero_with_the_same_linear_dynamics() -> None:
    small, large = scaled_net(0, scale=2.0), scaled_net(0, scale=8.0)
    batch = first(small)
    assert float(small.model(batch.tokens_BT).detach().abs().max()) == 0.0
    assert small.facts["kernel_pace"] == pytest.approx(large.facts["kernel_pace"], rel=1e-4)
    assert small.facts["kernel_drift"] == pytest.approx(4 * large.facts["kernel_drift"], rel=1e-3)
    assert small.facts["kernel_turn"] == pytest.approx(4 * large.facts["kernel_turn"], rel=1e-3)
    assert not any(p.requires_grad for p in small.model.start.parameters())


def test_lazy_decoder_bends() -> None:
    facts = lazy_decoder(0, rows=4, taught_steps=0).facts
    assert all(facts[name] > 0 for name in ("kernel_drift", "kernel_pace", "kernel_turn"))


def test_lora_decoder_trains_factors_alone_and_answers_as_its_base() -> None:
    system = lora_decoder(0, rows=4, taught_steps=0)
    trained = [name for name, p in system.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    assert {m.site for m in system.sites} == {name.split(".lora_")[0].split("model.")[-1] for name in trained}
    batch = first(system)
    assert torch.equal(batch.tokens_BT, first(system).tokens_BT)
    loss = system.objective(system.model, batch)[0] / system.objective.units(batch)
    assert float(loss.detach()) == pytest.approx(system.facts["base_loss"], rel=1e-5)


def test_rows_are_scale_invariant_only_when_normalised() -> None:
    for normalised in (True, False):
        system = row_normalised(0, normalised=normalised)
        batch = first(system)
        before = system.model(batch.tokens_BT)
        with torch.no_grad():
            system.model.hidden.weight.mul_(torch.linspace(0.5, 3, 32)[:, None])
        assert torch.allclose(before, system.model(batch.tokens_BT), atol=1e-3) == normalised


def test_race_gives_each_member_its_own_rate_and_rows() -> None:
    system = batch_race(0, batch=4, width=8, replicas=3)
    batch = first(system)
    loss, metrics = system.objective(system.model, batch)
    loss.backward()
    grad = system.model.weights.grad
    rates = torch.tensor(system.objective.rates)
    assert len(metrics) == 2 * RATES
    start_D = system.model.weights.detach()[0, 0, 0]
    for size, rows in ((0, 4), (1, 8)):
        inputs_BD = batch.tokens_BT[1, :rows]
        expected = (inputs_BD @ start_D) @ inputs_BD / rows
        assert torch.allclose(grad[size, 5, 1], rates[5] * expected, rtol=1e-4)
    spread_D = system.objective.spread_D
    exact = 1 + float((spread_D * start_D.square()).sum() * spread_D.sum() / (spread_D**2 * start_D.square()).sum())
    assert system.facts["noise_scale"] == pytest.approx(exact, rel=0.15)
    with torch.no_grad():
        system.model.weights.mul_(1e3)
    system.model.weights.grad = None
    system.objective(system.model, batch)[0].backward()
    assert float(system.model.weights.grad.abs().max()) == 0.0
