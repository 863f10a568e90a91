"""Every metric that applies × every slice, with cluster-bootstrap intervals and paired differences to each baseline.

One set of draws per slice serves all models and metrics, which is what makes the differences paired and the whole affordable.
Shape letters: N rows, C classes, D draws, S statistics.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from knowhow.evaluate.gold import Gold, answer_kind, gold_of, input_key, numbered, take, take_predictions
from knowhow.evaluate.labels import correct_rows, of_class
from knowhow.evaluate.scorers import applicable, bundles
from knowhow.maths.statistics import Statistic, mcnemar, percentile, replicates
from knowhow.types import EvalResult, Example, Interval, Predictions, Task

ALL, DEDUPLICATED, NOVEL = "all", "deduplicated", "novel"
QUARTERS = 4
MAX_NAMED_SLICES = 40
"""Of the rows' own slice names, the largest so many are scored."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure: bootstrap draws and their seed, confidence of the intervals, metrics (None: all that fit), the task's name in the results."""

    draws: int = 1000
    seed: int = 0
    confidence: float = 0.95
    metrics: tuple[str, ...] | None = None
    task: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one slice (weight above 0) and everything that is measured on them."""

    name: str
    gold: Any
    weights_N: np.ndarray
    clusters_N: np.ndarray
    model: Predictions
    baselines: Mapping[str, Predictions]


def evaluate(
    predictions: Predictions,
    examples: Sequence[Example],
    task: Task,
    *,
    baselines: Mapping[str, Predictions] | None = None,
    slices: Mapping[str, np.ndarray] | None = None,
    clusters_N: np.ndarray | None = None,
    weights_N: np.ndarray | None = None,
    options: Options | None = None,
) -> list[EvalResult]:
    """Score one model on N examples.

    `slices`: bool N (a mask on the rows' weights) or float N (weights of their own, 0 = not in it), added to `all`, `deduplicated`, the
    rows' own slice names and one slice `class:NAME` (precision, recall, f1) per label; give `standard_slices(…)` to have `novel` too.
    `clusters_N`: the independent units (left out: group, else distinct input). `n` of a result counts them, and `cost` holds the number
    of `rows` and, for accuracy and exact match, `mcnemar_p:BASELINE`. A metric that is undefined on a slice has no result there."""
    options = options or Options()
    gold = gold_of(examples, task)
    gold = replace(gold, weights_N=gold.weights_N if weights_N is None else np.asarray(weights_N, dtype=np.float64))
    gold = replace(gold, clusters_N=gold.clusters_N if clusters_N is None else np.asarray(clusters_N))
    model = _answers(predictions, examples, task)
    others = {name: _answers(answers, examples, task) for name, answers in (baselines or {}).items()}
    results: list[EvalResult] = []
    for name, weighting_N in {**standard_slices(examples, gold.clusters_N, None), **(slices or {})}.items():
        part = _part(name, weighting_N, gold, model, others)
        if part is not None:
            metrics = applicable(task, part.model, wanted=options.metrics)
            names = tuple(metric.name for metric in metrics)
            measured = {key: bundles(applicable(task, answers, wanted=names), part.gold, answers) for key, answers in part.baselines.items()}
            results += _score(part, names, bundles(metrics, part.gold, part.model), measured, options)
    if task.labels:
        results += _per_class(gold, model, others, task, options)
    return results


def standard_slices(examples: Sequence[Example], clusters_N: np.ndarray, train_clusters: Sequence[Any] | np.ndarray | None) -> dict[str, np.ndarray]:
    """Slices every evaluation should report, as weights (float N) or masks (bool N).

    `all`: every row · `deduplicated`: each distinct input with each of its labels once, so that copies do not count · `novel`: the same,
    only inputs whose duplicate cluster is not among `train_clusters` (None: not known, left out) · the rows' own slice names."""
    once_N = _first_of([(input_key(example), _plain_label(example)) for example in examples])
    slices: dict[str, np.ndarray] = {ALL: np.ones(len(examples), dtype=bool), DEDUPLICATED: once_N.astype(np.float64)}
    if train_clusters is not None:
        slices[NOVEL] = (once_N & ~np.isin(clusters_N, np.asarray(list(train_clusters)))).astype(np.float64)
    named = Counter(example.slice for example in examples if example.slice is not None)
    for name, _ in sorted(named.most_common(MAX_NAMED_SLICES)):
        key = f"slice:{name}" if name in (ALL, DEDUPLICATED, NOVEL) or name.startswith("class:") else name
        slices[key] = np.array([example.slice == name for example in examples])
    return slices


def time_slices(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Rows by when they are from: quarters of the rows that carry a time, earliest first, equal times together; none where fewer than half do, or where
    there are no two times to tell apart. What falls from the first to the last is drift."""
    times = [example.time for example in examples]
    known = sorted(time for time in times if time is not None)
    if 2 * len(known) < len(times) or len(set(known)) < 2:
        return {}
    edges = list(dict.fromkeys(known[len(known) * quarter // QUARTERS] for quarter in range(QUARTERS)))
    place_N = np.array([-1 if time is None else bisect_right(edges, time) - 1 for time in times])
    return {f"from {_day(edge)}": place_N == at for at, edge in enumerate(edges) if (place_N == at).any()}


def _day(time: float) -> str:
    """A time in seconds since 1970 as a day; any other number as it is."""
    return datetime.fromtimestamp(time, UTC).date().isoformat() if 1e8 <= time < 1e11 else f"{time:g}"


def as_probabilities(predictions: Predictions, task: Task) -> Predictions:
    """Answers given as text, read as labels: probability 1 for the label(s) named (case and white space aside), all 0 where none is.

    Many labels are parted by commas, semicolons or line ends. Predictions that have probabilities, or a task without labels, come back as they are."""
    if predictions.probs_NC is not None or predictions.texts is None or not task.labels:
        return predictions
    index = {_folded(label): place for place, label in enumerate(task.labels)}
    probs_NC = np.zeros((len(predictions.texts), len(task.labels)))
    for row, text in enumerate(predictions.texts):
        parts = text.replace(";", ",").replace("\n", ",").split(",") if task.many else [text]
        for part in parts:
            if _folded(part) in index:
                probs_NC[row, index[_folded(part)]] = 1.0
    return replace(predictions, probs_NC=probs_NC)


def _answers(predictions: Predictions, examples: Sequence[Example], task: Task) -> Predictions:
    """The model's answers in the examples' order, as probabilities where the task has labels."""
    ids = tuple(example.id for example in examples)
    if predictions.ids != ids:
        place = {id_: row for row, id_ in enumerate(predictions.ids)}
        missing = [id_ for id_ in ids if id_ not in place]
        assert not missing, f"{predictions.model} has no answer for {len(missing)} of {len(ids)} rows, first {missing[0]}"
        predictions = take_predictions(predictions, np.array([place[id_] for id_ in ids], dtype=np.int64))
    return as_probabilities(predictions, task)


def _part(name: str, weighting_N: np.ndarray, gold: Gold, model: Predictions, others: Mapping[str, Predictions]) -> _Part | None:
    weights_N = np.where(weighting_N, gold.weights_N, 0.0) if weighting_N.dtype == bool else weighting_N.astype(np.float64)
    rows_N = np.flatnonzero(weights_N > 0)
    if not len(rows_N):
        return None
    baselines = {key: take_predictions(answers, rows_N) for key, answers in others.items()}
    return _Part(name, take(gold.values, rows_N), weights_N[rows_N], gold.clusters_N[rows_N], take_predictions(model, rows_N), baselines)


def _per_class(gold: Gold, model: Predictions, others: Mapping[str, Predictions], task: Task, options: Options) -> list[EvalResult]:
    part = _part(ALL, np.ones(len(gold.weights_N), dtype=bool), gold, model, others)
    if part is None or model.probs_NC is None:
        return []
    names = ("precision", "recall", "f1")
    results: list[EvalResult] = []
    for which, label in enumerate(task.labels):
        member_N = part.gold == which if answer_kind(task) == "one" else part.gold[:, which] == 1
        if not member_N.any():
            continue
        measured = {key: [(names, of_class(which, part.gold, answers))] for key, answers in part.baselines.items() if answers.probs_NC is not None}
        scored = _score(replace(part, name=f"class:{label}"), names, [(names, of_class(which, part.gold, model))], measured, options)
        cost = {"rows": float(part.weights_N[member_N].sum())}
        results += [replace(result, n=len(np.unique(part.clusters_N[member_N])), cost=cost) for result in scored]
    return results


Bundles = list[tuple[tuple[str, ...], Statistic]]


def _score(part: _Part, order: Sequence[str], own: Bundles, measured: Mapping[str, Bundles], options: Options) -> list[EvalResult]:
    """The model's metrics, in `order`, and what each baseline has of them on one slice, all from one set of draws."""
    everything = [(key, names, statistic) for key, bundle in [(None, own), *measured.items()] for names, statistic in bundle]
    if not own:
        return []
    place = {(key, name): row for row, (key, name) in enumerate((key, name) for key, names, _ in everything for name in names)}
    statistics = [statistic for _, _, statistic in everything]
    values_S = np.vstack([statistic(part.weights_N[None, :]) for statistic in statistics])[:, 0]
    values_SD = replicates(statistics, part.clusters_N, part.weights_N, draws=options.draws, seed=options.seed)
    units = len(np.unique(part.clusters_N))

    def interval(row: int, minus: int | None = None) -> Interval:
        value, values_D = (values_S[row], values_SD[row]) if minus is None else (values_S[row] - values_S[minus], values_SD[row] - values_SD[minus])
        return percentile(float(value), values_D, units, options.confidence)

    results = []
    for name in order:
        row = place[None, name]
        pairs = {key: place[key, name] for key in measured if (key, name) in place and np.isfinite(values_S[place[key, name]])}
        if np.isfinite(values_S[row]):
            results.append(_result(part, name, interval(row), {key: interval(row, other) for key, other in pairs.items()}, options))
    return results


def _result(part: _Part, metric: str, own: Interval, paired: Mapping[str, Interval], options: Options) -> EvalResult:
    cost = {"rows": float(part.weights_N.sum())}
    if metric in ("accuracy", "exact_match"):
        right_N = correct_rows(part.gold, part.model)
        for name in paired:
            other_N = correct_rows(part.gold, part.baselines[name])
            cost[f"mcnemar_p:{name}"] = mcnemar(right_N, other_N, part.weights_N, part.clusters_N, seed=options.seed)
    return EvalResult(options.task, metric, own.value, own.low, own.high, own.n, part.name, part.model.model, paired, cost)


def _first_of(keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """bool N: is this the first row with its key?"""
    numbers_N = numbered(["\0".join(key) for key in keys])
    first_N = np.zeros(len(keys), dtype=bool)
    first_N[np.unique(numbers_N, return_index=True)[1]] = True
    return first_N


def _plain_label(example: Example) -> str:
    label = example.label
    return "\1".join(sorted(label)) if isinstance(label, tuple) else repr(label)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
