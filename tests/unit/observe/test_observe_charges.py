"""The ledger over real steps: exact under plain descent, broken by name otherwise, read-only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from knowhow.experiments.charges import charges
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.observe.charges import Charges
from knowhow.observe.when import every
from knowhow.types import Rate, StepInfo

SGD = {"rule": "sgd", "decayed": "all"}
Change = Callable[[StepInfo], None]


class Told:
    """The observer, told other rates than the optimizer's, or with the weights changed behind the optimizer's back."""

    name = "charges"

    def __init__(self, inner: Charges, before: Change | None, after: Change | None) -> None:
        self.inner, self._before, self._after, self.due = inner, before, after, inner.due

    def before(self, info: StepInfo) -> None:
        if self._before:
            self._before(info)
        self.inner.before(info)

    def after(self, info: StepInfo) -> None:
        if self._after:
            self._after(info)
        self.inner.after(info)

    def rows(self) -> Any:
        return self.inner.rows()


def watched(
    spec: Mapping[str, Any],
    *,
    steps: int = 3,
    before: Change | None = None,
    after: Change | None = None,
    clip: float = math.inf,
    tied: bool = False,
    lora: int = 0,
    double: bool = False,
) -> list[Mapping[str, float]]:
    at = charges(0, rows=4, length=16, tied=tied, lora=lora, double=double)
    optim = Optim(at.model, OptimSpec(**spec))
    seen = Told(Charges(every(1)), before, after)
    loop = LoopSpec(steps, clip=clip, precision="float32", attention="torch")
    for _ in train(at.model, at.objective, at.batches, optim, schedule("constant", steps, warmup=0), loop, [seen]):
        pass
    return list(seen.rows())


def most(rows: list[Mapping[str, float]], name: str) -> float:
    return max(row[name] for row in rows if name in row)


@pytest.mark.parametrize(("decay", "clip"), [(0.0, math.inf), (0.1, math.inf), (0.1, 0.3)])
def test_plain_descent_keeps_the_ledger_and_wrong_charges_do_not(decay: float, clip: float) -> None:
    rows = watched({**SGD, "lr": 0.05, "weight_decay": decay}, clip=clip)
    for kind in ("vo", "qk", "up_down", "norm_gain"):
        assert most(rows, f"charges.{kind}.residual") < 1e-5
        assert most(rows, f"charges.{kind}.symmetry") < 1e-5
        assert not any(f"charges.{kind}.broken" in name for row in rows for name in row)
        assert (most(rows, f"charges.{kind}.undecayed") > 0.05) == (decay > 0)
        assert rows[0][f"charges.{kind}.sites"] == {"vo": 4, "qk": 4, "up_down": 2, "norm_gain": 5}[kind]
    assert most(rows, "charges.wrong.qk_full.residual") > 0.1
    # of random weights; the experiments, on trained ones, ask for .1
    assert most(rows, "charges.wrong.gate_down.residual") > 0.05
    assert rows[-1]["charges.decay"] == pytest.approx(decay, abs=1e-6)
    assert rows[-1]["charges.declared_decay"] == decay


def test_in_float64_the_stored_weights_obey_as_well() -> None:
    rows = watched({**SGD, "lr": 0.05, "weight_decay": 0.1}, double=True)
    assert max(value for row in rows for name, value in row.items() if name.endswith(".stored")) < 1e-6


def test_weights_and_random_state_are_the_same_with_and_without() -> None:
    ends = []
    for looked in (False, True):
        at = charges(0, rows=2, length=8)
        torch.manual_seed(1)
        optim = Optim(at.model, OptimSpec(0.05, 0.1, "sgd", momentum=0.9))
        seen = [Charges(every(1))] if looked else []
        infos = list(
            train(at.model, at.objective, at.batches, optim, schedule("constant", 3, warmup=0), LoopSpec(3, precision="float32", attention="torch"), seen)
        )
        ends.append(([p.detach().clone() for p in at.model.parameters()], torch.get_rng_state(), [m.training for m in at.model.modules()], infos[-1].loss))
    assert all(torch.equal(one, other) for one, other in zip(ends[0][0], ends[1][0], strict=True))
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2:] == ends[1][2:]


def test_momentum_breaks_the_plain_law_and_obeys_the_one_with_velocity() -> None:
    rows = watched({**SGD, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}, steps=4, double=True)
    for kind in ("vo", "qk", "up_down", "norm_gain"):
        assert f"charges.{kind}.residual" not in rows[-1]
        assert rows[-1][f"charges.{kind}.broken.momentum"] > 0.05
        assert most(rows[1:], f"charges.{kind}.velocity") < 1e-6
        assert f"charges.{kind}.velocity" not in rows[0]


def test_adam_breaks_every_charge_though_the_gradient_stays_symmetric() -> None:
    rows = watched({"lr": 1e-3, "weight_decay": 0.1, "decayed": "all"})
    for kind in ("vo", "qk", "up_down", "norm_gain"):
        assert rows[-1][f"charges.{kind}.broken.adam"] > 0.05
        assert most(rows, f"charges.{kind}.symmetry") < 1e-5


def test_muon_and_decay_groups_are_named() -> None:
    muon = watched({"lr": 1e-3, "muon_lr": 0.01})
    assert "charges.vo.broken.muon" in muon[-1]
    assert "charges.norm_gain.broken.muon" in muon[-1]
    groups = watched({"rule": "sgd", "lr": 0.05, "weight_decay": 0.1})
    assert groups[-1]["charges.norm_gain.broken.decay"] > 0.05
    assert "charges.norm_gain.residual" not in groups[-1]
    assert most(groups, "charges.vo.residual") < 1e-5


def test_a_reader_tied_to_the_embedding_is_counted_not_judged() -> None:
    rows = watched({**SGD, "lr": 0.05}, tied=True)
    assert rows[0]["charges.excluded.tied"] == 1
    assert rows[0]["charges.norm_gain.sites"] == 4


def test_lora_from_zero_and_its_frozen_base() -> None:
    rows = watched({**SGD, "lr": 0.05}, lora=2)
    assert most(rows, "charges.lora.residual") < 1e-5
    assert rows[0]["charges.excluded.frozen"] >= 1


def test_a_decay_that_nobody_declared_is_seen_and_measured() -> None:
    def declare(info: StepInfo) -> None:
        info.rates = {name: replace(rate, decay=0.08) for name, rate in info.rates.items()}

    rows = watched({**SGD, "lr": 0.05, "weight_decay": 0.1}, before=declare)
    assert most(rows, "charges.vo.residual") > 1e-3
    assert rows[-1]["charges.decay"] == pytest.approx(0.1, abs=2e-3)
    assert most(rows, "charges.vo.symmetry") < 1e-5


def test_a_factor_that_does_not_move_is_seen() -> None:
    kept: dict[str, torch.Tensor] = {}
    name = "model.layers.0.mlp.up_proj.weight"

    def note(info: StepInfo) -> None:
        kept[name] = dict(info.model.named_parameters())[name].detach().clone()

    def put_back(info: StepInfo) -> None:
        with torch.no_grad():
            dict(info.model.named_parameters())[name].copy_(kept[name])

    rows = watched({**SGD, "lr": 0.05}, before=note, after=put_back)
    assert most(rows, "charges.up_down.residual") > 0.1
    assert most(rows, "charges.vo.residual") < 1e-5


def test_steps_lost_in_rounding_and_zero_gradients_are_not_judged() -> None:
    tiny = watched({**SGD, "lr": 1e-9})
    assert not any(name.endswith(".residual") and "wrong" not in name for row in tiny for name in row)
    assert "charges.vo.broken.rounding" in tiny[0]

    def silence(info: StepInfo) -> None:
        for p in info.model.parameters():
            p.grad.zero_()

    none = watched({**SGD, "lr": 0.05}, before=silence)
    assert not any(name.endswith((".residual", ".symmetry")) for row in none for name in row)


def test_a_parameter_without_a_rate_is_frozen() -> None:
    def forget(info: StepInfo) -> None:
        info.rates = {name: Rate(rate.lr, rate.decay, rate.rule) for name, rate in info.rates.items() if "down_proj" not in name}

    rows = watched({**SGD, "lr": 0.05}, before=forget)
    assert "charges.up_down.broken.frozen" in rows[0]
