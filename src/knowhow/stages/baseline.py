"""Stage baseline: what the task is worth without training: constants, classical models, nearest neighbours, the untouched base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scipy import special

from knowhow.data.chat import prompt_text
from knowhow.evaluate import baselines
from knowhow.evaluate.gold import gold_of
from knowhow.evaluate.labels import best_thresholds
from knowhow.model import infer, load
from knowhow.stages.common import Build, answers, save_predictions
from knowhow.types import Example, Predictions, Task

BASE_CHARACTERS = 8_000_000
"""The untouched base reads at most so much test text."""


def work(build: Build, folder: Path) -> None:
    """Leaves one file of predictions on test (and valid) per baseline."""
    task, recipe = build.task, build.recipe
    train, valid, test = (build.rows(part) for part in ("train", "valid", "test"))
    asked = recipe.evaluate.baselines
    names = None if asked is None else [name for name in asked if name not in ("base", "retrieval")]
    fitted = baselines.fit_classical(
        baselines.rows_of(train, task), baselines.rows_of(valid, task), task, seed=recipe.seed, names=names, progress=build.progress
    )
    for name, model in fitted.items():
        chosen, answer = baselines.answers(name, model, valid, task), baselines.answers(name, model, test, task)
        if task.many:
            gold = gold_of(valid, task)
            answer = replace(answer, thresholds_C=best_thresholds(gold.values, chosen.probs_NC, gold.weights_N))
        save_predictions(folder / "valid" / name, chosen)
        save_predictions(folder / "test" / name, answer)
    if asked is None or "base" in asked:
        predictions = base_answers(build, test)
        if predictions is not None:
            save_predictions(folder / "test" / "base", predictions)


def base_answers(build: Build, rows: Sequence[Example]) -> Predictions | None:
    """The untouched base, zero- or few-shot, as a language model; None where it has no way to answer (encoders, numbers, sets of labels)
    or where reading every row would take longer than the build."""
    task, spec = build.task, build.recipe.base
    loaded = load.load(build.base, head="body", seed=build.recipe.seed)
    able = loaded.kind == "causal" and not task.many and (task.classes or task.kind == "generate")
    if not able or sum(len(prompt_text(example, task)) for example in rows) > BASE_CHARACTERS:
        build.run.log(stage="baseline", event="base not asked", reason="too many rows" if able else "it has no way to answer")
        return None
    if task.kind == "generate":
        return answers(loaded, rows, task, spec, name="base", progress=build.progress)
    return _labelled(build, loaded, rows, task)


def _labelled(build: Build, loaded: load.Loaded, rows: Sequence[Example], task: Task) -> Predictions:
    """Probabilities from log p(label | prompt) by the language-model head, after `few_shot` training examples."""
    shots = itertools.islice(build.rows("train"), build.recipe.evaluate.few_shot)
    shown = "".join(f"{prompt_text(example, task)}\n{example.label}\n\n" for example in shots)
    prompts = [f"{shown}{prompt_text(example, task)}\n" for example in rows]
    scores_NC = infer.label_logprobs(loaded, prompts, task.labels, progress=build.progress)
    return Predictions("base", tuple(example.id for example in rows), probs_NC=special.softmax(scores_NC, axis=1))
