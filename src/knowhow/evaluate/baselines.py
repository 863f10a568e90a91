"""What the task is worth without a transformer: constants, TF-IDF + a linear model, gradient boosting over n-grams, nearest neighbour.

Nobody should ship a specialist that loses to these, so they run in every build, are tuned on the same validation rows and get the same weights.
Shape letters: N rows, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from knowhow.errors import UsageError
from knowhow.evaluate import boosting, linear, neighbours
from knowhow.evaluate.gold import AnswerKind, answer_kind, gold_of, text_of
from knowhow.evaluate.labels import best_thresholds
from knowhow.evaluate.ngrams import SMALL, Grams, Limits, fit_grams
from knowhow.evaluate.scorers import primary
from knowhow.maths.statistics import weighted_mean
from knowhow.protocols import Progress
from knowhow.types import Example, Predictions, Task

__all__ = ["NAMES", "SMALL", "Fitted", "Limits", "Rows", "answers", "fit_classical", "rows_of"]

Fitted = Callable[[Sequence[str]], Any]
"""texts → probabilities NC (labels), numbers N (regress) or a list of N texts (generate)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts and their right answers (see `gold.Gold`); `weights_N` counts copies."""

    texts: tuple[str, ...]
    gold: Any
    weights_N: np.ndarray


NAMES: Mapping[AnswerKind, tuple[str, ...]] = {
    "one": ("majority", "retrieval", "tfidf-lr", "lightgbm"),
    "many": ("majority", "all-positive", "presence-only", "retrieval", "tfidf-lr", "lightgbm"),
    "number": ("mean", "retrieval", "tfidf-ridge", "lightgbm"),
    "text": ("constant", "copy-nearest"),
}
"""The classical baselines of each kind of answer."""

ASKED_AS = {"majority": ("majority", "mean", "constant"), "tfidf-lr": ("tfidf-lr", "tfidf-ridge"), "retrieval": ("retrieval", "copy-nearest")}
"""A recipe's name for a baseline → what it is called for the kind of answer at hand."""


def fit_classical(
    train: Rows,
    valid: Rows,
    task: Task,
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Fitted]:
    """Fit the classical baselines that this kind of answer has, or those of `names` (a recipe's words).

    Strength and rounds are chosen on `valid` by the task's own metric, rows weighing the root of their copies. Deterministic for a seed
    and a number of threads. Raises UsageError without training rows."""
    if not train.texts:
        raise UsageError("no training rows", allowed="at least one training row for the baselines")
    report, limits = progress or (lambda what, done, total: None), limits or Limits()
    kind = answer_kind(task)
    wanted = NAMES[kind] if names is None else [name for asked in names for name in _called(asked, kind)]
    grams: tuple[Grams, sparse.csr_matrix] | None = None
    fitted: dict[str, Fitted] = {}
    for done, name in enumerate(wanted):
        report(f"baseline {name}", done, len(wanted))
        if name in ("tfidf-lr", "tfidf-ridge", "lightgbm", "presence-only", "retrieval") and grams is None:
            grams = fit_grams(train.texts)
        fitted[name] = _fit(name, task, (train, valid), grams, limits, seed, report)
    report("baselines", len(wanted), len(wanted))
    return fitted


def fitting(asked: Sequence[str], kind: AnswerKind) -> None:
    """Raises UsageError for a recipe's baseline that this kind of answer does not have."""
    known = [name for name in ("majority", "tfidf-lr", "lightgbm", "retrieval", "all-positive", "presence-only") if _called(name, kind)]
    for name in asked:
        if name != "base" and name not in known:
            raise UsageError(f"the baseline {name}, which does not fit this task", allowed=", ".join([*known, "base"]), where="evaluate.baselines")


def _called(asked: str, kind: AnswerKind) -> list[str]:
    """What a recipe's baseline is called for this kind of answer; nothing where it does not fit."""
    return [name for name in ASKED_AS.get(asked, (asked,)) if name in NAMES[kind]]


def rows_of(examples: Sequence[Example], task: Task) -> Rows:
    """Examples as the classical models see them."""
    gold = gold_of(examples, task)
    return Rows(tuple(text_of(example) for example in examples), gold.values, gold.weights_N)


def answers(name: str, fitted: Fitted, examples: Sequence[Example], task: Task) -> Predictions:
    """A fitted baseline's answers on examples, as any model's."""
    given = fitted([text_of(example) for example in examples])
    ids = tuple(example.id for example in examples)
    kind = answer_kind(task)
    if kind == "text":
        return Predictions(name, ids, texts=tuple(given))
    return Predictions(name, ids, values_N=given) if kind == "number" else Predictions(name, ids, probs_NC=given)


def _fit(
    name: str,
    task: Task,
    rows: tuple[Rows, Rows],
    counted: tuple[Grams, sparse.csr_matrix] | None,
    limits: Limits,
    seed: int,
    report: Progress,
) -> Fitted:
    kind = answer_kind(task)
    train, valid = rows
    if name in ("majority", "all-positive", "mean"):
        answer = np.ones(len(task.labels)) if name == "all-positive" else _mean_answer(train, kind, len(task.labels))
        return lambda texts: np.repeat(answer[None], len(texts), axis=0)
    if name == "constant":
        text = _commonest(train)
        return lambda texts: [text] * len(texts)
    if name == "copy-nearest":
        return _copy_nearest(train)
    assert counted is not None
    grams, train_NF = counted
    columns_F = grams.words() if name == "presence-only" else np.arange(train_NF.shape[1])
    sides = [linear.Side(x[:, columns_F], r.gold, r.weights_N) for x, r in ((train_NF, train), (grams.counts(valid.texts), valid))]
    loss = _loss(task)
    if name == "retrieval":
        model = neighbours.fit(sides[0], sides[1], kind, len(task.labels), loss=loss)
    elif name == "lightgbm":
        model = boosting.fit(sides[0], sides[1], kind, len(task.labels), limits, loss=loss, seed=seed, progress=report)
    else:
        model = linear.fit(sides[0], sides[1], kind, len(task.labels), limits, loss=loss, presence=name == "presence-only")
    return lambda texts: model(grams.counts(texts)[:, columns_F])


def _loss(task: Task) -> linear.Loss:
    """What the task's own metric says on validation, as a loss; where it is undefined, the worst. Many labels: at the thresholds that suit best."""
    metric = primary(task)

    def loss(given: np.ndarray, side: linear.Side) -> float:
        weights_N = np.sqrt(side.weights_N)
        answered = Predictions("", (), values_N=given) if answer_kind(task) == "number" else Predictions("", (), probs_NC=given)
        if task.many:
            answered = replace(answered, thresholds_C=best_thresholds(side.gold, given, weights_N))
        value = metric(side.gold, answered, weights_N)
        return np.inf if np.isnan(value) else (-value if metric.higher_is_better else value)

    return loss


def _mean_answer(train: Rows, kind: AnswerKind, classes: int) -> np.ndarray:
    values = np.eye(classes)[train.gold] if kind == "one" else np.asarray(train.gold, dtype=np.float64)
    columns = values if values.ndim == 2 else values[:, None]
    means = np.array([weighted_mean(column)(train.weights_N[None, :])[0] for column in columns.T])
    return means if values.ndim == 2 else means[0]


def _commonest(train: Rows) -> str:
    mass: dict[str, float] = {}
    for text, weight in zip(train.gold, train.weights_N, strict=True):
        mass[text] = mass.get(text, 0.0) + float(weight)
    return min(mass, key=lambda text: (-mass[text], text))


def _copy_nearest(train: Rows) -> Fitted:
    """The answer of the training prompt with the largest TF-IDF cosine (words and word pairs, rare ones too); the first one wins ties."""
    grams, train_NF = fit_grams(train.texts, longest=2, rare=True)
    weighting = linear.tfidf(train_NF)
    known_NF = weighting(train_NF)

    def copy(texts: Sequence[str]) -> list[str]:
        near: list[str] = []
        for start in range(0, len(texts), 256):
            similarity = (weighting(grams.counts(texts[start : start + 256])) @ known_NF.T).toarray()
            near += [train.gold[best] for best in similarity.argmax(1)]
        return near

    return copy
