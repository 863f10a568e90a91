"""Every metric by name. `SCORERS["macro_f1"](gold, predictions, weights_N)` is a float; `.prepare` gives it for many weightings at once.

Gold by kind of answer: one label, int N (index in task.labels) · many labels, NC 0/1 · a number, float N · a text, list of N.
Weights count identical rows: weight 3 is three copies (but for `ece_debiased`, where copies are not new evidence). Shares run from 0 to 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knowhow.errors import UsageError
from knowhow.evaluate import labels, numbers, ranking, texts
from knowhow.evaluate.gold import AnswerKind, Gold, answer_kind, gold_of
from knowhow.maths.statistics import Statistic
from knowhow.protocols import Scorer
from knowhow.types import Predictions, Task

__all__ = ["Gold", "Metric", "SCORERS", "applicable", "bundles", "gold_of", "primary"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A Scorer. `answers`: the kinds it measures; `needs`: what of Predictions it reads; `listed`: kinds for which it is in the default set;
    `curve`: set when it is made from a ranking, so that several such metrics can share one sort.

    `prepare(gold, predictions)` does the work that does not depend on weights and returns the statistic weights DN → D."""

    name: str
    higher_is_better: bool
    answers: frozenset[AnswerKind]
    needs: str
    prepare: Callable[[Any, Predictions], Statistic]
    listed: frozenset[AnswerKind]
    curve: ranking.Curve | None = None

    def __call__(self, gold: Any, predictions: Predictions, weights_N: np.ndarray) -> float:
        """NaN where the metric is undefined on these rows (say, AUC with one class)."""
        return float(self.prepare(gold, predictions)(np.asarray(weights_N, dtype=np.float64)[None, :])[0])


def _metric(name: str, needs: str, answers: str, prepare: Callable[[Any, Predictions], Statistic], *, better: str = "higher", unlisted: str = "") -> Metric:
    kinds: frozenset[Any] = frozenset(answers.split())
    return Metric(name, better == "higher", kinds, needs, prepare, kinds - frozenset(unlisted.split()))


def _ranking(name: str, curve: ranking.Curve) -> Metric:
    kinds: frozenset[Any] = frozenset(("one", "many"))
    return Metric(name, True, kinds, "probs", ranking.macro_over_classes(curve), kinds, curve)


_METRICS = (
    _metric("accuracy", "probs", "one", labels.mean_of(labels.correct_rows)),
    _metric("macro_f1", "probs", "one many", labels.macro_f1),
    _metric("micro_f1", "probs", "one many", labels.micro_f1, unlisted="one"),  # one label: the same as accuracy
    _metric("exact_match", "answers", "one many text", labels.mean_of(labels.correct_rows), unlisted="one"),  # one label: the same as accuracy
    _ranking("auc", ranking.area_under_roc),
    _ranking("average_precision", ranking.average_precision),
    _ranking("tpr@1e-2", ranking.tpr_at(1e-2)),
    _ranking("tpr@1e-3", ranking.tpr_at(1e-3)),
    _metric("nll", "soft", "one many number text", labels.mean_of(labels.nll_rows), better="lower"),
    _metric("brier", "probs", "one many", labels.mean_of(labels.brier_rows), better="lower"),
    _metric("ece", "soft", "one many", labels.ece, better="lower"),
    _metric("ece_debiased", "soft", "one many", labels.ece_debiased, better="lower"),
    _metric("rouge_l", "texts", "text", labels.mean_of(texts.rouge_l_rows)),
    _metric("chrf", "texts", "text", texts.chrf),
    _metric("mae", "values", "number", labels.mean_of(numbers.absolute_error), better="lower"),
    _metric("rmse", "values", "number", numbers.rmse, better="lower"),
    _metric("r2", "values", "number", numbers.r2),
    _metric("spearman", "values", "number", numbers.spearman),
)

SCORERS: dict[str, Scorer] = {metric.name: metric for metric in _METRICS}
_BY_NAME = {metric.name: metric for metric in _METRICS}


def applicable(task: Task, predictions: Predictions, *, wanted: tuple[str, ...] | None = None) -> tuple[Metric, ...]:
    """The metrics that this task has and these answers allow, in a fixed order.

    `wanted` names them instead; UsageError for an unknown name or one that is not for this kind of answer."""
    kind = answer_kind(task)
    if wanted is not None:
        chosen = tuple(named(name, kind) for name in wanted)
    else:
        chosen = tuple(metric for metric in _METRICS if kind in metric.listed)
    return tuple(metric for metric in chosen if _has(predictions, metric.needs))


def named(name: str, kind: AnswerKind, *, where: str = "evaluate.metrics") -> Metric:
    """One metric by name, checked against the kind of answer; `where` is the key that names it."""
    fitting = [metric.name for metric in _METRICS if kind in metric.answers]
    if name in fitting:
        return _BY_NAME[name]
    near = difflib.get_close_matches(name, fitting, n=1)
    raise UsageError(
        f"metric {name!r}" + (" does not fit this task" if name in _BY_NAME else ""),
        allowed=", ".join(fitting),
        fix=f"did you mean {near[0]}?" if near else "choose one of the allowed names",
        where=where,
    )


def primary(task: Task) -> Metric:
    """The metric that decides for this task. UsageError when `task.metric` does not fit."""
    return named(task.metric, answer_kind(task), where="task.metric")


def bundles(metrics: Sequence[Metric], gold: Any, predictions: Predictions) -> list[tuple[tuple[str, ...], Statistic]]:
    """The same metrics as [(names, statistic that gives them all)]: those made from a ranking come out of one sort."""
    made = [((metric.name,), metric.prepare(gold, predictions)) for metric in metrics if metric.curve is None]
    ranked = {metric.name: metric.curve for metric in metrics if metric.curve is not None}
    return made + ([(tuple(ranked), ranking.together(tuple(ranked.values()), gold, predictions))] if ranked else [])


def hard(predictions: Predictions) -> bool:
    """True when the "probabilities" are only yes and no (answers read from text): there is nothing to calibrate."""
    probs_NC = predictions.probs_NC
    return probs_NC is not None and bool(np.isin(probs_NC, (0.0, 1.0)).all())


def _has(predictions: Predictions, needs: str) -> bool:
    if needs == "texts":
        return predictions.texts is not None
    if needs == "values":
        return predictions.values_N is not None
    if needs == "probs":
        return predictions.probs_NC is not None
    if needs == "answers":
        return predictions.probs_NC is not None or predictions.texts is not None
    return predictions.nll_N is not None if predictions.probs_NC is None else not hard(predictions)
