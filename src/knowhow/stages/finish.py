"""Stages package and report: the specialist's folder, its card, and the page."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from knowhow import package as packaging
from knowhow.evaluate.gold import answer_kind
from knowhow.files import read_json
from knowhow.model import label_tokens, load
from knowhow.report import page
from knowhow.stages.common import Build
from knowhow.stages.evaluate import specialist
from knowhow.stages.readout import chosen, model_folder
from knowhow.types import EvalResult, Finding, Interval, ModelRef, Specialist

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "numpy", "scikit-learn", "lightgbm", "datasets")


def package(build: Build, folder: Path) -> None:
    """Leaves specialist/: the model, knowhow.json, the card, the recipe and the results; label-tokens/ where the recipe asks for it."""
    phase = build.run.path("adapt", f"phase-{len(build.recipe.adapt) - 1}")
    objective = build.recipe.adapt[-1].objective
    as_adapter = build.recipe.adapt[-1].method == "lora" and not build.recipe.package.merge
    base = read_json(build.run.path("base", "base.json"))
    ref = ModelRef(base["source"], base["revision"], "float32", None, base.get("parent"), base["sha256"])
    estimate = _optional(build.run.path("estimate.json")) or {}
    licence = build.recipe.package.licence or estimate.get("licences", {}).get("licence") or "other"
    results = tuple(_result(row) for row in read_json(build.run.path("evaluate", "results.json")))
    made = Specialist(build.recipe.name, ref, build.task, results, findings(build), _predictions(build), tuple(limits(build)), licence, {})
    extras = {
        "recipe": read_json(build.run.path("recipe.json")),
        "calibration": _calibration(build),
        "input": {**build.recipe.base.model_dump(include={"context", "truncate"}), "form": "channel" if objective == "channel" else "head"},
        "audit": _optional(build.run.path("data", "audit.json")),
        "vocabulary": _optional(build.run.path("base", "vocabulary.json")),
        "forgetting": _optional(build.run.path("evaluate", "forgetting.json")),
        "memorisation": _optional(build.run.path("evaluate", "memorisation.json")),
        "licences": estimate.get("licences"),
    }
    packaging.package(phase / "adapter" if as_adapter else model_folder(build), folder / "specialist", specialist=made, extras=extras, adapter=as_adapter)
    if build.recipe.package.label_tokens:
        shutil.rmtree(folder / "label-tokens", ignore_errors=True)
        load.save(label_tokens.to_label_tokens(specialist(build)), folder / "label-tokens")


def _calibration(build: Build) -> dict[str, Any] | None:
    found = _optional(build.run.path("evaluate", "calibration.json"))
    return found and {**found["fitted"], "temperature": found["temperature"]}


def findings(build: Build) -> tuple[Finding, ...]:
    """What the explain stage claimed and tested, of answers and of parts."""
    inside = _optional(build.run.path("explain", "inside.json")) or {}
    rows = [*read_json(build.run.path("explain", "findings.json")), *inside.get("findings", [])]
    return tuple(Finding(**{**row, "interval": Interval(**row["interval"]), "evidence": tuple(row["evidence"])}) for row in rows)


def _predictions(build: Build) -> tuple[dict[str, Any], ...]:
    return tuple(_optional(build.run.path("verify", "predictions.json")) or ())


def limits(build: Build) -> list[str]:
    """What a user must know before trusting it, from what was measured."""
    said = []
    audit = _optional(build.run.path("data", "audit.json")) or {}
    ceiling = audit.get("conflicts", {}).get("ceiling_accuracy")
    if ceiling is not None and ceiling < 0.999:
        said.append(f"Rows with the same input carry different labels: no model of this input can be right on more than {ceiling:.1%} of the rows.")
    over = audit.get("truncation", {}).get("over")
    if over:
        said.append(f"{over} rows are longer than the context; what was cut off was not seen.")
    fitted = _optional(build.run.path("evaluate", "calibration.json"))
    if fitted is not None and fitted["abstention"]["threshold"] is None:
        said.append(f"No confidence threshold could be shown to keep errors at or below {fitted['abstention']['risk']:.0%}: treat every answer as a hint.")
    if chosen(build).endswith("+ngrams"):
        said.append("N-grams decide beside the transformer: plain transformers gives its part of the logits alone, and what is said of layers is of that part.")
    forgotten = _optional(build.run.path("evaluate", "forgetting.json"))
    if forgotten is not None and forgotten["value"] > 0.1:
        said.append(f"It is no longer a general language model: general text costs {forgotten['value']:.2f} nats per token more than with the base.")
    if answer_kind(build.task) in ("one", "many"):
        said.append(f"It knows these labels only: {', '.join(build.task.labels)}. Inputs of another kind get one of them all the same.")
    return said


def report(build: Build, folder: Path) -> None:
    """Leaves report.html."""
    measured(build)
    page.write(build.run.folder, folder / "report.html")


def measured(build: Build) -> None:
    """Versions, machine and the sum of the stages' seconds, outside every digest."""
    known = _optional(build.run.path("measured.json")) or {}
    build.run.measure(
        total_seconds=round(sum(known.get("stages", {}).values()), 2),
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        machine={"system": platform.system(), "processor": platform.machine(), "release": platform.release()},
    )


def _result(row: dict[str, Any]) -> EvalResult:
    return EvalResult(**{**row, "paired": {name: Interval(**value) for name, value in row["paired"].items()}})


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None
