"""Stage explain, inside the model: which parts carry the answers, what single heads do, in which layer each answer appears, and how what tells a text from
its twin travels to it.

Shape letters: N answers, L layers, H heads, P parts, U units, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.asking import Asked, located
from knowhow.explain.diff.compare import Budget, diff
from knowhow.explain.heads import head_scores, kurtosis, massive, repeated_tokens
from knowhow.explain.lens import logit_lens
from knowhow.explain.places import Place, PlaceEffects, means, place_effects, places
from knowhow.explain.sweep import sweep
from knowhow.maths.statistics import holm, sign_flip
from knowhow.model import infer
from knowhow.model.load import load
from knowhow.model.replay import record
from knowhow.model.sites import has_sites
from knowhow.protocols import Progress
from knowhow.stages.cases import Case
from knowhow.stages.common import Build
from knowhow.stages.methods import groups_of, interval, verdict
from knowhow.types import Finding

SHOWN, TRACED, POSITIONS = 8, 3, 48
"""Answers of whom all is told, answers that are traced against their twin, and positions of one trace besides those of the edit."""
CHANGED = Budget(rows=12, fewer=6, points=4, random_orders=1)
"""Answers on which base and specialist are held against each other; a build has no limit in seconds, for its bytes must not hang on the machine."""
PERIOD = 32
METHOD = "mean ablation"


def look(asked: Asked, cases: Sequence[Case], seed: int, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what inside.json says, for each of the first SHOWN answers what is behind it); `why` where the model cannot be looked into."""
    if why := _closed(asked):
        return {"why": why, "findings": []}, []
    model = asked.loaded.model
    rows, labels, groups = asked.rows([case.parts.text for case in cases]), [case.label for case in cases], groups_of(cases)
    batches = [asked.inputs([rows[at] for at in some]) for some in infer.like_lengths([len(row) for row in rows], 8192)]
    effects = place_effects(model, lambda: asked.margins(rows, labels), places(model), means(model, batches), seed=seed, progress=progress)
    told = {"answers": len(cases), "groups": len(set(groups.tolist())), "map": _map(effects, groups, seed), "findings": carried(effects, groups, seed)}
    behind = [{"parts": _grid(effects, at, ("attn", "mlp")), "heads": _grid(effects, at, ("head",))} for at in range(len(cases))][:SHOWN]
    lens_NL, traced = np.array([_lens(asked, row, case.label) for row, case in zip(rows, cases, strict=True)]), 0
    for at, (case, one) in enumerate(zip(cases, behind)):
        progress("traces", at, len(behind))
        path = _trace(asked, case) if traced < TRACED else None
        traced += path is not None
        one |= {"lens": [round(float(value), 4) for value in lens_NL[at]], "trace": path}
    told["lens"] = [asdict(interval(lens_NL[:, layer], groups, seed)) | {"layer": layer} for layer in range(lens_NL.shape[1])]
    return told | _habits(asked, rows[:SHOWN], seed), behind


def _closed(asked: Asked) -> str:
    """Why a model's inside is not looked at; empty where it is."""
    if asked.loaded.head == "channel":
        return "a channel's answer compares several passes, of texts with labels before them: its parts are not taken out one by one"
    return "" if has_sites(asked.loaded.model) else "the parts of this architecture have no names here yet: see model/sites.py"


def changed(build: Build, asked: Asked, cases: Sequence[Case]) -> dict[str, Any]:
    """What training changed, base against specialist (see explain/diff/compare.py); `why` where there is nothing to compare."""
    if why := _closed(asked):
        return {"why": why}
    some = cases[: CHANGED.rows]
    rows, metric = asked.rows([case.parts.text for case in some]), asked.metric([case.label for case in some])
    base = load(build.base, revision=build.recipe.base.revision, seed=build.recipe.seed)
    try:
        found = diff(
            base.model, asked.loaded.model, rows, metric, clusters=groups_of(some).tolist(), budget=CHANGED, seed=build.recipe.seed, progress=build.progress
        )
    except UsageError as error:
        return {"why": f"base and specialist cannot be compared: {error.got}"}
    return found.row()


def carried(effects: PlaceEffects, groups: np.ndarray, seed: int) -> list[Finding]:
    """Which part carries the answers most: of layers' parts and of heads, each chosen on every other group of answers and tested on the rest."""
    first_N = groups % 2 == 0
    found = []
    for kinds in (("attn", "mlp"), ("head",)):
        here = [at for at, place in enumerate(effects.places) if place.part in kinds]
        if not here or first_N.all() or not first_N.any():
            continue
        best = here[int((effects.falls - effects.control)[here][:, first_N].mean(1).argmax())]
        ours, other = effects.falls[best, ~first_N], effects.control[best, ~first_N]
        gap = interval(ours - other, groups[~first_N], seed)
        claim = f"{told_as(effects.places[best])} carries the answers: with its mean in its place they lose so many nats"
        found.append(Finding(claim, METHOD, float(ours.mean()), gap, float(other.mean()), verdict(gap)))
    return found


def told_as(place: Place) -> str:
    kind = {"attn": "The attention", "mlp": "The MLP", "head": f"Head {place.head}"}[place.part]
    return f"{kind} of layer {place.layer}"


def _map(effects: PlaceEffects, groups: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Every part: nats that the answers lose, with the interval over groups, the same for the random change, and whether the difference holds at 5% among
    all parts (sign-flip test over groups, Holm)."""
    beyond = effects.falls - effects.control
    sure = holm([sign_flip(np.bincount(groups, weights=row_N), seed=seed) for row_N in beyond])
    cells = []
    for place, fall_N, control_N, gap_N, held in zip(effects.places, effects.falls, effects.control, beyond, sure, strict=True):
        fall = interval(fall_N, groups, seed)
        cells.append(
            {
                "layer": place.layer, "part": place.part, "head": place.head, "fall": fall.value, "low": fall.low, "high": fall.high,
                "control": float(control_N.mean()), "lost": float((effects.start - fall_N <= 0).mean()),
                "control_lost": float((effects.start - control_N <= 0).mean()), "supported": bool(held and gap_N.mean() > 0),
            }
        )  # fmt: skip
    return cells


def _grid(effects: PlaceEffects, answer: int, parts: Sequence[str]) -> list[list[float]]:
    """Falls of one answer, a row per layer: of the parts named."""
    found: dict[int, list[float]] = {}
    for at, place in enumerate(effects.places):
        if place.part in parts:
            found.setdefault(place.layer, []).append(round(float(effects.falls[at, answer]), 4))
    return [found[layer] for layer in sorted(found)]


def _habits(asked: Asked, rows: Sequence[Sequence[int]], seed: int) -> dict[str, Any]:
    """Head roles and what the stream looks like, on the texts of the answers; induction on repeated random tokens of the same texts."""
    model, inputs = asked.loaded.model, asked.inputs(rows)
    scores = head_scores(model, inputs).means
    known = sorted({token for row in rows for token in row})
    period = min(PERIOD, len(known), asked.context // 2)
    repeated = repeated_tokens(known, rows=4, period=period, seed=seed) if period > 1 else None
    if repeated is not None:
        scores["induction"] = head_scores(model, {"input_ids": repeated, "attention_mask": torch.ones_like(repeated)}).means["induction"]
    recorded = record(model, inputs)
    large = massive(recorded)
    tailed_L = kurtosis(recorded).mean(0).tolist()
    depth, count = scores["sink"].shape
    return {
        "heads": [
            {"layer": layer, "head": head, **{name: round(float(value_LH[layer, head]), 4) for name, value_LH in scores.items()}}
            for layer in range(depth)
            for head in range(count)
        ],
        "stream": [
            {"layer": layer, "sink": round(float(scores["sink"][layer].mean()), 4), "kurtosis": round(tailed_L[layer], 3),
             "massive": sum(one.layer == layer for one in large)}
            for layer in range(depth)
        ],
    }  # fmt: skip


def _lens(asked: Asked, row: Sequence[int], label: int) -> list[float]:
    """The answer's margin if each layer were the last, by the specialist's own head."""
    logits_LC = logit_lens(record(asked.loaded.model, asked.inputs([row])))[:, 0]
    margins: list[float] = asked.metric([label] * len(logits_LC))(logits_LC).tolist()
    return margins


def _trace(asked: Asked, case: Case) -> list[list[float | None]] | None:
    """Layers × units: the share of the way from the twin's margin to the text's when the stream of the text stands in for the twin's at one token there
    (the largest over tokens that were tried: of a unit that differs all, of one behind it the last; None: not tried). None: no twin of equal length."""
    if case.twin is None:
        return None
    try:
        (row, offsets), (other, _) = located(asked, case.parts.text), located(asked, case.twin)
    except UsageError:
        return None
    if len(row) != len(other):
        return None
    at_unit = {
        unit: [at for at, place in enumerate(offsets) if place and place[0] < end and start < place[1]] for unit, (start, end) in enumerate(case.parts.ranges)
    }
    first = int(np.flatnonzero(case.edited_U)[0])
    chosen = {unit: where if case.edited_U[unit] else where[-1:] for unit, where in at_unit.items() if unit >= first and where}
    edited = {at for unit, where in chosen.items() if case.edited_U[unit] for at in where}
    behind = sorted({at for where in chosen.values() for at in where} - edited)[-POSITIONS:]
    positions = sorted(edited.union(behind))
    found = sweep(asked.loaded.model, asked.inputs([other]), asked.inputs([row]), metric=asked.metric([case.label]), positions=positions)
    effect_LP = found.effect[0]
    cells: list[list[float | None]] = [[None] * len(case.parts.ranges) for _ in range(len(effect_LP))]
    for unit, where in chosen.items():
        here = [found.positions.index(at) for at in where if at in found.positions]
        for layer in range(len(effect_LP)) if here else ():
            cells[layer][unit] = round(float(effect_LP[layer, here].max()), 4)
    return cells
