"""Stage diagnose: the untouched base on a few hundred training rows; what the laws predict from. No weight is left changed.

Leaves diagnosis.json: measurements and their digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowhow.adapt.lm import decoder
from knowhow.data import batch as batching
from knowhow.data.batch import IGNORE, Rows, TokenBudget
from knowhow.diagnose import bending, gradients, layers, line, outliers, probes
from knowhow.diagnose.subject import Subject, at_rest, mean_loss, measured
from knowhow.errors import UsageError
from knowhow.evaluate.forgetting import general_text
from knowhow.evaluate.gold import answer_kind
from knowhow.files import digest, write_json
from knowhow.loop import optim
from knowhow.maths import hvp
from knowhow.maths.linear import Answer, fit
from knowhow.maths.losses import linear_cross_entropy
from knowhow.model import infer, load
from knowhow.model.loaded import site_of
from knowhow.stages.common import Build
from knowhow.stages.phase import Phase, phases
from knowhow.stages.training import optimizer, steps_of
from knowhow.types import RUN, Batch, Diagnosis, Measurement

MOST_TOKENS, LEAST_TOKENS, SHARE = 2048, 256, 500
"""A batch of the diagnosis has 1 in SHARE of the tokens that training will see, within these bounds: no build is diagnosed for longer than it trains."""
PULLS, FRESH = 8, 2
"""Batches for gradients, and other ones for losses along lines and without layers."""
READ_SHARE, READ_MOST = 10, 24_000
"""Probes read 1 in READ_SHARE of the tokens that training will see, forward alone, and no more than READ_MOST."""
GENERAL = 8


def work(build: Build, folder: Path) -> None:
    """Diagnoses the base for the recipe's last phase, whose objective is the task's. Leaves spectra.json too: the first gradient of each matrix."""
    found, pulled = diagnose(phases(build)[-1], build)
    write_json(folder / "spectra.json", pulled, indent=None)
    write_json(folder / "diagnosis.json", {"digest": found.digest, "measurements": [[m.site, m.metric, m.value, m.unit, m.n] for m in found.measurements]})


@dataclass(frozen=True)
class GeneralText:
    """−log p of general text's tokens by the body that is being trained, read by the base's own output matrix (the live embedding where they are tied)."""

    weight_VD: torch.Tensor | None
    name: str = "general"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        hidden_BTD = decoder(model)(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state
        weight_VD = model.get_input_embeddings().weight if self.weight_VD is None else self.weight_VD
        chosen_N = batch.targets_BT.flatten() != IGNORE
        return linear_cross_entropy(hidden_BTD.flatten(0, 1)[chosen_N], weight_VD, batch.targets_BT.flatten()[chosen_N]), {}

    def units(self, batch: Batch) -> float:
        return float((batch.targets_BT != IGNORE).sum())


def diagnose(phase: Phase, build: Build) -> tuple[Diagnosis, dict[str, Any]]:
    """All measurements, with the settings that are known before training; and sizes and singular values of each hidden matrix's first gradient."""
    phase = replace(phase, spec=phase.spec.model_copy(update={"method": "full", "compile": False, "drop_tokens": 0.0}), parent=build.base, number=0)
    loaded = phase.fresh()
    rows = phase.rows("train")
    steps = steps_of(phase.spec, phase.batches(rows, loaded.tokenizer.pad_token_id).steps_per_epoch())
    size = min(MOST_TOKENS, max(LEAST_TOKENS, steps * phase.spec.batch_tokens // SHARE))
    batches = some(rows, loaded.tokenizer.pad_token_id, build.recipe.seed, phase.language_model, size)
    say = partial(build.progress, "diagnose")
    general = general_rows(build, loaded) if loaded.kind == "causal" else None
    with at_rest(loaded.model):
        subject = _subject(phase, rows, loaded, batches, general)
        found = settings(phase, build, rows, steps)
        found += line.from_the_start(subject)
        if phase.spec.objective == "classify":
            tokens = min(READ_MOST, max(PULLS * size, steps * phase.spec.batch_tokens // READ_SHARE))
            found += read_off(build, loaded, unread(rows, batches, loaded.tokenizer.pad_token_id, build.recipe.seed, tokens))
        first = gradients.gradients(subject)
        spectra = gradients.spectra(first)
        looks = [
            partial(layers.skips, loaded.model, subject.objective, subject.fresh, metric="skip.task"),
            partial(layers.turns, loaded.model, subject.fresh[0]),
            partial(outliers.tails, loaded.model, subject.fresh[0]),
        ]
        if phase.spec.objective == "classify":
            looks.append(partial(layers.shifts, loaded.model, subject.fresh[:1], many=build.task.many, metric="skip.shift"))
        if general is not None:
            looks.append(partial(layers.skips, loaded.model, general[0], general[1][:1], metric="skip.general"))
        if loaded.kind == "causal":
            looks.append(partial(outliers.sinks, loaded.model, subject.fresh[0]))
        todo: list[Callable[[], list[Measurement]]] = [
            partial(gradients.pull, subject, first, spectra),
            partial(gradients.noise, first, len(subject.batches)),
            partial(_overlap, subject, first),
            partial(line.along_signs, subject, first),
            partial(bending.along_signs, subject, first),
            *(partial(_where_known, build, look) for look in looks),
        ]
        for at, step in enumerate(todo):
            say(at, len(todo))
            found += step()
        say(len(todo), len(todo))
    kept = tuple(m for m in found if math.isfinite(m.value))
    pulled = {site_of(name): {"shape": list(first.mean[name].shape), "values": values[: gradients.KEPT].tolist()} for name, values in spectra.items()}
    return Diagnosis(kept, digest([[m.site, m.metric, m.value] for m in kept])), pulled


def settings(phase: Phase, build: Build, rows: Rows, steps: int) -> list[Measurement]:
    """Facts about the run that is planned, but its learning rate: what a law needs besides the base. `schedule`: the mean of its factor over the steps."""
    spec, task = phase.spec, build.task
    factor = optim.schedule(spec.schedule, steps, warmup=spec.warmup)
    facts = {
        "schedule": sum(factor(step) for step in range(1, steps + 1)) / steps, "units.rows": float(spec.objective == "classify"),
        **optim.facts(optimizer(spec, 0.0)), "clip": spec.clip, "rows": len(rows), "tokens": int(rows.offsets[-1]), "batch_tokens": spec.batch_tokens,
        "warmup": spec.warmup, "classes": len(task.labels), "steps": steps,
    }  # fmt: skip
    return [measured(RUN, name, float(value), "", 1) for name, value in facts.items()]


def read_off(build: Build, loaded: load.Loaded, batches: Sequence[Batch]) -> list[Measurement]:
    """Probes on frozen features; leaves the model's fresh head at what they deserve, for the gradient through a random head says nothing of the task."""
    kind: Answer = answer_kind(build.task)  # type: ignore[assignment]
    seen = probes.features(loaded.model, batches, head=_reader(loaded.model), encoder=loaded.kind == "encoder")
    order_N = torch.randperm(len(seen.labels), generator=torch.Generator().manual_seed(build.recipe.seed))
    cut = max(1, len(order_N) * 2 // 3)
    train, valid = seen.rows(order_N[:cut]), seen.rows(order_N[cut:])
    if kind == "one" and (train.labels.ndim == 1) and len(train.labels.unique()) < 2:
        raise UsageError("one class only among the rows that were diagnosed", fix="give rows of at least two classes, or another split", where="data")
    outputs = loaded.model.config.num_labels
    penalty = probes.best_penalty(train, valid, kind, outputs)
    linear = _reader(loaded.model)
    head = fit(seen.final_ND, seen.labels, kind, outputs, penalty=penalty, bias=linear.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(head.weight_CD)
        if linear.bias is not None:
            linear.bias.copy_(head.bias_C)
    return [*probes.by_layer(train, valid, kind, outputs, penalty=penalty), *probes.growth(train, valid, kind, outputs)]


def _where_known(build: Build, look: Callable[[], list[Measurement]]) -> list[Measurement]:
    """What a look finds; nothing, and a line in the log, for a model whose parts are not known: the laws that need it then do not apply."""
    try:
        return look()
    except UsageError as error:
        build.run.log(stage="diagnose", event="not measured", reason=str(error))
        return []


def _overlap(subject: Subject, first: gradients.Gradients) -> list[Measurement]:
    """Cosine of the task's first gradient and that of general text; nothing without general text."""
    texts = subject.general_objective
    if texts is None:
        return []
    task = list(first.mean.values())
    general = hvp.gradient(lambda: mean_loss(subject.model, texts, subject.general), list(subject.trained().values()))
    shared = [part for part, other in zip(task, general, strict=True) if bool(other.any())]
    sizes = math.sqrt(hvp.dot(shared, shared) * hvp.dot(general, general))
    return [measured(RUN, "overlap.general", hvp.dot(task, general) / max(sizes, 1e-30), "cosine", len(subject.general))]


def _subject(phase: Phase, rows: Rows, loaded: load.Loaded, batches: Sequence[Batch], general: tuple[GeneralText, list[Batch]] | None) -> Subject:
    heads = tuple(load.head_modules(loaded.model)) if phase.spec.objective == "classify" else ()
    objective = phase.objective(rows, loaded)
    texts = ((), None) if general is None else (general[1], general[0])
    return Subject(loaded.model, objective, batches[:PULLS], batches[PULLS : PULLS + FRESH], texts[0], texts[1], heads)


def some(rows: Rows, pad: int, seed: int, language_model: bool, size: int = MOST_TOKENS) -> list[Batch]:
    """PULLS + FRESH microbatches of training rows, in the loop's own random order; fewer, shared, where the data are few."""
    found: list[Batch] = []
    for step, micro in enumerate(TokenBudget(rows, size, size, pad, seed, language_model, 0.0)):
        found += list(micro)
        if len(found) >= PULLS + FRESH or step >= PULLS + FRESH:
            break
    return found


def unread(rows: Rows, seen: Sequence[Batch], pad: int, seed: int, tokens: int) -> list[Batch]:
    """Batches of about so many tokens of rows that are in none of `seen`, each row once; of all rows where those are more than half of them."""
    taken = {row for batch in seen for row in batch.ids}
    left = [at for at, row in enumerate(rows.ids) if row not in taken]
    order = np.random.default_rng(seed).permutation(left if 2 * len(left) >= len(rows) else len(rows))
    chosen = order[: max(4, int(np.searchsorted(np.cumsum(rows.lengths[order]), tokens, "right")))]
    return [batching.collate(rows, part, pad=pad, language_model=False) for part in batching.by_length(chosen, rows.lengths, MOST_TOKENS)]


def general_rows(build: Build, loaded: load.Loaded) -> tuple[GeneralText, list[Batch]]:
    """General text as next-token rows of 256 tokens, and the objective that reads them."""
    texts = infer.encode(loaded.tokenizer, general_text()[:GENERAL], context=min(256, loaded.context))
    long = [row for row in texts if len(row) > 2]
    made = batching.rows(long, [str(at) for at in range(len(long))])
    batch = batching.collate(made, np.arange(len(made)), pad=loaded.tokenizer.pad_token_id, language_model=True)
    tied = loaded.model.config.get_text_config().tie_word_embeddings
    head = None if tied else load.load(build.base, head="lm", seed=build.recipe.seed).model.get_output_embeddings().weight.detach()
    return GeneralText(head), [batch]


def _reader(model: torch.nn.Module) -> Any:
    """The last linear module of the head."""
    heads = [module for name in load.head_modules(model) for module in model.get_submodule(name).modules() if isinstance(module, torch.nn.Linear)]
    return heads[-1]
