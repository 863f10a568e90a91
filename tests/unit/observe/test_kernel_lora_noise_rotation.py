"""The observers of rotation, LoRA factors, the linearised model and the gradient's noise: against brute force, and without a trace in the run."""

from __future__ import annotations

import math

import pytest
import torch

from knowhow.experiments.lora import lora_decoder
from knowhow.experiments.normalised import row_normalised
from knowhow.experiments.system import CrossEntropy, Drawn, MeanSquare, System, fixed, numbers
from knowhow.laws import rotational_equilibrium
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import observer
from knowhow.protocols import Observer
from knowhow.types import Trace


def went(system: System, spec: OptimSpec, steps: int, observers: list[Observer]) -> list[dict[str, float]]:
    loop = LoopSpec(steps, clip=math.inf, precision="float32", attention="torch")
    for _ in train(system.model, system.objective, system.batches, Optim(system.model, spec), lambda _: 1.0, loop, observers):
        pass
    return [dict(row) for one in observers for row in one.rows()]


def net(objective: CrossEntropy | MeanSquare | None = None) -> System:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(6, 3))
    labels = torch.randint(3, (16,)) if objective is None else torch.randn(16, 3)
    return System(model, objective or CrossEntropy(), fixed(numbers(torch.randn(16, 5), labels)))


@pytest.mark.parametrize("name", ["rotation", "kernel", "noise", "lora"])
def test_the_run_does_not_notice(name: str) -> None:
    def ended(watch: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[bool]]:
        torch.manual_seed(0)
        system = lora_decoder(0, rows=4, taught_steps=0) if name == "lora" else net()
        torch.manual_seed(5)
        options = {"every": 1, "sites": ("0.weight",)} if name == "rotation" else {"every": 1}
        rows = went(system, OptimSpec(0.1, rule="sgd"), 3, [observer(name, options, 3)] if watch else [])
        assert len(rows) == 3 * watch
        return system.model.state_dict(), torch.get_rng_state(), [m.training for m in system.model.modules()] + [
            p.requires_grad for p in system.model.parameters()
        ]  # fmt: skip

    (left, random, modes), (right, random_too, modes_too) = ended(True), ended(False)
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert torch.equal(random, random_too)
    assert modes == modes_too


def test_rotation_sees_scale_invariance_and_decay() -> None:
    spec = OptimSpec(1e-2, weight_decay=0.5)
    rows = went(row_normalised(0, width=12, hidden=6), spec, 8, [observer("rotation", {"every": 2, "sites": ("hidden.weight",)}, 8)])
    assert [row["rotation.pull"] for row in rows] == pytest.approx([0.005] * 4)
    assert rotational_equilibrium.decay_time(Trace(tuple(rows))) == pytest.approx({step: 0.005 * step for step in (1, 3, 5, 7)})
    assert max(row["rotation.hidden.weight.radial"] for row in rows) < 1e-4
    assert "rotation.hidden.weight.signal" in rows[1]
    plain = went(row_normalised(0, width=12, hidden=6, normalised=False), spec, 8, [observer("rotation", {"every": 2, "sites": ("hidden.weight",)}, 8)])
    assert max(row["rotation.hidden.weight.radial"] for row in plain) > 0.05


def test_rotation_measures_length_and_angle() -> None:
    system = row_normalised(0, width=12, hidden=6, gain=3.0)
    before = system.model.state_dict()["hidden.weight"].clone().double()
    (row,) = went(system, OptimSpec(1e-2, weight_decay=0.5), 1, [observer("rotation", {"every": 1, "sites": ("hidden.weight",)}, 1)])
    after = system.model.state_dict()["hidden.weight"].double()
    angles = torch.acos((before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1))
    assert row["rotation.hidden.weight.angle"] == pytest.approx(float(angles.square().mean().sqrt()), rel=1e-4)
    assert row["rotation.hidden.weight.norm"] == pytest.approx(float(after.norm() / 6**0.5), rel=1e-6)
    undecayed = went(net(), OptimSpec(1e-2), 1, [observer("rotation", {"every": 1}, 1)])
    assert "rotation.length" not in undecayed[0]


def test_lora_first_step_is_exact_and_the_charge_is_kept_with_decay() -> None:
    spec = OptimSpec(0.3, weight_decay=0.1, rule="sgd", decayed="all")
    system = lora_decoder(0, rows=8, fixed=False, taught_steps=0)
    rows = went(system, spec, 4, [observer("lora", {"every": 1}, 4)])
    assert rows[0]["lora.cosine"] == pytest.approx(1.0, abs=1e-5)
    total = math.sqrt(sum(m.value**2 for m in system.sites if m.metric == "lora_gradient"))
    assert rows[0]["lora.length"] == pytest.approx(0.3 * total, rel=1e-4)
    assert rows[0]["lora.predicted_gain"] == pytest.approx(0.3 * total**2, rel=1e-4)
    assert sum(value for key, value in rows[0].items() if key.endswith(".share")) == pytest.approx(1.0)
    assert rows[-1]["lora.charge"] < 1e-3
    assert min(rows[-1]["lora.charge_flow"], rows[-1]["lora.charge_sum"]) > 0.05
    overlaps = [m.value for m in system.sites if m.metric == "lora_overlap"]
    assert rows[0]["lora.overlap"] == pytest.approx(sum(overlaps) / len(overlaps), abs=1e-4)


def test_lora_says_when_it_cannot_know() -> None:
    rows = went(lora_decoder(0, rows=4, taught_steps=0), OptimSpec(1e-3), 4, [observer("lora", {"every": 2}, 4)])
    assert all(row["lora.plain"] == 0.0 for row in rows)
    assert "lora.charge" not in rows[-1]
    assert went(net(), OptimSpec(0.1, rule="sgd"), 2, [observer("lora", {"every": 1}, 2)]) == []


def test_the_linearised_model_of_a_linear_model_is_the_model() -> None:
    torch.manual_seed(0)
    system = System(torch.nn.Linear(4, 2), MeanSquare(), fixed(numbers(torch.randn(12, 4), torch.randn(12, 2))))
    rows = went(system, OptimSpec(0.1, weight_decay=0.3, rule="sgd", decayed="all"), 6, [observer("kernel", {"every": 1}, 6)])
    assert rows[-1]["kernel.gap"] < 1e-5
    assert rows[-1]["kernel.gain_share"] == pytest.approx(1.0, abs=1e-5)
    assert rows[-1]["kernel.plain"] == 1.0


def test_the_linearised_model_parts_from_a_net_and_adam_is_not_plain() -> None:
    rows = went(net(MeanSquare()), OptimSpec(0.1, rule="sgd"), 30, [observer("kernel", {"every": 1}, 30)])
    assert rows[-1]["kernel.gap"] > 1e-3
    assert rows[-1]["kernel.cosine"] < 1.0 - 1e-6
    assert rows[-1]["kernel.time"] == pytest.approx(3.0)
    assert went(net(), OptimSpec(0.1), 1, [observer("kernel", {"every": 1}, 1)])[0]["kernel.plain"] == 0.0
    assert went(net(), OptimSpec(0.1, rule="sgd"), 5, [observer("kernel", {"every": 2}, 5)])[-1]["kernel.plain"] == 0.0


def test_noise_matches_the_known_scale_of_a_regression() -> None:
    width = 6
    model = torch.nn.Linear(width, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)

    def draw(generator: torch.Generator) -> object:
        return numbers(torch.randn(64, width, generator=generator), torch.zeros(64, 1))

    system = System(model, MeanSquare(), Drawn(draw, 3))
    rows = went(system, OptimSpec(1e-6, rule="sgd"), 24, [observer("noise", {"every": 1, "small": 4}, 24)])
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    assert mean["noise.trace"] / mean["noise.square"] == pytest.approx(width + 1, rel=0.15)
    assert mean["noise.rows_large"] == 32
    assert mean["noise.small"] == pytest.approx(width * (1 + (width + 1) / 4), rel=0.15)
    assert went(System(model, MeanSquare(), fixed(numbers(torch.randn(3, width), torch.zeros(3, 1)))), OptimSpec(0.1), 1, [observer("noise", {}, 1)]) == []
