"""Twenty steps on a small batch, thrown away: what is asked where no law foresees well enough. Labelled `pilot` wherever it is used.

A pilot trains a copy of the phase's own model with its own objective at a constant rate; nothing of it is kept but numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from knowhow.data.batch import Rows
from knowhow.diagnose.subject import at_rest, measured, plain_loss
from knowhow.evaluate.gold import answer_kind
from knowhow.loop.optim import Optim
from knowhow.loop.step import LoopSpec, train
from knowhow.maths.linear import Answer, loss_of
from knowhow.stages import diagnose
from knowhow.stages.common import Build
from knowhow.stages.phase import Phase
from knowhow.stages.training import optimizer
from knowhow.types import Measurement, Task

STEPS, LOOKS = 20, (5, 10, 20)
TOKENS = 1024
WARM = 3
"""Steps of linear warm-up."""


def constant(rows: Rows, task: Task) -> float:
    """Loss of the best answer that is the same for every row, in nats; infinite for texts."""
    if rows.labels is None or task.kind not in ("classify", "score", "regress"):
        return math.inf
    kind: Answer = answer_kind(task)  # type: ignore[assignment]
    labels = torch.from_numpy(rows.labels)
    if kind == "number":
        return float(loss_of(labels.double().mean().expand(len(labels), 1), labels, kind))
    shares_C = torch.nn.functional.one_hot(labels.long(), len(task.labels)).double().mean(0) if labels.ndim == 1 else labels.double().mean(0)
    logits_C = shares_C.clamp(1e-9, 1 - 1e-9).logit() if kind == "many" else shares_C.clamp(min=1e-9).log()
    return float(loss_of(logits_C.expand(len(labels), -1), labels, kind))


def pilot(phase: Phase, build: Build, lr: float, tokens: int = TOKENS) -> list[Measurement]:
    """At the rate (site `{lr:g}`), in nats per unit: the loss of an answer that looks at nothing (`pilot.start`: the untrained model's, or the best
    constant's where that is lower); the loss on fresh rows after 5, 10 and 20 steps (`pilot.5` …); the rise on general text at the end (`pilot.general`).
    Where training breaks down there is no `pilot.20`. Rows are the training part's."""
    size = min(phase.spec.batch_tokens, tokens)
    phase = replace(phase, spec=phase.spec.model_copy(update={"compile": False, "batch_tokens": size, "microbatch_tokens": size}))
    rows, loaded, spec, site = phase.rows("train"), phase.fresh(), phase.spec, f"{lr:g}"
    pad = loaded.tokenizer.pad_token_id
    objective = phase.objective(rows, loaded)
    fresh = diagnose.some(rows, pad, build.recipe.seed + 1, phase.language_model, spec.batch_tokens)[: diagnose.PULLS]
    general = diagnose.general_rows(build, loaded) if loaded.kind == "causal" else None

    def losses() -> tuple[float, float]:
        with at_rest(loaded.model):
            return plain_loss(loaded.model, objective, fresh), plain_loss(loaded.model, *general) if general is not None else math.nan

    start = losses()
    found = [measured(site, "pilot.start", min(start[0], constant(rows, build.task)), "nats", len(fresh))]
    optim, loop = Optim(loaded.model, optimizer(spec, lr)), LoopSpec(STEPS, clip=spec.clip, precision=spec.precision)
    try:
        for info in train(loaded.model, objective, phase.batches(rows, pad), optim, lambda step: min(1.0, step / WARM), loop):
            if info.step in LOOKS:
                now = losses()
                found.append(measured(site, f"pilot.{info.step}", now[0], "nats", len(fresh)))
        found.append(measured(site, "pilot.general", now[1] - start[1], "nats per token", 1))
    except FloatingPointError:
        pass
    return [each for each in found if math.isfinite(each.value)]
