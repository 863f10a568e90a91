"""What a phase is validated by: the task's metric on the validation rows, or the objective's own loss there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from knowhow.adapt.lm import NextToken
from knowhow.adapt.rows import reweighted
from knowhow.data.batch import collate
from knowhow.evaluate.gold import answer_kind, gold_of
from knowhow.evaluate.labels import best_thresholds
from knowhow.evaluate.scorers import named
from knowhow.loop.step import uses_bf16
from knowhow.model import infer, load
from knowhow.stages.common import answers
from knowhow.stages.phase import Phase


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
