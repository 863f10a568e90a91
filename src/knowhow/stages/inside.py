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
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.model import infer
from knowhow.model.load import load
from knowhow.model.replay import record
from knowhow.protocols import Progress
from knowhow.stages.cases import Case
from knowhow.stages.common import Build
from knowhow.types import Finding, Interval

HEADS, TRACED, POSITIONS = 8, 3, 48
"""Answers whose heads are taken out one by one, answers that are traced against their twin, and the most positions of one trace."""
CHANGED = Budget(rows=12, fewer=6, points=4, random_orders=1)
"""Answers on which base and specialist are held against each other; a build has no limit in seconds, for its bytes must not hang on the machine."""
PERIOD = 32
METHOD = "mean ablation"


def look(asked: Asked, cases: Sequence[Case], seed: int, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what inside.json says, for each of the first HEADS answers what is behind it)."""
    model = asked.loaded.model
    rows = asked.rows([case.parts.text for case in cases])
    labels = [case.label for case in cases]
    batches = [asked.inputs([rows[at] for at in some]) for some in infer.like_lengths([len(row) for row in rows], 8192)]
    mean = means(model, batches)
    wanted = places(model)
    whole = [place for place in wanted if place.part != "head"]
    single = [place for place in wanted if place.part == "head"]
    few = slice(None, HEADS)
    layers = place_effects(model, lambda: asked.margins(rows, labels), whole, mean, seed=seed, progress=progress)
    heads = place_effects(model, lambda: asked.margins(rows[few], labels[few]), single, mean, seed=seed, progress=progress) if single else None
    drawn = [effects for effects in (layers, heads) if effects is not None]
    told = {
        "answers": len(cases),
        "answers_by_head": min(HEADS, len(cases)),
        "map": [_cell(effects, at, seed) for effects in drawn for at in range(len(effects.places))],
        "findings": [finding for effects in drawn for finding in carried(effects, seed)],
        **_habits(asked, rows[few], seed),
    }
    behind = [{"parts": _grid(layers, at, ("attn", "mlp")), "heads": _grid(heads, at, None) if heads else []} for at in range(len(rows[few]))]
    traced = 0
    for at, (case, one) in enumerate(zip(cases, behind)):
        progress("lens and traces", at, len(behind))
        one["lens"] = _lens(asked, rows[at], case.label)
        path = _trace(asked, case) if traced < TRACED else None
        traced += path is not None
        one["trace"] = path
    lens_NL = np.array([one["lens"] for one in behind])
    told["lens"] = [asdict(_interval(lens_NL[:, layer], seed)) | {"layer": layer} for layer in range(lens_NL.shape[1])]
    return told, behind


def changed(build: Build, asked: Asked, cases: Sequence[Case]) -> dict[str, Any]:
    """What training changed, base against specialist (see explain/diff/compare.py); `why` where there is nothing to compare."""
    if asked.loaded.head == "channel":
        return {"why": "a channel's answer compares several passes: base and specialist are not held against each other part by part"}
    some = cases[: CHANGED.rows]
    rows, metric = asked.rows([case.parts.text for case in some]), asked.metric([case.label for case in some])
    base = load(build.base, revision=build.recipe.base.revision, seed=build.recipe.seed)
    try:
        found = diff(base.model, asked.loaded.model, rows, metric, budget=CHANGED, seed=build.recipe.seed, progress=build.progress)
    except UsageError as error:
        return {"why": f"base and specialist cannot be compared: {error.got}"}
    return found.row()


def carried(effects: PlaceEffects, seed: int) -> list[Finding]:
    """Which part carries the answers most: chosen on every other answer, tested on the rest, against a random change of equal size."""
    if effects.falls.shape[1] < 4:
        return []
    best = int((effects.falls - effects.control)[:, ::2].mean(1).argmax())
    ours, other = effects.falls[best, 1::2], effects.control[best, 1::2]
    gap = _interval(ours - other, seed)
    said = "supported" if gap.low > 0 else "refuted" if gap.high < 0 else "undecided"
    claim = f"{told_as(effects.places[best])} carries the answers: with its mean in its place they lose so many nats"
    return [Finding(claim, METHOD, float(ours.mean()), gap, float(other.mean()), said)]


def told_as(place: Place) -> str:
    kind = {"attn": "The attention", "mlp": "The MLP", "head": f"Head {place.head}"}[place.part]
    return f"{kind} of layer {place.layer}"


def _cell(effects: PlaceEffects, at: int, seed: int) -> dict[str, Any]:
    """One part of the map: nats that the answers lose, its interval over answers, and the same for the random change."""
    place, fall = effects.places[at], _interval(effects.falls[at], seed)
    gap = _interval(effects.falls[at] - effects.control[at], seed)
    return {
        "layer": place.layer, "part": place.part, "head": place.head, "fall": fall.value, "low": fall.low, "high": fall.high,
        "control": float(effects.control[at].mean()), "lost": float((effects.start - effects.falls[at] <= 0).mean()),
        "control_lost": float((effects.start - effects.control[at] <= 0).mean()), "supported": gap.low > 0,
    }  # fmt: skip


def _grid(effects: PlaceEffects, answer: int, parts: Sequence[str] | None) -> list[list[float]]:
    """Falls of one answer, a row per layer: of the parts named, or of every head."""
    found: dict[int, list[float]] = {}
    for at, place in enumerate(effects.places):
        if parts is None or place.part in parts:
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
    """The answer's margin if each layer were the last, by the specialist's own head; none for a channel, which has no head."""
    if asked.loaded.head == "channel":
        return []
    logits_LC = logit_lens(record(asked.loaded.model, asked.inputs([row])))[:, 0]
    margin_L = asked.metric([label] * len(logits_LC))(logits_LC)
    return [round(float(value), 4) for value in margin_L]


def _trace(asked: Asked, case: Case) -> list[list[float | None]] | None:
    """Layers × units: the share of the way from the twin's margin to the text's when the stream of the text stands in for the twin's at one token there
    (the largest over tokens that were tried: of a unit that differs all, of one behind it the last; None: not tried). None: no twin of equal length."""
    if case.twin is None or asked.loaded.head == "channel":
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
    positions = sorted({at for where in chosen.values() for at in where})[-POSITIONS:]
    found = sweep(asked.loaded.model, asked.inputs([other]), asked.inputs([row]), metric=asked.metric([case.label]), positions=positions)
    effect_LP = found.effect[0]
    cells: list[list[float | None]] = [[None] * len(case.parts.ranges) for _ in range(len(effect_LP))]
    for unit, where in chosen.items():
        here = [found.positions.index(at) for at in where if at in found.positions]
        for layer in range(len(effect_LP)) if here else ():
            cells[layer][unit] = round(float(effect_LP[layer, here].max()), 4)
    return cells


def _interval(values_N: np.ndarray, seed: int) -> Interval:
    return bootstrap(weighted_mean(np.asarray(values_N, np.float64)), np.arange(len(values_N)), seed=seed, vectorised=True)
