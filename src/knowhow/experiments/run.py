"""An experiment run once: predictions from what is known before the first step, a trace of the run, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from knowhow.experiments.system import System, system
from knowhow.files import digest
from knowhow.laws.law import RUN, Experiment, Judgement, Law, judge
from knowhow.loop.optim import Optim, OptimSpec, facts, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import observer
from knowhow.observe.looking import merged
from knowhow.types import Diagnosis, Measurement, Prediction, Scored, Trace

Say = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run at one seed: what was known before, what was kept, and whether it broke down on the way (then the trace ends there)."""

    diagnosis: Diagnosis
    trace: Trace
    broke: str = ""


def known(experiment: Experiment, at: System) -> Diagnosis:
    """Settings and facts before the first step."""
    spec = OptimSpec(**experiment.optimizer)
    settings = {"lr": spec.lr, **facts(spec), "steps": experiment.steps, "clip": experiment.clip}
    rows = [Measurement(RUN, name, float(value), "", 1) for name, value in {**settings, **at.facts}.items()]
    measurements = (*rows, *at.sites)
    return Diagnosis(measurements, digest([[m.site, m.metric, m.value] for m in measurements]))


def run(experiment: Experiment, seed: int, say: Say | None = None) -> Outcome:
    """The experiment at one seed: same seed, same numbers."""
    at = system(experiment.system, experiment.options, seed)
    torch.manual_seed(seed)
    if experiment.warm:
        for _ in _steps(experiment, at, experiment.warm, OptimSpec(1e-3), ()):
            pass
    diagnosis = known(experiment, at)
    observers = [observer(name, options, experiment.steps) for name, options in experiment.observers.items()]
    losses: dict[int, dict[str, float]] = {}
    broke = ""
    try:
        for info in _steps(experiment, at, experiment.steps, OptimSpec(**experiment.optimizer), observers):
            losses[info.step] = {"step": info.step, "loss": info.loss, "lr": info.lr, **info.metrics}
            if say is not None:
                say(f"{experiment.system}, seed {seed}, loss {info.loss:.4g}", info.step, experiment.steps)
    except FloatingPointError as error:
        broke = str(error)
    looked = {int(row["step"]): row for row in merged(observers).rows}
    rows = [{**losses[step], **looked.get(step, {})} for step in losses]
    return Outcome(diagnosis, Trace(tuple(rows)), broke)


def _steps(experiment: Experiment, at: System, steps: int, spec: OptimSpec, observers: Sequence[Any]) -> Any:
    optim = Optim(at.model, spec)
    loop = LoopSpec(steps, clip=experiment.clip, precision="float32", attention="torch")
    kind: Any = experiment.schedule
    return train(at.model, at.objective, at.batches, optim, schedule(kind, steps, warmup=experiment.warmup), loop, observers)


def scores(law: Law, outcome: Outcome, *, predict: Any = None, score: Any = None) -> Sequence[Scored]:
    """Every prediction of the law for a run, scored on it; a run that broke down confirms nothing."""
    predictions: Sequence[Prediction] = (predict or law.predict)(outcome.diagnosis)
    if outcome.broke:
        return [Scored(p, None, None, "not applicable", f"the run broke down: {outcome.broke}", 0.0) for p in predictions]
    found: Sequence[Scored] = (score or law.score)(predictions, outcome.trace)
    return found


@dataclass(frozen=True, slots=True)
class Check:
    """A law at one seed: its own experiments' outcomes and scores, and those of its controls."""

    outcomes: tuple[Outcome, ...]
    scored: tuple[Scored, ...]
    controls: dict[str, tuple[Scored, ...]]


def check(law: Law, seed: int, say: Say | None = None) -> Check:
    """Runs the law's experiments and its controls at one seed."""
    outcomes = tuple(run(experiment, seed, say) for experiment in law.experiments)
    scored = tuple(one for outcome in outcomes for one in scores(law, outcome))
    controls = {}
    for control in law.controls:
        runs = outcomes if control.experiment is None else (run(control.experiment, seed, say),)
        controls[control.name] = tuple(one for outcome in runs for one in scores(law, outcome, predict=control.predict, score=control.score))
    return Check(outcomes, scored, controls)


def verdict(law: Law, checks: dict[int, Check]) -> Judgement:
    """The law's verdict over seeds."""
    controls = {control.name: {seed: each.controls[control.name] for seed, each in checks.items()} for control in law.controls}
    return judge({seed: each.scored for seed, each in checks.items()}, controls)
