"""Stage readout: what answers are read off. Of the candidates that a recipe names, validation picks one.

`tuned`: the model that the last phase left · `frozen`: the untouched base under a linear head, BERT's read by the mean over its tokens · `+ngrams`: a
linear model of n-grams beside either, fitted together with the frozen head, or on its own and weighed against the tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse, special

from knowhow.adapt import readout
from knowhow.adapt.rows import class_weights, reweighted
from knowhow.data.chat import prompt_text
from knowhow.evaluate.gold import answer_kind, gold_of
from knowhow.evaluate.labels import best_thresholds
from knowhow.evaluate.scorers import named
from knowhow.files import read_json, write_json
from knowhow.model import infer, load
from knowhow.model.ngrams import Block, NGrams, blocks, features
from knowhow.model.pooling import mean_pooled
from knowhow.stages.common import Build, encode
from knowhow.types import Predictions

SHORT = 400
"""Characters of a text, on average, up to which its words' letters are looked at too."""
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""How much a tuned model's logits and those of n-grams weigh against each other, once both are as spread out."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A classifier, its logits NC on validation, and what was chosen in making it."""

    loaded: load.Loaded
    logits_NC: np.ndarray
    chosen: dict[str, Any]


def work(build: Build, folder: Path) -> None:
    """Leaves choice.json, and model/ where it is not the last phase's."""
    names = build.recipe.readout.candidates
    if names == ["tuned"]:
        return write_json(folder / "choice.json", {"chosen": "tuned", "tried": []})
    desk = _Desk(build)
    tried: list[dict[str, Any]] = []
    best: tuple[float, str, load.Loaded] | None = None
    for name, made in desk.candidates(names):
        value = desk.score(made.logits_NC)
        tried.append({"name": name, "score": value, **made.chosen})
        if best is None or value > best[0]:
            best = (value, name, made.loaded)
    assert best is not None
    if best[1] != "tuned":
        load.save(best[2], folder / "model")
    write_json(folder / "choice.json", {"chosen": best[1], "metric": build.task.metric, "tried": tried})


def chosen(build: Build) -> str:
    """The candidate that validation picked."""
    return str(read_json(build.run.path("readout", "choice.json"))["chosen"])


def model_folder(build: Build) -> Path:
    """The specialist's model: what the readout left, else the last phase's."""
    picked = build.run.path("readout", "model")
    return picked if picked.is_dir() else trained_folder(build)


def trained_folder(build: Build) -> Path:
    """The last phase's model."""
    return build.run.path("adapt", f"phase-{len(build.recipe.adapt) - 1}", "model")


@dataclass
class _Desk:
    """Rows, states and n-grams, each made once."""

    build: Build

    def candidates(self, names: Sequence[str]) -> Iterator[tuple[str, Candidate]]:
        made = {"tuned": self.tuned, "tuned+ngrams": self.tuned_and_ngrams, "frozen": self.frozen, "frozen+ngrams": self.frozen_and_ngrams}
        for at, name in enumerate(names):
            self.build.progress(f"readout {name}", at, len(names))
            yield name, made[name]()
        self.build.progress("readout", len(names), len(names))

    def score(self, logits_NC: np.ndarray) -> float:
        """The task's metric on validation, larger is better; many labels at the thresholds that suit best."""
        task = self.build.task
        metric, (gold, weights_N) = named(task.metric, answer_kind(task)), self.sides["valid"]
        given = Predictions("", (), probs_NC=special.expit(logits_NC) if task.many else special.softmax(logits_NC, axis=1), logits_NC=logits_NC)
        if task.many:
            given = replace(given, thresholds_C=best_thresholds(gold, given.probs_NC, weights_N))
        value = float(metric(gold, given, weights_N))
        return value if metric.higher_is_better else -value

    @cached_property
    def sides(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Right answers and weights of rows, copies counting as in the last phase."""
        golds = {part: gold_of(self.build.rows(part), self.build.task) for part in ("train", "valid")}
        return {part: (gold.values, reweighted(gold.weights_N, self.build.recipe.adapt[-1].weights)) for part, gold in golds.items()}

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        return {part: [prompt_text(row, self.build.task) for row in self.build.rows(part)] for part in ("train", "valid")}

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        texts = self.texts["train"]
        short = sum(map(len, texts)) <= SHORT * len(texts)
        return blocks(texts, ("word", "char_wb") if short else ("word",))

    @cached_property
    def counts(self) -> dict[str, sparse.csr_matrix]:
        return {part: features(self.blocks, texts) for part, texts in self.texts.items()}

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """What the untouched base's head reads, ND."""
        build, loaded = self.build, self._base()
        rows = {part: encode(loaded, build.rows(part), build.task, build.recipe.base) for part in ("train", "valid")}
        return {part: readout.states(loaded, tokens, build.progress) for part, tokens in rows.items()}

    def _base(self) -> load.Loaded:
        recipe, task = self.build.recipe, self.build.task
        revision = recipe.base.revision
        loaded = load.load(self.build.base, head="classifier", labels=task.labels, many=task.many, revision=revision, seed=recipe.seed)
        return mean_pooled(loaded) if loaded.model.config.model_type == "bert" or recipe.adapt[-1].pooling == "mean" else loaded

    def tuned(self) -> Candidate:
        return self.last

    @cached_property
    def last(self) -> Candidate:
        """The model that the last phase left."""
        build, task = self.build, self.build.task
        loaded = load.load(str(trained_folder(build)), head="classifier", labels=task.labels, many=task.many)
        rows = encode(loaded, build.rows("valid"), task, build.recipe.base)
        return Candidate(loaded, infer.class_logits(loaded, rows, progress=build.progress), {})

    def tuned_and_ngrams(self) -> Candidate:
        tuned = self.last
        beside, chosen = self._strongest(lambda part: self.counts[part], bias=True)
        ours_NC, theirs_NC = tuned.logits_NC, beside(self.counts["valid"])
        even = float(ours_NC.std() / theirs_NC.std()) or 1.0
        share = max(SHARES, key=lambda share: self.score(ours_NC + share * even * theirs_NC))
        weight_FC, bias_C = share * even * beside.weight_FC, share * even * beside.bias_C
        return self._joined(tuned, readout.Linear(weight_FC, bias_C), chosen | {"share": share})

    def frozen(self) -> Candidate:
        loaded = self._base()
        biased = readout.head_of(loaded).bias is not None
        scaled = readout.scale(self.states["train"], centred=biased)
        linear, chosen = self._strongest(lambda part: scaled(self.states[part]), bias=biased)
        head = scaled.undone(linear)
        readout.set_head(loaded, head)
        return Candidate(loaded, head(self.states["valid"]), chosen)

    def frozen_and_ngrams(self) -> Candidate:
        """Fitted together; the bias stands with the n-grams."""
        loaded, scaled = self._base(), readout.scale(self.states["train"], centred=True)
        linear, chosen = self._strongest(lambda part: sparse.hstack([sparse.csr_matrix(scaled(self.states[part])), self.counts[part]]), bias=True)
        width = self.states["train"].shape[1]
        head = scaled.undone(readout.Linear(linear.weight_FC[:width], linear.bias_C))
        alone = readout.Linear(head.weight_FC, np.zeros_like(head.bias_C))
        readout.set_head(loaded, alone)
        rest = readout.Linear(linear.weight_FC[width:], head.bias_C)
        return self._joined(Candidate(loaded, alone(self.states["valid"]), chosen), rest, chosen)

    def _joined(self, model: Candidate, beside: readout.Linear, chosen: dict[str, Any]) -> Candidate:
        ngrams = NGrams(self.blocks, beside.weight_FC.astype(np.float16), beside.bias_C.astype(np.float32), self.build.task.labels)
        logits_NC = model.logits_NC + ngrams.logits(self.texts["valid"])
        return Candidate(replace(model.loaded, ngrams=ngrams), logits_NC, chosen)

    def _strongest(self, given: Callable[[str], Any], *, bias: bool) -> tuple[readout.Linear, dict[str, Any]]:
        """The strength that validation likes best; the first wins ties."""
        (gold, weights_N), classes = self.sides["train"], len(self.build.task.labels)
        share_C = class_weights(gold, weights_N, classes, self.build.recipe.adapt[-1].class_weights) if gold.ndim == 1 else None
        weights_N = weights_N if share_C is None else weights_N * share_C.numpy()[gold]
        train, valid = given("train"), given("valid")
        fitted = [(strength, readout.fit(train, gold, weights_N, classes, strength=strength, bias=bias)) for strength in readout.STRENGTHS]
        strength, best = max(fitted, key=lambda one: self.score(one[1](valid)))
        return best, {"strength": strength}
