"""Stage explain: what answers rest on, each claim checked by taking the evidence away, beside random evidence and shuffled weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.errors import UsageError
from knowhow.explain.asking import Asked
from knowhow.explain.evidence import Evidence, Units, check, choose, occlusion, units
from knowhow.explain.writing import Written
from knowhow.files import append_jsonl, read_json, write_json
from knowhow.model.load import Loaded
from knowhow.recipe import BaseSpec
from knowhow.stages.cases import Case, cases, written
from knowhow.stages.common import Build, context
from knowhow.stages.evaluate import specialist
from knowhow.stages.inside import changed, look
from knowhow.stages.methods import SHARE, Compared, compare, findings, row
from knowhow.types import Task

FITTED = 12
"""Answers of validation on which methods choose."""


def work(build: Build, folder: Path) -> None:
    """Leaves findings.json, methods.json, inside.json, diff.json and evidence.jsonl."""
    spec, task, seed = build.recipe.explain, build.task, build.recipe.seed
    write_json(folder / "findings.json", [])
    if spec.examples and task.kind == "generate":
        return of_writing(build, folder)
    if not spec.examples or not task.classes:
        return
    asked = asked_by(build)
    right = list(cases(asked, build, "test", spec.examples))
    if not right:
        return
    compared = compare(asked, list(cases(asked, build, "valid", FITTED)), right, seed, build.progress)
    _keep(folder, compared, right, seed)
    told, behind = look(asked, right, seed, build.progress)
    write_json(folder / "inside.json", told | {"findings": [asdict(finding) for finding in told["findings"]]})
    write_json(folder / "diff.json", changed(build, asked, right))
    for at, (case, found) in enumerate(zip(right, compared.best.checked, strict=True)):
        inside = {"inside": behind[at]} if at < len(behind) else {}
        append_jsonl(folder / "evidence.jsonl", _written(case.example.id, case.parts, found, compared.best.name, task.labels) | inside)
    build.progress("explain", 1, 1)


def of_writing(build: Build, folder: Path) -> None:
    """The same for written answers, by occlusion, with what each token of an answer rests on. Leaves findings.json, methods.json and evidence.jsonl."""
    seed = build.recipe.seed
    asked, right = written(build, "test", build.recipe.explain.examples)
    if not right:
        return
    compared = compare(asked, [], right, seed, build.progress)
    _keep(folder, compared, right, seed)
    for at, (case, found) in enumerate(zip(right, compared.best.checked, strict=True)):
        build.progress("explain, tokens", at, len(right))
        append_jsonl(folder / "evidence.jsonl", _of_tokens(asked, case.example.id, case.parts, found))
    build.progress("explain", 1, 1)


def _keep(folder: Path, compared: Compared, right: Sequence[Case], seed: int) -> None:
    """Methods and findings; what a killed build had begun of the evidence goes."""
    write_json(folder / "methods.json", [row(one) for one in compared.tried])
    write_json(folder / "findings.json", [asdict(finding) for finding in findings(compared, right, seed)])
    (folder / "evidence.jsonl").unlink(missing_ok=True)


def asked_by(build: Build) -> Asked:
    """The specialist of a build with the thresholds that validation gave it."""
    fitted = read_json(build.run.path("evaluate", "calibration.json"))["fitted"]
    return asked_of(specialist(build), build.task, build.recipe.base, fitted)


def asked_of(loaded: Loaded, task: Task, spec: BaseSpec, fitted: Mapping[str, Any] | None) -> Asked:
    """A classifier as evidence asks it. `fitted`: temperature and thresholds (see evaluate/calibration.py); None: probabilities of one half decide."""
    fitted = fitted or {"temperature": {"temperature": 1.0}}
    thresholds = fitted.get("thresholds")
    given_C = np.clip(np.asarray([0.5] * len(task.labels) if thresholds is None else thresholds, dtype=np.float64), 1e-6, 1 - 1e-6)
    cuts = fitted["temperature"]["temperature"] * np.log(given_C / (1 - given_C))
    return Asked(loaded, context(loaded, spec), spec.truncate, task.many, tuple(cuts.tolist()), task.instruction)


def explained(asked: Asked, text: str, labels: Sequence[str], *, identity: str = "0", seed: int = 0) -> list[dict[str, Any]]:
    """Evidence for every label that a text is given, as rows of evidence.jsonl; by occlusion. Raises UsageError for a text of a single word."""
    parts = _parted(text)
    given = np.flatnonzero(asked.said([text])[0]).tolist()
    return [_written(identity, parts, _occluded(asked, parts, label, seed), "occlusion", labels) for label in given]


def explained_writing(asked: Written, text: str, *, identity: str = "0", seed: int = 0) -> list[dict[str, Any]]:
    """Evidence for the first of the written answers, as a row of evidence.jsonl. Raises UsageError for a text of a single word."""
    parts = _parted(text)
    return [_of_tokens(asked, identity, parts, _occluded(asked, parts, 0, seed))]


def _parted(text: str) -> Units:
    parts = units(text)
    if len(parts.ranges) < 2:
        raise UsageError("a text with nothing to take away", allowed="a text of at least two words")
    return parts


def _occluded(asked: Asked | Written, parts: Units, label: int, seed: int) -> Evidence:
    score = asked.scorer()
    scores_U = occlusion(score)(parts.text, parts, label)
    return check(score, parts, label, choose(scores_U, SHARE), scores_U, seed=seed)


def _of_tokens(asked: Written, identity: str, parts: Units, found: Evidence) -> dict[str, Any]:
    pieces, falls_AU = asked.by_token(parts.text, parts, found.label)
    tokens = [[piece, [round(float(value), 4) for value in falls_U]] for piece, falls_U in zip(pieces, falls_AU, strict=True)]
    return _written(identity, parts, found, "occlusion", asked.answers) | {"tokens": tokens}


def _written(identity: str, parts: Units, found: Evidence, method: str, labels: Sequence[str]) -> dict[str, Any]:
    """A worked example's evidence and what taking it away did."""
    marked = parts.spans(found.chosen, labels[found.label])
    held = found.necessity_flips and found.random_necessity_flips <= 0.25
    return {
        "id": identity, "text": parts.text, "label": labels[found.label], "method": method, "verdict": "supported" if held else "not supported",
        "evidence": [{"start": span.start, "end": span.end, "kind": span.kind} for span in marked],
        "units": [[*place, round(float(value), 4)] for place, value in zip(parts.ranges, found.scores, strict=True)],
        "logit": found.logit, "necessity": found.necessity, "sufficiency": found.sufficiency, "random_necessity": found.random_necessity,
        "necessity_flips": found.necessity_flips, "sufficiency_flips": found.sufficiency_flips, "random_necessity_flips": found.random_necessity_flips,
    }  # fmt: skip
