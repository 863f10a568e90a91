"""Learning dictionaries of features from a model's sites, many at once, in the project's own training loop.

The loop sees token batches and a module that holds nothing but the dictionaries; the frozen models belong to the objective, which reads their sites in one
pass and gives each dictionary its own loss. Nothing is shared but the batches, so learning several together gives each the same bytes as alone.
Shape letters: N vectors, D and E features of the sites, F features of a dictionary, B rows, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from knowhow.data.batch import Rows, TokenBudget
from knowhow.errors import Interrupted, UsageError
from knowhow.explain.features import dictionary as dictionaries
from knowhow.explain.features.dictionary import Activation, Dictionary, Form
from knowhow.explain.features.splice import counted, place, values
from knowhow.files import append_jsonl, digest, read_json, read_jsonl, write_atomic, write_json
from knowhow.loop import checkpoint
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, to_device, train
from knowhow.model.loaded import Loaded, device_of
from knowhow.protocols import Progress
from knowhow.types import Batch, StepInfo

Tensor = torch.Tensor
Where = str | tuple[str, str]
"""A site for an autoencoder, (read, written) for a transcoder."""


@dataclass(frozen=True, slots=True)
class Course:
    """How dictionaries are learned. `features`, `activation`, `k`, `sparsity`, `skip`: see `Form`. `revive`, `dead_after`: see `dictionary.loss`;
    `sample`: vectors that centre and scale are taken from; the rate warms up over 2% of the steps and falls to 0 over the last 30%."""

    features: int = 2048
    activation: Activation = "batchtopk"
    k: int = 32
    sparsity: float = 0.0
    skip: int = 0
    steps: int = 1000
    batch_tokens: int = 4096
    microbatch_tokens: int = 4096
    lr: float = 1e-3
    revive: float = 1 / 32
    dead_after: int = 100_000
    sample: int = 16_384
    checkpoint_every: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Features:
    """What was learned: a dictionary for each name (`Form.name`), the steps done and the tokens read (padding not counted)."""

    dictionaries: Mapping[str, Dictionary]
    steps: int
    tokens: int


@dataclass(frozen=True)
class Reconstruct:
    """The sum of the dictionaries' losses on every counted position of the batch; `model` is a ModuleList of dictionaries.

    Satisfies the Objective protocol. `models` are frozen; several of one width and tokenizer are read in turn and their vectors put together."""

    models: tuple[Loaded, ...]
    skip: int = 0
    revive: float = 1 / 32
    dead_after: int = 0
    name: str = "features"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        learned = [cast(Dictionary, child) for child in model.children()]
        names = list(dict.fromkeys(name for one in learned for name in (one.form.reads, one.form.writes)))
        vectors = self.vectors(names, batch)
        total, metrics = next(model.parameters()).new_zeros(()), {}
        for one in learned:
            inputs_ND, targets_NE = vectors[one.form.reads], vectors[one.form.writes]
            lost, found = dictionaries.loss(one, inputs_ND, targets_NE, revive=self.revive, dead_after=self.dead_after)
            total = total + lost
            metrics |= {f"{one.form.name}.{name}": value for name, value in found.items()}
        return total, metrics

    def units(self, batch: Batch) -> float:
        """Counted positions times models."""
        return float(counted(batch, self.skip).sum() * len(self.models))

    def vectors(self, names: Sequence[str], batch: Batch) -> dict[str, Tensor]:
        """Site → ND of the counted positions, all models'."""
        real_BT = counted(batch, self.skip)
        seen = [values(loaded, names, batch) for loaded in self.models]
        return {name: torch.cat([one[name][real_BT] for one in seen]).float() for name in names}


def learn(
    models: Loaded | Sequence[Loaded], rows: Rows, sites: Sequence[Where], folder: Path, course: Course | None = None, progress: Progress | None = None
) -> Features:
    """Learn one dictionary for each of `sites` from `rows`, all in one pass of the model(s); goes on where it was stopped, and ends in the same bytes.

    `folder` gets plan.json, start/, checkpoint/, trace.jsonl and at the end the dictionaries (NAME.safetensors, NAME.json) with result.json; with those it is
    only read. Raises UsageError for sites without a vector per position, models in training, rows that are too short or too long and a folder of another
    plan; Interrupted at a Ctrl-C: at most `checkpoint_every` steps are lost."""
    course, group = course or Course(), (models,) if isinstance(models, Loaded) else tuple(models)
    pairs = [(where, where) if isinstance(where, str) else where for where in sites]
    _check(group, rows, pairs, course)
    plan = {"course": asdict(course), "sites": pairs, "models": [loaded.ref.sha256 for loaded in group], "rows": _digest(rows)}
    known = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None
    if known is not None and known != json.loads(json.dumps(plan)):
        raise UsageError("a folder where something else was learned", where=str(folder), fix="take another folder, or the same sites, rows and settings")
    write_json(folder / "plan.json", plan)
    if (folder / "result.json").is_file():
        return _on(opened(folder), group[0])
    objective = Reconstruct(group, course.skip, course.revive, course.dead_after)
    batches = TokenBudget(rows, course.batch_tokens, course.microbatch_tokens, group[0].tokenizer.pad_token_id, course.seed)
    learned = torch.nn.ModuleList(_start(objective, batches, pairs, folder / "start", course)).to(device_of(group[0].model))
    try:
        tokens = _train(learned, objective, batches, folder, course, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped by the user", fix="run the same again: it goes on at the last checkpoint") from stop
    except FloatingPointError as error:
        raise UsageError(f"learning diverged: {error}", fix=f"lower the rate (it is {course.lr:g})") from error
    finished = [cast(Dictionary, child) for child in learned.children()]
    sample = _sample(objective, batches, list(dict.fromkeys(read for read, _ in pairs)), course.sample)
    for one in finished:
        one.fit_threshold(sample[one.form.reads])
        dictionaries.save(one, folder)
    write_json(folder / "result.json", {"names": [one.form.name for one in finished], "steps": course.steps, "tokens": tokens})
    return _on(opened(folder), group[0])


def opened(folder: Path) -> Features:
    """What `learn` left in a folder. Raises UsageError where it did not end, and for dictionaries that are damaged."""
    if not (folder / "result.json").is_file():
        raise UsageError("no features were learned to the end", where=str(folder), allowed="a folder that learning has filled")
    result = read_json(folder / "result.json")
    return Features({name: dictionaries.load(folder / f"{name}.json") for name in result["names"]}, result["steps"], result["tokens"])


def _on(found: Features, loaded: Loaded) -> Features:
    """The dictionaries where the model is."""
    return replace(found, dictionaries={name: one.to(device_of(loaded.model)) for name, one in found.dictionaries.items()})


def _train(learned: torch.nn.ModuleList, objective: Reconstruct, batches: TokenBudget, folder: Path, course: Course, progress: Progress | None) -> int:
    """Steps from the last checkpoint on; gives the tokens read."""
    optim = Optim(learned, OptimSpec(course.lr, betas=(0.9, 0.999)))
    members, step, tokens, here, trace = [cast(Dictionary, child) for child in learned.children()], 0, 0, folder / "checkpoint", folder / "trace.jsonl"
    if found := checkpoint.find(here):
        checkpoint.restore(here, learned, optim)
        batches.restore(found["batches"])
        step, tokens = found["step"], found["tokens"]
        for one, idle in zip(members, found["idle"], strict=True):
            one.idle_F.copy_(torch.tensor(idle))
    write_atomic(trace, "".join(f"{json.dumps(row)}\n" for row in read_jsonl(trace) if row["step"] <= step))
    # a norm over all dictionaries would make one's update depend on the others, so nothing is clipped: Adam bounds each step by itself
    loop = LoopSpec(course.steps, step, tokens, clip=float("inf"), precision="float32", attention="torch")
    for info in train(learned, objective, batches, optim, schedule("wsd", course.steps, warmup=0.02, decay=0.3), loop):
        for one in members:
            one.renormalise()
        tokens = info.tokens_seen
        _note(trace, info, course.steps)
        if info.step % course.checkpoint_every == 0:
            idle = [one.idle_F.tolist() for one in members]
            checkpoint.save(here, learned, optim, {"step": info.step, "tokens": tokens, "batches": batches.state(), "idle": idle})
        if progress is not None:
            progress(
                f"features, {sum(value for name, value in info.metrics.items() if name.endswith('.unexplained')) / len(members):.3f} unexplained",
                info.step,
                course.steps,
            )
    return tokens


def _start(objective: Reconstruct, batches: TokenBudget, pairs: Sequence[tuple[str, str]], folder: Path, course: Course) -> list[Dictionary]:
    """Fresh dictionaries with their scales, or those that an earlier start left."""
    names = [read if read == written else f"{read}-to-{written}" for read, written in pairs]
    if (folder / "ready.json").is_file():
        return [dictionaries.load(folder / f"{name}.json") for name in names]
    sites = list(dict.fromkeys(name for pair in pairs for name in pair))
    sample = _sample(objective, batches, sites, course.sample)
    made = []
    for read, written in pairs:
        inputs_ND, targets_NE = sample[read], sample[written]
        shape = (inputs_ND.shape[1], targets_NE.shape[1], course.features)
        one = Dictionary(Form(read, written, *shape, course.activation, course.k, course.sparsity, course.skip), seed=course.seed)
        one.fit_scale(inputs_ND.cpu(), targets_NE.cpu())
        dictionaries.save(one, folder)
        made.append(one)
    write_json(folder / "ready.json", names)
    return made


def _sample(objective: Reconstruct, batches: TokenBudget, sites: Sequence[str], size: int) -> dict[str, Tensor]:
    """Site → the first vectors of the first epoch, at most `size`."""
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    count, device = 0, device_of(objective.models[0].model)
    for batch in _first_epoch(batches):
        vectors = objective.vectors(sites, to_device(batch, device))
        for name in sites:
            found[name].append(vectors[name])
        count += len(vectors[sites[0]])
        if count >= size:
            break
    return {name: torch.cat(parts)[:size] for name, parts in found.items()}


def _first_epoch(batches: TokenBudget) -> Iterator[Batch]:
    own = replace(batches, epoch=0, index=0)
    for _, micro in zip(range(own.steps_per_epoch()), own):
        yield from micro


def _note(trace: Path, info: StepInfo, steps: int) -> None:
    if info.step % max(1, steps // 200) == 0 or info.step == 1:
        row: dict[str, Any] = {"step": info.step, "tokens": info.tokens_seen, "loss": round(info.loss, 6), "lr": info.lr}
        append_jsonl(trace, row | {name: round(value, 6) for name, value in info.metrics.items()})


def _digest(rows: Rows) -> str:
    return digest(np.ascontiguousarray(rows.tokens).tobytes() + np.ascontiguousarray(rows.offsets).tobytes())


def _check(group: Sequence[Loaded], rows: Rows, pairs: Sequence[tuple[str, str]], course: Course) -> None:
    if not group or not pairs or len(set(pairs)) < len(pairs):
        raise UsageError(f"{len(group)} models and the sites {pairs}", allowed="at least one of each, no site twice")
    for loaded in group:
        if loaded.model.training:
            raise UsageError("a model in training", allowed="a model in eval mode", fix="call model.eval() first: dropout would change what is learned")
        for pair in pairs:
            for name in pair:
                place(loaded, name)
    longest, room = int(rows.lengths.max(initial=0)), min(loaded.context for loaded in group)
    if not course.skip < longest <= room or int(rows.lengths.min()) <= course.skip:
        got = f"{len(rows)} rows of {int(rows.lengths.min(initial=0))} to {longest} tokens"
        raise UsageError(got, allowed=f"rows of {course.skip + 1} to {room} tokens", fix="leave shorter rows out, and cut longer ones")
    if course.steps < 1 or course.checkpoint_every < 1 or course.sample < 1 or course.lr <= 0:
        got = f"steps {course.steps}, checkpoint_every {course.checkpoint_every}, sample {course.sample}, lr {course.lr}"
        raise UsageError(got, allowed="numbers above 0")
