"""One phase of adaptation: the model that it starts from, its rows, its batches, its objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowhow.adapt.channel import Channel
from knowhow.adapt.classify import Classify
from knowhow.adapt.lm import NextToken, decoder
from knowhow.adapt.rows import class_rows, class_weights, label_onsets, lm_rows, sft_rows
from knowhow.data.batch import Rows, TokenBudget
from knowhow.data.chat import prompt_text
from knowhow.evaluate.gold import answer_kind
from knowhow.files import read_json
from knowhow.model import adapters, channel, infer, load
from knowhow.model.pooling import mean_pooled
from knowhow.protocols import Objective, Observer
from knowhow.recipe import PLAIN_RANK, PhaseSpec
from knowhow.stages.common import Build, context, encode
from knowhow.stages.settled import settled, settled_ranks
from knowhow.stages.teacher import taught
from knowhow.types import Example


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase at work: where it writes, what it asks, the folder of the model it starts from."""

    build: Build
    spec: PhaseSpec
    number: int
    folder: Path
    parent: str

    @property
    def title(self) -> str:
        return f"phase {self.number + 1} of {len(self.build.recipe.adapt)}, {self.spec.objective}"

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
        if self.spec.pooling == "mean":
            loaded = mean_pooled(loaded)
        if self.spec.method == "lora":
            lora, ranks = self.spec.lora, settled_ranks(self.build, self.spec)
            rank = PLAIN_RANK if lora.rank == "auto" else lora.rank
            words = self._new_rows(loaded)
            loaded = adapters.add_lora(loaded, rank=rank, alpha=lora.alpha, targets=lora.targets, ranks=ranks, new_rows=words, seed=recipe.seed)
        return loaded

    def rows(self, part: str) -> Rows:
        """The examples of one part as this phase's objective wants them."""
        build, spec, task = self.build, self.spec, self.build.task
        examples = build.rows(part)
        loaded = self.fresh() if spec.objective == "channel" else load.load(self.parent, head="body", revision=self._revision, seed=build.recipe.seed)
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
        weights = class_weights(rows.labels, rows.weights, len(task.labels), spec.class_weights) if kind == "one" else None
        whole = decoder(loaded.model) if spec.replication else loaded.model
        forward = torch.compile(whole, dynamic=True) if spec.compile else None
        return Classify("classify", kind, loaded.kind == "causal", spec.label_smoothing, weights, forward, spec.replication)

    def watchers(self, loaded: load.Loaded, rows: Rows, steps: int, here: Path) -> list[Observer]:
        """Who looks besides the usual observers; of several learning rates the first is watched."""
        return list(self.build.watch(self, loaded, rows, steps)) if self.build.watch is not None and here.name == "lr-0" else []

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
    return [Phase(build, settled(build, spec), number, folders[number], parents[number]) for number, spec in enumerate(build.recipe.adapt)]
