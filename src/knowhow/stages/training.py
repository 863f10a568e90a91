"""One training of a phase: how many steps, at which rate, what is kept of it, and who watches."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knowhow.data.batch import Rows
from knowhow.errors import Interrupted, UsageError
from knowhow.files import append_jsonl, read_json, read_jsonl, write_atomic, write_json
from knowhow.loop import checkpoint
from knowhow.loop.average import Average
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import observer
from knowhow.observe.cost import Timed
from knowhow.recipe import PhaseSpec
from knowhow.stages.phase import Phase
from knowhow.stages.validation import validation
from knowhow.types import StepInfo

PILOT_STEPS = 4
VALIDATIONS = 10
DEFAULT_EPOCHS = 3.0
TRACE_ROWS = 200
LOOKS, FORESEEN, GEOMETRIES = 32, 6, 4
FORESEEN_ROWS = 8


@dataclass
class Best:
    """The best validation so far; higher `score` is better, whatever the metric."""

    score: float | None = None
    step: int = 0
    since: int = 0

    def update(self, score: float, step: int) -> bool:
        if self.score is not None and score <= self.score:
            self.since += 1
            return False
        self.score, self.step, self.since = score, step, 0
        return True


def length(phase: Phase, rows: Rows) -> dict[str, Any]:
    """Steps and learning rates, decided once: `minutes` by a short measurement that is sealed and used again on resume."""
    path = phase.folder / "length.json"
    if path.is_file():
        found: dict[str, Any] = read_json(path)
        return found
    spec = phase.spec
    lrs = spec.lr if isinstance(spec.lr, list) else [spec.lr]
    per_epoch = phase.batches(rows, 0).steps_per_epoch()
    steps = steps_of(spec, per_epoch)
    if spec.minutes is not None:
        steps = max(1, int(spec.minutes * 60 / _seconds_per_step(phase, rows) / len(lrs)))
    made = {"steps": steps, "lrs": lrs, "steps_per_epoch": per_epoch, "rows": len(rows), "tokens": int(rows.offsets[-1])}
    write_json(path, made)
    return made


def steps_of(spec: PhaseSpec, per_epoch: int) -> int:
    """Optimizer steps of a phase that has so many in an epoch; of one given in minutes, as long as it would be without them."""
    return spec.steps or max(1, round((spec.epochs or DEFAULT_EPOCHS) * per_epoch))


def optimizer(spec: PhaseSpec, lr: float) -> OptimSpec:
    return OptimSpec(lr, weight_decay=spec.weight_decay, head_lr=spec.head_lr, muon_lr=spec.muon_lr)


def _seconds_per_step(phase: Phase, rows: Rows) -> float:
    loaded = phase.fresh()
    pilot = replace(loaded, model=copy.deepcopy(loaded.model))
    loop = LoopSpec(PILOT_STEPS + 1, precision=phase.spec.precision)
    optim = Optim(pilot.model, OptimSpec(1e-9))
    clock = 0.0
    for info in train(pilot.model, phase.objective(rows, pilot), phase.batches(rows, loaded.tokenizer.pad_token_id), optim, lambda step: 1.0, loop):
        clock = time.monotonic() if info.step == 1 else clock
    return (time.monotonic() - clock) / PILOT_STEPS


def usual(steps: int) -> list[Timed]:
    """Who watches every build, at a cost of a few per cent of it: lengths of weights at log-spaced steps, how well the next step was foreseen at some of
    them, and how the classes lie in the features at a few."""
    asked = {"rotation": {"looks": LOOKS}, "one_step": {"looks": FORESEEN, "rows": FORESEEN_ROWS}, "geometry": {"looks": GEOMETRIES}}
    return [Timed(observer(name, options, steps)) for name, options in asked.items()]


def train_once(phase: Phase, rows: Rows, steps: int, lr: float, here: Path, *, alone: bool) -> None:
    """One training from the start, or from its last checkpoint; leaves best.safetensors, trace.jsonl and result.json.

    `alone`: no other learning rate is tried, so a divergence ends the build."""
    spec = phase.spec
    loaded = phase.fresh()
    batches = phase.batches(rows, loaded.tokenizer.pad_token_id)
    optim = Optim(loaded.model, optimizer(spec, lr))
    average = Average(loaded.model, spec.average) if spec.average else None
    step, tokens, best = 0, 0, Best()
    if found := checkpoint.find(here / "checkpoint"):
        checkpoint.restore(here / "checkpoint", loaded.model, optim, average)
        batches.restore(found["batches"])
        step, tokens, best = found["step"], found["tokens"], Best(**found["best"])
    trace = _trace_until(here / "trace.jsonl", step)
    every, validate = spec.evaluate_every or max(1, steps // VALIDATIONS), validation(phase)
    loop = LoopSpec(steps, step, tokens, spec.clip, spec.precision)
    everyone = [*(observers := usual(steps)), *phase.watchers(loaded, rows, steps, here)]
    clock = time.perf_counter()
    try:
        for info in train(loaded.model, phase.objective(rows, loaded), batches, optim, schedule(spec.schedule, steps, warmup=spec.warmup), loop, everyone):
            step = info.step
            _note(trace, phase.number, info, steps)
            if seen := {name: value for one in observers for row in one.rows()[-1:] if row["step"] == step for name, value in row.items()}:
                append_jsonl(trace, {"phase": phase.number, **{name: rounded(value) for name, value in seen.items()}})
            if average is not None:
                average.update()
            if step % every == 0 or step == steps:
                with average.applied() if average is not None else nullcontext():
                    row, score = validate(loaded)
                    append_jsonl(trace, {"phase": phase.number, "step": step, **row})
                    if best.update(score, step):
                        checkpoint.save_weights(here / "best.safetensors", loaded.model)
            if step in checkpoint.kept_steps(spec.keep, steps):
                (here / "kept").mkdir(exist_ok=True)
                checkpoint.save_weights(here / "kept" / f"{step}.safetensors", loaded.model)
            phase.build.progress(f"{phase.title}, lr {lr:g}, loss {info.loss:.3f}", step, steps)
            if spec.patience is not None and best.since >= spec.patience:
                break
            if step % spec.checkpoint_every == 0:
                state = {"step": step, "tokens": info.tokens_seen, "best": vars(best), "batches": batches.state()}
                checkpoint.save(here / "checkpoint", loaded.model, optim, state, average)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped by the user", fix="run the same command again with --resume: it goes on at the last checkpoint") from stop
    except FloatingPointError as error:
        # A rate at which training broke down is no choice, however good it was before.
        best.score = None
        if alone:
            shutil.rmtree(here)
            raise UsageError(f"training diverged: {error}", fix=f"lower the learning rate (it is {lr:g})", where=f"adapt.{phase.number}.lr") from error
        phase.build.run.log(stage="adapt", event="diverged", lr=lr, reason=str(error))
    phase.build.run.measure(observers={"training": round(time.perf_counter() - clock, 2), **{each.name: round(each.seconds, 2) for each in observers}})
    write_json(here / "result.json", {"lr": lr, "score": best.score, "best_step": best.step, "steps": step})


def _trace_until(path: Path, step: int) -> Path:
    """The trace without the rows of steps that are done again."""
    write_atomic(path, "".join(f"{json.dumps(row)}\n" for row in read_jsonl(path) if row["step"] <= step))
    return path


def rounded(value: float) -> float | None:
    """Six digits; what is no number is null, which JSON can hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _note(path: Path, phase: int, info: StepInfo, steps: int) -> None:
    if info.step % max(1, steps // TRACE_ROWS) == 0 or info.step == 1:
        row = {"phase": phase, "step": info.step, "tokens": info.tokens_seen, "loss": round(info.loss, 6), "lr": info.lr, "grad_norm": round(info.grad_norm, 6)}
        append_jsonl(path, row | {name: round(value, 6) for name, value in info.metrics.items()})
