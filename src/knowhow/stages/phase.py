"""One phase of adaptation: its model, its rows, its plan, one training at one learning rate, its validation."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowhow.adapt.channel import Channel
from knowhow.adapt.classify import Classify
from knowhow.adapt.lm import NextToken, decoder
from knowhow.adapt.rows import class_rows, class_weights, label_onsets, lm_rows, reweighted, sft_rows
from knowhow.data.batch import Rows, TokenBudget, collate
from knowhow.data.chat import prompt_text
from knowhow.errors import Interrupted, UsageError
from knowhow.evaluate.gold import answer_kind, gold_of
from knowhow.evaluate.labels import best_thresholds
from knowhow.evaluate.scorers import named
from knowhow.files import append_jsonl, read_json, read_jsonl, write_atomic, write_json
from knowhow.loop import checkpoint
from knowhow.loop.average import Average
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train, uses_bf16
from knowhow.model import adapters, channel, infer, load
from knowhow.protocols import Objective
from knowhow.recipe import PhaseSpec
from knowhow.stages.common import Build, answers, context, encode
from knowhow.stages.teacher import taught
from knowhow.types import Example, StepInfo

PILOT_STEPS = 4
VALIDATIONS = 10
DEFAULT_EPOCHS = 3.0
TRACE_ROWS = 200


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase at work: where it writes, what it asks, the folder of the model it starts from."""

    build: Build
    spec: PhaseSpec
    number: int
    folder: Path
    parent: str

    @property
    def language_model(self) -> bool:
        return self.spec.objective in ("lm", "sft")

    def fresh(self) -> load.Loaded:
        """The model to train, the same at every call."""
        recipe, task = self.build.recipe, self.build.task
        torch.manual_seed(recipe.seed)
        revision = self._revision
        if self.language_model:
            loaded = load.load(self.parent, head="lm", revision=revision, seed=recipe.seed)
        elif task.classes:
            head: Any = "channel" if self.spec.objective == "channel" else "classifier"
            loaded = load.load(self.parent, head=head, labels=task.labels, many=task.many, revision=revision, seed=recipe.seed)
        else:
            loaded = load.load(self.parent, head="regressor", revision=revision, seed=recipe.seed)
        if self.spec.method == "lora":
            lora = self.spec.lora
            loaded = adapters.add_lora(loaded, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, new_rows=self._new_rows(loaded), seed=recipe.seed)
        return loaded

    def rows(self, part: str) -> Rows:
        """The examples of one part as this phase's objective wants them."""
        build, spec, task = self.build, self.spec, self.build.task
        examples = build.rows(part)
        loaded = self.fresh() if spec.objective == "channel" else load.load(self.parent, revision=self._revision, seed=build.recipe.seed)
        room = context(loaded, build.recipe.base)
        if spec.objective == "channel":
            texts = encode(loaded, examples, task, build.recipe.base)
            return class_rows(examples, task, [[*row, loaded.tokenizer.eos_token_id] for row in texts], weights=spec.weights, together=True)
        if not self.language_model:
            tokens = encode(loaded, examples, task, build.recipe.base)
            made = class_rows(examples, task, tokens, weights=spec.weights, onsets=self._onsets(loaded, examples, tokens))
            return taught(build, spec.teacher, made, self.folder) if spec.teacher is not None and part == "train" else made
        end = loaded.tokenizer.eos_token_id
        if spec.objective == "lm":
            texts = [prompt_text(example, task) for example in examples]
            return lm_rows(examples, infer.encode(loaded.tokenizer, texts, context=room - 1), end, weights=spec.weights)
        start, _ = infer.frame(loaded.tokenizer)
        pieces = partial(infer.pieces, loaded.tokenizer)
        return sft_rows(examples, task, pieces, start=start, end=end, context=room, weights=spec.weights)

    @property
    def _revision(self) -> str | None:
        return self.build.recipe.base.revision if self.number == 0 else None

    def batches(self, rows: Rows, pad: int) -> TokenBudget:
        spec = self.spec
        micro = min(spec.microbatch_tokens, spec.batch_tokens)
        drop = 0.0 if self.language_model else spec.drop_tokens
        return TokenBudget(rows, spec.batch_tokens, micro, pad, self.build.recipe.seed, self.language_model, drop)

    def objective(self, rows: Rows, loaded: load.Loaded) -> Objective:
        spec, task = self.spec, self.build.task
        if spec.objective != "classify":
            next_token = NextToken(spec.objective, backbone=torch.compile(decoder(loaded.model), dynamic=True) if spec.compile else None)
            return next_token if self.language_model else Channel(channel.states(loaded), loaded.tokenizer.eos_token_id, next_token=next_token)
        kind = answer_kind(task)
        weights = class_weights(rows, len(task.labels), spec.class_weights) if kind == "one" else None
        whole = decoder(loaded.model) if spec.replication else loaded.model
        forward = torch.compile(whole, dynamic=True) if spec.compile else None
        return Classify("classify", kind, loaded.kind == "causal", spec.label_smoothing, weights, forward, spec.replication)

    def _onsets(self, loaded: load.Loaded, examples: Sequence[Example], tokens: Sequence[Sequence[int]]) -> np.ndarray | None:
        """Where each label begins to hold, when the loss is to be taken at every position."""
        if not self.spec.replication:
            return None
        start, _ = infer.frame(loaded.tokenizer)
        pieces, lengths = partial(infer.pieces, loaded.tokenizer), [len(row) for row in tokens]
        return label_onsets(examples, self.build.task, lengths, pieces, start=len(start), truncate=self.build.recipe.base.truncate)

    def _new_rows(self, loaded: load.Loaded) -> list[int]:
        words = self.build.run.path("base", "vocabulary.json")
        return loaded.tokenizer.convert_tokens_to_ids(read_json(words)["new_words"]) if words.is_file() else []


def phases(build: Build) -> list[Phase]:
    """The recipe's phases, each from the model that the one before leaves."""
    folders = [build.run.path("adapt", f"phase-{number}") for number in range(len(build.recipe.adapt))]
    parents = [build.base, *(str(folder / "model") for folder in folders)]
    return [Phase(build, spec, number, folders[number], parents[number]) for number, spec in enumerate(build.recipe.adapt)]


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


def plan(phase: Phase, rows: Rows) -> dict[str, Any]:
    """Steps and learning rates, decided once: `minutes` by a short measurement that is sealed and used again on resume."""
    path = phase.folder / "plan.json"
    if path.is_file():
        found: dict[str, Any] = read_json(path)
        return found
    spec = phase.spec
    lrs = spec.lr if isinstance(spec.lr, list) else [spec.lr]
    per_epoch = phase.batches(rows, 0).steps_per_epoch()
    steps = spec.steps or max(1, round((spec.epochs or DEFAULT_EPOCHS) * per_epoch))
    if spec.minutes is not None:
        steps = max(1, int(spec.minutes * 60 / _seconds_per_step(phase, rows) / len(lrs)))
    made = {"steps": steps, "lrs": lrs, "steps_per_epoch": per_epoch, "rows": len(rows), "tokens": int(rows.offsets[-1])}
    write_json(path, made)
    return made


def _seconds_per_step(phase: Phase, rows: Rows) -> float:
    loaded = phase.fresh()
    pilot = replace(loaded, model=copy.deepcopy(loaded.model))
    loop = LoopSpec(PILOT_STEPS + 1, precision=phase.spec.precision)
    optim = Optim(pilot.model, OptimSpec(1e-9))
    clock = 0.0
    for info in train(pilot.model, phase.objective(rows, pilot), phase.batches(rows, loaded.tokenizer.pad_token_id), optim, lambda step: 1.0, loop):
        clock = time.monotonic() if info.step == 1 else clock
    return (time.monotonic() - clock) / PILOT_STEPS


def train_once(phase: Phase, rows: Rows, steps: int, lr: float, here: Path, *, alone: bool) -> None:
    """One training from the start, or from its last checkpoint; leaves best.safetensors, trace.jsonl and result.json.

    `alone`: no other learning rate is tried, so a divergence ends the build."""
    spec = phase.spec
    loaded = phase.fresh()
    batches = phase.batches(rows, loaded.tokenizer.pad_token_id)
    optim = Optim(loaded.model, OptimSpec(lr, weight_decay=spec.weight_decay, head_lr=spec.head_lr, muon_lr=spec.muon_lr))
    average = Average(loaded.model, spec.average) if spec.average else None
    step, tokens, best = 0, 0, Best()
    if found := checkpoint.find(here / "checkpoint"):
        checkpoint.restore(here / "checkpoint", loaded.model, optim, average)
        batches.restore(found["batches"])
        step, tokens, best = found["step"], found["tokens"], Best(**found["best"])
    trace = here / "trace.jsonl"
    write_atomic(trace, "".join(f"{json.dumps(row)}\n" for row in read_jsonl(trace) if row["step"] <= step))
    every = spec.evaluate_every or max(1, steps // VALIDATIONS)
    validate = validation(phase)
    loop = LoopSpec(steps, step, tokens, spec.clip, spec.precision)
    label = f"phase {phase.number + 1} of {len(phase.build.recipe.adapt)}, {spec.objective}, lr {lr:g}"
    try:
        for info in train(loaded.model, phase.objective(rows, loaded), batches, optim, schedule(spec.schedule, steps, warmup=spec.warmup), loop):
            step = info.step
            _note(trace, phase.number, info, steps)
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
            phase.build.progress(f"{label}, loss {info.loss:.3f}", step, steps)
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
    write_json(here / "result.json", {"lr": lr, "score": best.score, "best_step": best.step, "steps": step})


def validation(phase: Phase) -> Callable[[load.Loaded], tuple[dict[str, float], float]]:
    """A function of the model: what to write into the trace, and the score to keep the best by. Random state and mode are left as they were."""
    look = _language_loss(phase) if phase.language_model else _task_metric(phase)

    def validate(loaded: load.Loaded) -> tuple[dict[str, float], float]:
        random = torch.get_rng_state()
        loaded.model.eval()
        row, score = look(loaded)
        loaded.model.train()
        torch.set_rng_state(random)
        return row, score

    return validate


def _task_metric(phase: Phase) -> Callable[[load.Loaded], tuple[dict[str, float], float]]:
    build, task = phase.build, phase.build.task
    valid = build.rows("valid")
    kind, gold = answer_kind(task), gold_of(valid, task)
    weights_N = reweighted(gold.weights_N, phase.spec.weights)
    metric = named(task.metric, kind)

    def look(loaded: load.Loaded) -> tuple[dict[str, float], float]:
        precision = "bf16" if uses_bf16(infer.device_of(loaded.model).type, phase.spec.precision) else "float32"
        given = answers(loaded, valid, task, build.recipe.base, name="specialist", precision=precision)
        if task.many:
            given = replace(given, thresholds_C=best_thresholds(gold.values, given.probs_NC, weights_N))
        scores = given.values_N if given.logits_NC is None else given.logits_NC
        if scores is not None and not np.isfinite(scores).all():
            raise FloatingPointError("its answers on validation are no numbers")
        value = metric(gold.values, given, weights_N)
        row = {f"valid_{task.metric}": value}
        if task.classes and phase.spec.objective == "classify":  # a channel's training loss is of texts, not of labels: not the same measure
            row["valid_loss"] = named("nll", kind)(gold.values, given, weights_N)
        return row, value if metric.higher_is_better else -value

    return look


def _language_loss(phase: Phase) -> Callable[[load.Loaded], tuple[dict[str, float], float]]:
    """Mean validation loss of the phase's own objective, nats per supervised token."""
    rows, objective = phase.rows("valid"), NextToken(phase.spec.objective)

    def look(loaded: load.Loaded) -> tuple[dict[str, float], float]:
        pad, total, units = loaded.tokenizer.pad_token_id, 0.0, 0.0
        with torch.inference_mode():
            for chosen in (part for step in phase.batches(rows, pad).plan(0) for part in step):
                batch = collate(rows, chosen, pad=pad, language_model=True)
                total += float(objective(loaded.model, batch)[0])
                units += objective.units(batch)
        if not math.isfinite(total):
            raise FloatingPointError(f"its loss on validation is {total}")
        return {"valid_loss": total / units}, -total / units

    return look


def _note(path: Path, phase: int, info: StepInfo, steps: int) -> None:
    if info.step % max(1, steps // TRACE_ROWS) == 0 or info.step == 1:
        row = {"phase": phase, "step": info.step, "tokens": info.tokens_seen, "loss": round(info.loss, 6), "lr": info.lr, "grad_norm": round(info.grad_norm, 6)}
        append_jsonl(path, row | {name: round(value, 6) for name, value in info.metrics.items()})
