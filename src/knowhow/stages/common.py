"""What stages share: the build at hand, its task and rows on disk, and a model's answers on rows.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import special

from knowhow.data.batch import Rows
from knowhow.data.chat import prompt_text
from knowhow.data.store import Examples
from knowhow.errors import UsageError
from knowhow.files import read_json, write_json, writing
from knowhow.model import channel, infer
from knowhow.model.generate import generate
from knowhow.model.load import Loaded
from knowhow.protocols import Observer, Progress
from knowhow.recipe import BaseSpec, Recipe
from knowhow.types import Example, Predictions, Task
from knowhow.workspace import Run

PARTS = ("train", "valid", "test")
METRICS = {"one": "macro_f1", "many": "macro_f1", "number": "spearman", "text": "exact_match"}

Watch = Callable[[Any, Loaded, Rows, int], Sequence[Observer]]
"""Phase, its model, its rows, its number of steps → who looks on."""


@dataclass(frozen=True, slots=True)
class Build:
    """One call of `knowhow build`: what every stage is given. `start_from`: a specialist to update, in place of the recipe's base; `watch`: who looks on
    while a phase trains, besides the usual observers."""

    recipe: Recipe
    run: Run
    root: Path
    progress: Progress
    start_from: Path | None = None
    watch: Watch | None = None

    @property
    def task(self) -> Task:
        return read_task(self.run.path("data", "task.json"))

    def rows(self, part: str) -> Examples:
        return Examples(self.run.path("data", f"{part}.arrow"))

    @property
    def base(self) -> str:
        """The parent: the base as the recipe names it, or its copy with a larger vocabulary."""
        extended = self.run.path("base", "model")
        return str(extended) if extended.is_dir() else str(self.start_from or source(self.recipe, self.root))


def source(recipe: Recipe, root: Path) -> str:
    """The base's source; a path in a recipe is relative to the recipe's folder."""
    named = recipe.base.model
    return str(root / named) if named.startswith((".", "~")) or (root / named).is_dir() else named


def write_task(path: Path, task: Task) -> None:
    write_json(path, {"kind": task.kind, "labels": list(task.labels), "many": task.many, "metric": task.metric, "instruction": task.instruction})


def read_task(path: Path) -> Task:
    raw = read_json(path)
    return Task(raw["kind"], tuple(raw["labels"]), raw["many"], raw["metric"], raw["instruction"])


def encode(loaded: Loaded, examples: Sequence[Example], task: Task, spec: BaseSpec) -> list[list[int]]:
    """Prompts as token ids, cut to the context."""
    texts = [prompt_text(example, task) for example in examples]
    return infer.encode(loaded.tokenizer, texts, context=context(loaded, spec), truncate=spec.truncate)


def context(loaded: Loaded, spec: BaseSpec) -> int:
    return min(loaded.context, spec.context or loaded.context)


def answers(
    loaded: Loaded, examples: Sequence[Example], task: Task, spec: BaseSpec, *, name: str, progress: Progress | None = None, precision: str = "float32"
) -> Predictions:
    """A model's answers, whatever the task asks for."""
    ids = tuple(example.id for example in examples)
    if loaded.head == "lm":
        return _written(loaded, examples, task, spec, name, progress)
    logits_NC = scorer(loaded)(encode(loaded, examples, task, spec), progress=progress, precision=precision)
    if loaded.ngrams is not None:
        logits_NC = logits_NC + loaded.ngrams.logits([prompt_text(example, task) for example in examples])
    if not task.classes:
        return Predictions(name, ids, values_N=logits_NC[:, 0])
    return Predictions(name, ids, probs_NC=special.expit(logits_NC) if task.many else special.softmax(logits_NC, axis=1), logits_NC=logits_NC)


def scorer(loaded: Loaded) -> Callable[..., np.ndarray]:
    """Rows of tokens → logits NC, by the model's head or by its likelihoods."""
    return partial(channel.class_logits if loaded.head == "channel" else infer.class_logits, loaded)


def _written(loaded: Loaded, examples: Sequence[Example], task: Task, spec: BaseSpec, name: str, progress: Progress | None) -> Predictions:
    """Generated answers, and how likely the model found the right ones."""
    ids = tuple(example.id for example in examples)
    prompts = [prompt_text(example, task) for example in examples]
    targets = [next((c.text for c in example.completions if c.role in ("target", "chosen")), "") for example in examples]
    longest = max((len(row) for row in infer.pieces(loaded.tokenizer, targets)), default=1)
    room = context(loaded, spec)
    texts = generate(loaded, prompts, max_new_tokens=min(2 * longest + 8, room // 2), progress=progress)
    heads = infer.encode(loaded.tokenizer, prompts, context=room)
    joined = [(head + tail)[:room] for head, tail in zip(heads, infer.pieces(loaded.tokenizer, targets))]
    nll_N, _ = infer.lm_nll(loaded, joined, starts=[len(head) for head in heads])
    return Predictions(name, ids, texts=tuple(text.strip() for text in texts), nll_N=nll_N)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Arrays in safetensors, ids and texts in JSON beside it."""
    fields = {"probs_NC": predictions.probs_NC, "values_N": predictions.values_N, "nll_N": predictions.nll_N, "logits_NC": predictions.logits_NC}
    fields["thresholds_C"] = predictions.thresholds_C
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in fields.items() if value is not None}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path.with_suffix(".safetensors"))
    write_json(path.with_suffix(".json"), {"model": predictions.model, "ids": predictions.ids, "texts": predictions.texts}, indent=None)


def load_predictions(path: Path) -> Predictions:
    arrays, words = load_file(path.with_suffix(".safetensors")), read_json(path.with_suffix(".json"))
    texts = None if words["texts"] is None else tuple(words["texts"])
    return replace(Predictions(words["model"], tuple(words["ids"]), texts=texts), **arrays)


def metric_of(recipe: Recipe, kind: str) -> str:
    """The deciding metric: the recipe's, else the custom of the field for this kind of answer."""
    return recipe.task.metric or METRICS[kind]


def require_rows(examples: Sequence[Any], part: str) -> None:
    if not len(examples):
        raise UsageError(f"no rows in {part}", fix=f"give data.{part}, or a larger share in data.split")
