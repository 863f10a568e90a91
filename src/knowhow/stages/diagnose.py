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

import torch

from knowhow.adapt.lm import decoder
from knowhow.data.batch import Rows, TokenBudget
from knowhow.diagnose import gradients, layers, line, outliers, probes
from knowhow.diagnose.subject import RUN, Subject, at_rest, mean_loss, measured, site_of
from knowhow.errors import UsageError
from knowhow.evaluate.forgetting import general_text
from knowhow.evaluate.gold import answer_kind
from knowhow.files import digest, write_json
from knowhow.maths.linear import Answer, fit
from knowhow.maths.losses import linear_cross_entropy
from knowhow.model import infer, load
from knowhow.recipe import PhaseSpec
from knowhow.stages.common import Build
from knowhow.stages.phase import Phase, phases
from knowhow.types import Batch, Diagnosis, Measurement

MOST_TOKENS, LEAST_TOKENS, SHARE = 2048, 256, 500
"""A batch of the diagnosis has 1 in SHARE of the tokens that training will see, within these bounds: no build is diagnosed for longer than it trains."""
PULLS, FRESH, READ = 8, 2, 10
"""Batches for gradients, other ones for losses along lines and without layers, and further ones that probes read."""
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
        chosen_N = batch.targets_BT.flatten() != -100
        return linear_cross_entropy(hidden_BTD.flatten(0, 1)[chosen_N], weight_VD, batch.targets_BT.flatten()[chosen_N]), {}

    def units(self, batch: Batch) -> float:
        return float((batch.targets_BT != -100).sum())


def diagnose(phase: Phase, build: Build) -> tuple[Diagnosis, dict[str, Any]]:
    """All measurements, with the settings that are known before training; and sizes and singular values of each hidden matrix's first gradient."""
    phase = replace(phase, spec=phase.spec.model_copy(update={"method": "full", "compile": False, "drop_tokens": 0.0}), parent=build.base, number=0)
    loaded = phase.fresh()
    rows = phase.rows("train")
    size = min(MOST_TOKENS, max(LEAST_TOKENS, length_of(phase, rows) * phase.spec.batch_tokens // SHARE))
    batches = some(rows, loaded.tokenizer.pad_token_id, build.recipe.seed, phase.language_model, size)
    say = partial(build.progress, "diagnose")
    general = general_rows(build, loaded) if loaded.kind == "causal" else None
    with at_rest(loaded.model):
        subject = _subject(phase, rows, loaded, batches, general)
        found = settings(phase, build, rows)
        steps: list[Callable[[], list[Measurement]]] = []
        found += line.from_the_start(subject)
        if phase.spec.objective == "classify":
            found += read_off(build, loaded, batches)
        pulled: list[gradients.Gradients] = []
        steps += [partial(_pulls, subject, pulled), lambda: line.along_signs(subject, pulled[0])]
        looks = [
            partial(layers.skips, loaded.model, subject.objective, subject.fresh, metric="skip.task"),
            partial(layers.turns, loaded.model, subject.fresh[0]),
            partial(outliers.tails, loaded.model, subject.fresh[0]),
        ]
        if general is not None:
            looks.append(partial(layers.skips, loaded.model, general[0], general[1][:1], metric="skip.general", parts=False))
        if loaded.kind == "causal":
            looks.append(partial(outliers.sinks, loaded.model, subject.fresh[0]))
        steps += [partial(_where_known, build, look) for look in looks]
        for at, step in enumerate(steps):
            say(at, len(steps))
            found += step()
        say(len(steps), len(steps))
    kept = tuple(m for m in found if math.isfinite(m.value))
    hidden = subject.matrices()
    spectra = {site_of(name): {"shape": list(hidden[name].shape), "values": values} for name, values in pulled[0].spectra.items()}
    return Diagnosis(kept, digest([[m.site, m.metric, m.value] for m in kept])), spectra


def settings(phase: Phase, build: Build, rows: Rows) -> list[Measurement]:
    """Facts about the run that is planned, but its learning rate: what a law needs besides the base."""
    spec, task = phase.spec, build.task
    tokens = int(rows.offsets[-1])
    facts = {
        "schedule": mean_factor(spec), "units.rows": float(spec.objective == "classify"), "weight_decay": spec.weight_decay,
        "momentum": 0.9, "beta2": 0.95, "adam": 1.0, "clip": spec.clip,
        "rows": len(rows), "tokens": tokens, "batch_tokens": spec.batch_tokens, "warmup": spec.warmup, "classes": len(task.labels),
        "steps": length_of(phase, rows),
    }  # fmt: skip
    return [measured(RUN, name, float(value), "", 1) for name, value in facts.items()]


def length_of(phase: Phase, rows: Rows) -> int:
    """Optimizer steps of the phase; of one given in minutes, what three passes would take."""
    return phase.spec.steps or max(1, round((phase.spec.epochs or 3.0) * int(rows.offsets[-1]) / phase.spec.batch_tokens))


def mean_factor(spec: PhaseSpec) -> float:
    """Mean of the schedule's factor over the steps: cosine ½, wsd .9, constant 1, less half the warm-up."""
    return {"cosine": 0.5, "wsd": 0.9, "constant": 1.0}[spec.schedule] * (1 - spec.warmup / 2)


def read_off(build: Build, loaded: load.Loaded, batches: Sequence[Batch]) -> list[Measurement]:
    """Probes on frozen features; leaves the model's fresh head at what they deserve, for the gradient through a random head says nothing of the task."""
    kind: Answer = answer_kind(build.task)  # type: ignore[assignment]
    seen = probes.features(loaded.model, batches[PULLS + FRESH :], head=_reader(loaded.model), encoder=loaded.kind == "encoder")
    cut = max(1, len(seen.labels) * 2 // 3)
    train, valid = seen.rows(torch.arange(cut)), seen.rows(torch.arange(cut, len(seen.labels)))
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


def _pulls(subject: Subject, kept: list[gradients.Gradients]) -> list[Measurement]:
    kept.append(gradients.gradients(subject))
    found = gradients.pull(subject, kept[0]) + gradients.noise(kept[0], len(subject.batches))
    if subject.general_objective is not None:
        parameters = subject.trained()
        general = torch.autograd.grad(mean_loss(subject.model, subject.general_objective, subject.general), list(parameters.values()), allow_unused=True)
        pairs = [(kept[0].mean[name], g) for name, g in zip(parameters, general, strict=True) if g is not None]
        both = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
        sizes = [math.sqrt(sum(float(pair[side].double().square().sum()) for pair in pairs)) for side in (0, 1)]
        found.append(measured(RUN, "overlap.general", both / max(sizes[0] * sizes[1], 1e-30), "cosine", len(subject.general)))
    return found


def _subject(phase: Phase, rows: Rows, loaded: load.Loaded, batches: Sequence[Batch], general: tuple[GeneralText, list[Batch]] | None) -> Subject:
    heads = tuple(load.head_modules(loaded.model)) if phase.spec.objective == "classify" else ()
    objective = phase.objective(rows, loaded)
    texts = ((), None) if general is None else (general[1], general[0])
    return Subject(loaded.model, objective, batches[:PULLS], batches[PULLS : PULLS + FRESH], texts[0], texts[1], heads)


def some(rows: Rows, pad: int, seed: int, language_model: bool, size: int = MOST_TOKENS) -> list[Batch]:
    """Microbatches of training rows, in the loop's own random order; fewer, shared, where the data are few."""
    stream = TokenBudget(rows, size, size, pad, seed, language_model, 0.0)
    wanted, found = PULLS + FRESH + READ, []
    for step, micro in enumerate(stream):
        found += list(micro)
        if len(found) >= wanted or step >= wanted:
            break
    return found


def general_rows(build: Build, loaded: load.Loaded) -> tuple[GeneralText, list[Batch]]:
    """General text as next-token rows of 256 tokens, and the objective that reads them."""
    texts = infer.encode(loaded.tokenizer, general_text()[:GENERAL], context=min(256, loaded.context))
    long = [row for row in texts if len(row) > 2]
    width = max(map(len, long))
    tokens_BT = torch.tensor([row + [loaded.tokenizer.pad_token_id] * (width - len(row)) for row in long])
    targets_BT = torch.tensor([row[1:] + [-100] * (width - len(row) + 1) for row in long])
    mask_BT = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in long])
    tied = loaded.model.config.get_text_config().tie_word_embeddings
    head = None if tied else load.load(build.base, head="lm", seed=build.recipe.seed).model.get_output_embeddings().weight.detach()
    return GeneralText(head), [Batch(tokens_BT, mask_BT, targets_BT)]


def _reader(model: torch.nn.Module) -> Any:
    """The last linear module of the head."""
    heads = [module for name in load.head_modules(model) for module in model.get_submodule(name).modules() if isinstance(module, torch.nn.Linear)]
    return heads[-1]
