"""Does the answer stand when nothing that matters has changed? Test rows in each of the domain's harmless rewrites, paired with the rows as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from knowhow.domains import find_domain
from knowhow.evaluate import calibration
from knowhow.evaluate.gold import answer_kind, take_predictions
from knowhow.evaluate.suite import Options, evaluate
from knowhow.model.load import Loaded
from knowhow.stages.common import METRICS, Build, answers
from knowhow.types import EvalResult, Example, Predictions


def work(build: Build, loaded: Loaded, answer: Predictions, fitted: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """A row per rewrite: the task's own metric on the rewritten rows, and its difference to the same rows as they were, with intervals over clusters of
    rows. None without a domain. Rows that a rewrite does not touch are left out, so that `n` differs."""
    asked, rows = build.recipe, build.rows("test")
    name = asked.data.generate.domain if asked.data.generate is not None else asked.data.domain
    if name is None or not asked.evaluate.stress or not build.task.labels:
        return None
    chosen = [rows[at] for at in range(min(asked.evaluate.stress, len(rows)))]
    found = []
    for at, (what, rewrite) in enumerate(find_domain(name).stressors().items()):
        made = [rewrite(row, asked.seed + at) for row in chosen]
        kept = [place for place, one in enumerate(made) if one is not None]
        if len(kept) >= 2:
            plain = take_predictions(answer, np.array(kept))
            found.append({"rewrite": what, "rows": len(kept), **_compared(build, loaded, fitted, plain, [made[place] for place in kept])})
    return found


def _compared(build: Build, loaded: Loaded, fitted: Mapping[str, Any] | None, plain: Predictions, stressed: list[Example]) -> dict[str, Any]:
    """`plain`: the answers on the same rows as they were."""
    task, evaluation = build.task, build.recipe.evaluate
    told = answers(loaded, stressed, task, build.recipe.base, name="rewritten", progress=build.progress)
    if fitted is not None:
        told = calibration.apply(told, fitted, task)
    metric = task.metric or METRICS[answer_kind(task)]
    options = Options(evaluation.draws, build.recipe.seed, evaluation.confidence, (metric,), build.recipe.name)
    scored = evaluate(told, stressed, task, baselines={"as it was": plain}, options=options)
    result: EvalResult = next(one for one in scored if one.metric == metric and one.slice == "all")
    gap = result.paired["as it was"]
    return {
        "metric": metric, "value": result.value, "low": result.low, "high": result.high, "n": result.n,
        "difference": {"value": gap.value, "low": gap.low, "high": gap.high},
    }  # fmt: skip
