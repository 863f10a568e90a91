"""Stage explain: what answers rest on, each claim checked by taking the evidence away, beside random evidence and shuffled weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.asking import Asked, by_gradient
from knowhow.explain.evidence import Evidence, Method, Units, at_random, check, choose, fit_share, occlusion, overlap, units
from knowhow.files import append_jsonl, read_json, write_json
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.model.load import Loaded
from knowhow.recipe import BaseSpec
from knowhow.stages.common import Build, context
from knowhow.stages.evaluate import specialist
from knowhow.types import Example, Finding, Interval, Task

SHARE = 0.3
"""Where no truth is known to choose it by: units that reach this share of the best one's score are the evidence."""
FITTED, SHUFFLED = 6, 6
CLOSE = 0.1
"""Shuffled weights are at chance when their overlap with the truth is no more than this above that of random units."""


@dataclass(frozen=True, slots=True)
class Case:
    """A right answer: one label that a text has and that the model gives. `edited_U`: lines in which its twin differs, a text of the same group and
    as many lines that has not the label and is not given it (none: no such twin)."""

    example: Example
    parts: Units
    label: int
    truth_U: np.ndarray
    edited_U: np.ndarray


@dataclass(frozen=True, slots=True)
class Tried:
    """One method on all cases: `checked` by intervention, `overlaps` with the truth of the cases where it is known."""

    name: str
    share: float
    checked: tuple[Evidence, ...]
    overlaps: tuple[Mapping[str, float], ...]


def work(build: Build, folder: Path) -> None:
    """Leaves findings.json, methods.json and evidence.jsonl."""
    spec, task = build.recipe.explain, build.task
    write_json(folder / "findings.json", [])
    if not spec.examples or not task.classes:
        return
    asked = _asked(build, specialist(build))
    cases = list(_cases(asked, build, "test", spec.examples))
    if not cases:
        return
    fitted = list(_cases(asked, build, "valid", FITTED))
    methods = {"occlusion": occlusion(asked.scorer())}
    if asked.loaded.head != "channel":
        methods |= {"gradient x input": by_gradient(asked, integrated=False), "integrated gradients": by_gradient(asked, integrated=True)}
    tried = []
    for name, method in [*methods.items(), ("random", at_random(build.recipe.seed))]:
        build.progress(f"explain, {name}", len(tried), len(methods) + 1)
        tried.append(_try(name, method, asked, fitted, cases, build.recipe.seed))
    best, chance = max(tried[:-1], key=_merit), tried[-1]
    mixed = _shuffled(asked, build.recipe.seed)
    same = occlusion(mixed.scorer()) if best.name == "occlusion" else by_gradient(mixed, integrated=best.name == "integrated gradients")
    shuffled = _try(best.name, same, mixed, [], cases[:SHUFFLED], build.recipe.seed, best.share)
    write_json(folder / "methods.json", [_row(one) for one in tried])
    write_json(folder / "findings.json", [asdict(finding) for finding in _findings(best, chance, shuffled, cases, build.recipe.seed)])
    (folder / "evidence.jsonl").unlink(missing_ok=True)  # what a killed build had begun
    for case, found in zip(cases, best.checked, strict=True):
        append_jsonl(folder / "evidence.jsonl", _written(case.example.id, case.parts, found, best.name, task.labels))
    build.progress("explain", len(tried), len(tried))


def _asked(build: Build, loaded: Loaded) -> Asked:
    """The specialist with the thresholds that validation gave it."""
    fitted = read_json(build.run.path("evaluate", "calibration.json"))["fitted"]
    return asked_of(loaded, build.task, build.recipe.base, fitted)


def asked_of(loaded: Loaded, task: Task, spec: BaseSpec, fitted: Mapping[str, Any] | None) -> Asked:
    """A classifier as evidence asks it. `fitted`: temperature and thresholds (see evaluate/calibration.py); None: probabilities of one half decide."""
    fitted = fitted or {"temperature": {"temperature": 1.0}}
    thresholds = fitted.get("thresholds")
    given_C = np.clip(np.asarray([0.5] * len(task.labels) if thresholds is None else thresholds, dtype=np.float64), 1e-6, 1 - 1e-6)
    cuts = fitted["temperature"]["temperature"] * np.log(given_C / (1 - given_C))
    return Asked(loaded, context(loaded, spec), spec.truncate, task.many, tuple(cuts.tolist()), task.instruction)


def explained(asked: Asked, text: str, labels: Sequence[str], *, identity: str = "0", seed: int = 0) -> list[dict[str, Any]]:
    """Evidence for every label that a text is given, as rows of evidence.jsonl; by occlusion. Raises UsageError for a text of a single word."""
    parts = units(text)
    if len(parts.ranges) < 2:
        raise UsageError("a text with nothing to take away", allowed="a text of at least two words")
    score, rows = asked.scorer(), []
    for label in np.flatnonzero(asked.said([text])[0]).tolist():
        scores_U = occlusion(score)(text, parts, label)
        found = check(score, parts, label, choose(scores_U, SHARE), scores_U, seed=seed)
        rows.append(_written(identity, parts, found, "occlusion", labels))
    return rows


def _cases(asked: Asked, build: Build, part: str, most: int) -> Iterator[Case]:
    """The first right answers of a split, one per text; plain texts alone (a conversation or a pair has no lines of its own)."""
    task, found = build.task, 0
    rows = [row for row in build.rows(part) if isinstance(row.prompt, str) and row.pair is None]
    mates: dict[str, list[Example]] = {}
    for row in rows:
        if row.group:
            mates.setdefault(row.group, []).append(row)
    for first in range(0, len(rows), 32):
        some = rows[first : first + 32]
        for row, said_C in zip(some, asked.said([str(row.prompt) for row in some]), strict=True):
            right = [at for at, label in enumerate(task.labels) if said_C[at] and label in _gold(row)]
            parts = units(str(row.prompt))
            if found < most and right and len(parts.ranges) > 1:
                label = right[found % len(right)]
                truth_U = parts.of([span for span in row.evidence if span.kind == task.labels[label]])
                yield Case(row, parts, label, truth_U, _edited(asked, parts, mates.get(row.group or "", []), label, task.labels[label]))
                found += 1
        if found >= most:
            return


def _gold(row: Example) -> tuple[Any, ...]:
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _edited(asked: Asked, parts: Units, mates: Sequence[Example], label: int, name: str) -> np.ndarray:
    """Which lines differ from those of the nearest twin; none without a twin."""
    lines = [parts.text[start:end] for start, end in parts.ranges]
    best = np.zeros(len(lines), bool)
    for mate in mates:
        theirs = units(str(mate.prompt))
        if name in _gold(mate) or len(theirs.ranges) != len(lines):
            continue
        differs_U = np.array([line != theirs.text[start:end] for line, (start, end) in zip(lines, theirs.ranges, strict=True)])
        if differs_U.any() and (not best.any() or differs_U.sum() < best.sum()) and not asked.said([str(mate.prompt)])[0, label]:
            best = differs_U
    return best


def _try(name: str, method: Method, asked: Asked, fitted: Sequence[Case], cases: Sequence[Case], seed: int, share: float | None = None) -> Tried:
    known = [(method(case.parts.text, case.parts, case.label), case.truth_U) for case in fitted if case.truth_U.any()]
    share = share or (fit_share(known) if known else SHARE)
    scores = [method(case.parts.text, case.parts, case.label) for case in cases]
    chosen = [choose(given, share) for given in scores]
    score = asked.scorer()
    checked = tuple(
        check(score, case.parts, case.label, picked, given, seed=seed + at) for at, (case, picked, given) in enumerate(zip(cases, chosen, scores, strict=True))
    )
    overlaps = tuple(overlap(picked, case.truth_U) for case, picked in zip(cases, chosen, strict=True) if case.truth_U.any())
    return Tried(name, share, checked, overlaps)


def _merit(tried: Tried) -> float:
    """What the best method is best at: overlap with the truth where it is known, else how much more its lines matter than random ones."""
    if tried.overlaps:
        return float(np.mean([row["iou"] for row in tried.overlaps]))
    return float(np.mean([found.necessity_flips - found.random_necessity_flips for found in tried.checked]))


def _shuffled(asked: Asked, seed: int) -> Asked:
    """The same model with the entries of every weight permuted."""
    model, generator = copy.deepcopy(asked.loaded.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
    return replace(asked, loaded=replace(asked.loaded, model=model))


def _row(tried: Tried) -> dict[str, Any]:
    """A line of the method table: shares of answers that change, and overlap with the truth."""
    seen = tried.checked
    row: dict[str, Any] = {
        "method": tried.name,
        "share": tried.share,
        "n": len(seen),
        "necessity_flips": float(np.mean([found.necessity_flips for found in seen])),
        "random_necessity_flips": float(np.mean([found.random_necessity_flips for found in seen])),
        "sufficiency_flips": float(np.mean([found.sufficiency_flips for found in seen])),
        "random_sufficiency_flips": float(np.mean([found.random_sufficiency_flips for found in seen])),
    }
    return row | {name: float(np.mean([one[name] for one in tried.overlaps])) for name in ("precision", "recall", "iou") if tried.overlaps}


def _findings(best: Tried, chance: Tried, shuffled: Tried, cases: Sequence[Case], seed: int) -> Iterator[Finding]:
    without = [(found.necessity_flips, found.random_necessity_flips) for found in best.checked]
    alone = [(not found.sufficiency_flips, 1 - found.random_sufficiency_flips) for found in best.checked]
    yield _compared("Without the marked lines the answer is no longer given", best.name, without, seed)
    yield _compared("The marked lines alone give the answer", best.name, alone, seed)
    if best.overlaps:
        pairs = [(a["iou"], b["iou"]) for a, b in zip(best.overlaps, chance.overlaps, strict=True)]
        yield _compared("The marked lines are those that the data names as evidence (intersection over union)", best.name, pairs, seed)
        control = [(a["iou"], b["iou"]) for a, b in zip(shuffled.overlaps, chance.overlaps)]
        gap = _mean([a - b for a, b in control], seed)
        said = "supported" if gap.value <= CLOSE else "refuted"
        yield Finding("On shuffled weights the same method does no better than random lines", best.name, *_means(control, gap), said)
    twins = [float(case.edited_U[list(found.chosen)].any()) for case, found in zip(cases, best.checked, strict=True) if case.edited_U.any()]
    if twins:
        at_random = [float(case.edited_U.mean()) * len(found.chosen) for case, found in zip(cases, best.checked, strict=True) if case.edited_U.any()]
        pairs = list(zip(twins, np.minimum(at_random, 1.0).tolist(), strict=True))
        yield _compared("Where one edit takes the answer away, a marked line holds that edit", best.name, pairs, seed)


def _compared(claim: str, method: str, pairs: Sequence[tuple[float, float]], seed: int) -> Finding:
    """Ours against random lines, case by case: supported where the whole interval of the difference is above 0. `interval` is that of the difference."""
    gap = _mean([float(ours) - float(other) for ours, other in pairs], seed)
    return Finding(claim, method, *_means(pairs, gap), "supported" if gap.low > 0 else "refuted" if gap.high < 0 else "undecided")


def _means(pairs: Sequence[tuple[float, float]], gap: Interval) -> tuple[float, Interval, float]:
    """(effect, interval of the difference, control) as a finding has them."""
    return float(np.mean([ours for ours, _ in pairs])), gap, float(np.mean([other for _, other in pairs]))


def _mean(values: Sequence[float], seed: int) -> Interval:
    given_N = np.asarray(values, dtype=np.float64)
    return bootstrap(weighted_mean(given_N), np.arange(len(given_N)), seed=seed, vectorised=True)


def _written(identity: str, parts: Units, found: Evidence, method: str, labels: Sequence[str]) -> dict[str, Any]:
    """A worked example's evidence and what taking it away did."""
    marked = parts.spans(found.chosen, labels[found.label])
    held = found.necessity_flips and found.random_necessity_flips <= 0.25
    return {
        "id": identity, "text": parts.text, "label": labels[found.label], "method": method, "verdict": "supported" if held else "not supported",
        "evidence": [{"start": span.start, "end": span.end, "kind": span.kind} for span in marked],
        "logit": found.logit, "necessity": found.necessity, "sufficiency": found.sufficiency, "random_necessity": found.random_necessity,
        "necessity_flips": found.necessity_flips, "sufficiency_flips": found.sufficiency_flips, "random_necessity_flips": found.random_necessity_flips,
    }  # fmt: skip
