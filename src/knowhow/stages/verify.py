"""Stage verify: what the laws predicted before training, beside what is measured after it.

Leaves predictions.json: every prediction with what was measured, its residual, its verdict and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow import laws
from knowhow.diagnose import bending, layers
from knowhow.diagnose.gradients import singular_values, stable_rank
from knowhow.diagnose.subject import at_rest
from knowhow.files import read_json, read_jsonl, write_json
from knowhow.model import load
from knowhow.model.loaded import hidden_matrices, site_of
from knowhow.stages import diagnose
from knowhow.stages.common import Build
from knowhow.stages.evaluate import trained
from knowhow.stages.phase import phases
from knowhow.stages.readout import chosen
from knowhow.types import Batch, Prediction, Scored, Trace

SKIPPED_BATCHES = 2


def work(build: Build, folder: Path) -> None:
    predicted = [Prediction(**row) for row in read_json(build.run.path("plan", "predictions.json"))]
    trace = Trace((*_observed(build), *rates(build), measured(build)))
    write_json(folder / "measured.json", trace.rows[-1])
    write_json(folder / "predictions.json", [row(one) for law in laws.every_law() for one in law.score(predicted, trace)])


def row(one: Scored) -> dict[str, Any]:
    """As it is written: a measurement that is no number is left out."""
    said = one.prediction
    values = {"value": said.value, "low": said.low, "high": said.high, "measured": one.measured, "residual": one.residual, "inside": one.inside}
    numbers = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    return {
        "law": said.law,
        "quantity": said.quantity,
        "site": said.site,
        **numbers,
        "verdict": one.verdict,
        "because": one.because,
        "made_from": said.made_from,
    }


def rates(build: Build) -> list[dict[str, float]]:
    """A row for each rate that the last phase tried: what it was, and whether training broke down."""
    choice = read_json(build.run.path("adapt", "choices.json"))[-1]
    return [{"step": float(choice["steps"]), "run.lr": tried["lr"], "run.diverged": float(tried["score"] is None)} for tried in choice["tried"]]


def measured(build: Build) -> dict[str, float]:
    """What laws of builds are scored by, measured on what training left: layers left out, updates, general text."""
    found: dict[str, float] = {"step": float(read_json(build.run.path("adapt", "choices.json"))[-1]["steps"])}
    path = build.run.path("evaluate", "forgetting.json")
    if path.is_file() and chosen(build).startswith("tuned"):  # a frozen base forgets nothing, and says nothing of training
        found["forgetting.measured"] = read_json(path)["value"]
    phase, loaded = phases(build)[-1], trained(build)
    rows = phase.rows("valid")
    batches = diagnose.some(rows, loaded.tokenizer.pad_token_id, build.recipe.seed, phase.language_model)[:SKIPPED_BATCHES]
    if phase.spec.method == "full":
        found |= updates(build, loaded, batches[:1])
    if phase.spec.objective == "classify":
        found |= skipped(loaded, batches, many=build.task.many)
    return found | pilot_start(build)


def pilot_start(build: Build) -> dict[str, float]:
    """Loss of knowing nothing, where a pilot measured it."""
    path = build.run.path("plan", "pilot.json")
    starts = [value for _, metric, value, *_ in read_json(path) if metric == "pilot.start"] if path.is_file() else []
    return {"pilot.start": starts[0]} if starts else {}


def updates(build: Build, loaded: load.Loaded, batches: Sequence[Batch]) -> dict[str, float]:
    """Stable rank and relative size of what training added to each hidden matrix; and how far the features bent over it."""
    before, after, found = load.load(build.base, head="body", seed=build.recipe.seed).model, loaded.model, {}
    weights = dict(before.named_parameters())
    for name, weight in hidden_matrices(after).items():
        if name in weights and weights[name].shape == weight.shape:
            change = (weight - weights[name]).detach()
            if size := float(change.norm()):
                found[f"update.stable_rank:{site_of(name)}"] = stable_rank(singular_values(change))
                found[f"update.size:{site_of(name)}"] = size / float(weights[name].detach().norm())
    with at_rest(before):
        found["bend.measured"] = bending.between(before, after, batches)
    return found


def skipped(loaded: load.Loaded, batches: Sequence[Batch], *, many: bool) -> dict[str, float]:
    """How far the answers move on validation, nats per row, when a layer is left out."""
    with at_rest(loaded.model):
        found = layers.shifts(loaded.model, batches, many=many, metric="shift.measured")
    return {f"shift.measured:{m.site}": m.value for m in found}


def _observed(build: Build) -> tuple[Mapping[str, float], ...]:
    """Rows of the last phase's trace."""
    last = len(build.recipe.adapt) - 1
    rows = [row for row in read_jsonl(build.run.path("adapt", "trace.jsonl")) if row.get("phase") == last]
    return tuple({name: float(value) for name, value in row.items() if isinstance(value, int | float)} for row in rows)
