"""Does the answer stand when nothing that matters has changed? Test rows in each of the domain's harmless rewrites, paired with the rows as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.domains import find_domain
from knowhow.evaluate import calibration
from knowhow.evaluate.gold import answer_kind
from knowhow.evaluate.suite import Options, evaluate
from knowhow.model.load import Loaded
from knowhow.stages.common import METRICS, Build, answers
from knowhow.types import EvalResult, Example


def work(build: Build, loaded: Loaded, fitted: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """A row per rewrite: the task's own metric on the rewritten rows, and its difference to the same rows as they were, with intervals over clusters of
    rows. None without a domain. Rows that a rewrite does not touch are left out, so that `n` differs."""
    asked, rows = build.recipe, build.rows("test")
    name = asked.data.generate.domain if asked.data.generate is not None else asked.data.domain
    if name is None or not asked.evaluate.stress or not build.task.labels:
        return None
    chosen = [rows[at] for at in range(min(asked.evaluate.stress, len(rows)))]
    found = []
    for at, (what, rewrite) in enumerate(find_domain(name).stressors().items()):
        pairs = [(row, made) for row in chosen if (made := rewrite(row, asked.seed + at)) is not None]
        if len(pairs) >= 2:
            found.append({"rewrite": what, "rows": len(pairs), **_compared(build, loaded, fitted, pairs)})
    return found


def _compared(build: Build, loaded: Loaded, fitted: Mapping[str, Any] | None, pairs: list[tuple[Example, Example]]) -> dict[str, Any]:
    task, spec, evaluation = build.task, build.recipe.base, build.recipe.evaluate
    plain, stressed = [before for before, _ in pairs], [after for _, after in pairs]
    told = [answers(loaded, some, task, spec, name=name, progress=build.progress) for name, some in (("as it was", plain), ("rewritten", stressed))]
    if fitted is not None:
        told = [calibration.apply(one, fitted, task) for one in told]
    metric = task.metric or METRICS[answer_kind(task)]
    options = Options(evaluation.draws, build.recipe.seed, evaluation.confidence, (metric,), build.recipe.name)
    scored = evaluate(told[1], stressed, task, baselines={"as it was": told[0]}, options=options)
    result: EvalResult = next(one for one in scored if one.metric == metric and one.slice == "all")
    gap = result.paired["as it was"]
    return {
        "metric": metric, "value": result.value, "low": result.low, "high": result.high, "n": result.n,
        "difference": {"value": gap.value, "low": gap.low, "high": gap.high},
    }  # fmt: skip
