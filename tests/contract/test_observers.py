"""Every observer, the day it is born: it looks and never touches, in each experiment of a law that uses it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from knowhow import laws
from knowhow.experiments.language import next_token
from knowhow.experiments.system import system
from knowhow.laws.law import Experiment
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import MAKERS, observer
from knowhow.observe.looking import merged
from knowhow.observe.ngrams import Tables, tables
from knowhow.protocols import Observer
from knowhow.types import Batch

STEPS = 4
SLOW: dict[str, str] = {}
"""{system: why it takes more than five seconds to make}: an observer on it gets a case of its own."""

GATES = ("between",)
"""Options by which an observer waits for something that the first steps of a run do not show."""

LIGHT: dict[str, dict[str, Any]] = {"llc": {"draws": (20, 20), "chains": 2}}
"""{observer: options that make a look quick}."""


def labelled() -> Batch:
    """Rows with classes, for observers that read labels."""
    tokens_BT = torch.randint(32, (24, 12), generator=torch.Generator().manual_seed(1))
    return Batch(tokens_BT, torch.ones_like(tokens_BT), labels=tokens_BT[:, -1] % 3)


def corpora() -> dict[str, Tables]:
    """Tables of random text, read at a few of its rows."""
    stream_N = torch.randint(32, (2000,), generator=torch.Generator().manual_seed(2))
    return {"text": tables(stream_N.numpy(), 32, [next_token(stream_N[:160].view(8, 20))], places=32)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {"probes": lambda: {"batches": (labelled(),)}, "ngrams": lambda: {"corpora": corpora()}}
"""Observers that no experiment uses: {observer: its options}; one that is not named here has none. They watch a small language model."""


def there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def used() -> Iterator[tuple[str, Experiment]]:
    """(observer, experiment) over laws and their controls; one of each observer, its options and the system."""
    seen: set[str] = set()
    for name in laws.NAMES:
        if not there(f"knowhow.laws.{name.replace('-', '_')}"):
            continue
        law = laws.law(name)
        for one in [*law.experiments, *(control.experiment for control in law.controls if control.experiment is not None)]:
            for observing, options in one.observers.items():
                key = json.dumps([observing, sorted(options), one.system, one.optimizer.get("rule", "adamw")])
                if key not in seen and one.system not in SLOW:
                    seen.add(key)
                    yield observing, replace(one, observers={observing: options})


def cases() -> list[Any]:
    found = list(used())
    unused = [name for name in MAKERS if name not in {observing for observing, _ in found}]
    found += [(name, Experiment("markov-decoder", STEPS, {name: {}})) for name in unused]
    return [
        pytest.param(
            name,
            experiment,
            id=f"{name}-{experiment.system}-{number}",
            marks=[] if there(MAKERS[name].split(":")[0]) else pytest.mark.skip(reason=f"{name} is not written yet"),
        )
        for number, (name, experiment) in enumerate(found)
    ]


def steps(experiment: Experiment, observers: Sequence[Observer]) -> Iterator[dict[str, torch.Tensor]]:
    """Weights, gradients, modes and random state after each of the first steps."""
    at = system(experiment.system, experiment.options, 0)
    torch.manual_seed(0)
    optim, spec = Optim(at.model, OptimSpec(**experiment.optimizer)), LoopSpec(STEPS, clip=experiment.clip, precision="float32", attention="torch")
    for info in train(at.model, at.objective, at.batches, optim, schedule("constant", STEPS, warmup=0.0), spec, observers):
        state = {f"weight {name}": p.detach().clone() for name, p in info.model.named_parameters()}
        state |= {f"buffer {name}": b.clone() for name, b in info.model.named_buffers()}
        state |= {f"gradient {name}": p.grad.clone() for name, p in info.model.named_parameters() if p.grad is not None}
        state["modes"] = torch.tensor([module.training for module in info.model.modules()])
        state["trained"] = torch.tensor([p.requires_grad for p in info.model.parameters()])
        state["hooks"] = torch.tensor([len(module._forward_hooks) + len(module._forward_pre_hooks) for module in info.model.modules()])
        yield {**state, "random": torch.get_rng_state(), "loss": torch.tensor(info.loss), "norm": torch.tensor(info.grad_norm)}


def differences(one: Sequence[Mapping[str, torch.Tensor]], other: Sequence[Mapping[str, torch.Tensor]]) -> list[str]:
    """What is not the same to the bit."""
    found = ["steps"] if len(one) != len(other) else []
    for step, (left, right) in enumerate(zip(one, other, strict=False), start=1):
        found += [f"{name} at step {step}" for name in sorted({*left, *right}) if name not in left or name not in right or not same(left[name], right[name])]
    return found


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())


@pytest.mark.parametrize(("name", "experiment"), cases())
def test_it_looks_and_never_touches(name: str, experiment: Experiment) -> None:
    options = {key: value for key, value in experiment.observers[name].items() if key not in (*GATES, "every", "looks")}
    own = CASES[name]() if name in CASES and not options else {}
    watching = observer(name, {**options, **own, **LIGHT.get(name, {}), "every": 2}, STEPS)
    assert isinstance(watching, Observer)
    assert watching.name == name
    alone, watched = list(steps(experiment, ())), list(steps(experiment, [watching]))
    assert differences(alone, watched) == []
    rows = watching.rows()
    assert rows, "it kept nothing"
    assert {row["step"] for row in rows} <= {1, 3}
    columns = {column for row in merged([watching]).rows for column in row} - {"step", "lr"}
    assert columns, "it kept nothing but the step"
    assert all(column.startswith(f"{name}.") for column in columns), f"columns carry the observer's name: {sorted(columns)}"


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_its_file_is_named_after_it(name: str) -> None:
    assert MAKERS[name].split(":")[0] == f"knowhow.observe.{name}"


class Touching:
    """Not an observer: it draws a random number and moves a weight."""

    name = "touching"

    def due(self, step: int) -> bool:
        return step == 2

    def before(self, info: Any) -> None:
        torch.rand(1)

    @torch.no_grad()
    def after(self, info: Any) -> None:
        next(info.model.parameters()).add_(1e-6)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return []


def test_the_battery_can_fail() -> None:
    experiment = Experiment("clusters", STEPS, {}, {"width": 8}, {"lr": 0.05, "rule": "sgd"})
    found = differences(list(steps(experiment, ())), list(steps(experiment, [Touching()])))
    assert "random at step 2" in found
    assert any(one.startswith("weight 0.weight at step 2") for one in found)
    assert not any(one.endswith("at step 1") for one in found)
