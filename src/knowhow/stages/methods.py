"""Stage explain: methods of evidence side by side on the same right answers, each with its random control, and once on shuffled weights.

Shape letters: U units of a text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.asking import Asked, by_attention, by_gradient
from knowhow.explain.evidence import Evidence, Method, check, choose, fit_share, occlusion, overlap
from knowhow.explain.writing import Written
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.model.sites import has_sites
from knowhow.protocols import Progress
from knowhow.stages.cases import Case
from knowhow.types import Finding, Interval

A = TypeVar("A", Asked, Written)
SHARE = 0.3
"""Where no truth is known to choose it by: units that reach this share of the best one's score are the evidence."""
SHUFFLED, LEAST = 6, 5
"""Answers asked of shuffled weights, and the fewest groups of answers that a verdict needs."""
CLOSE = 0.1
"""Shuffled weights are at chance when their overlap with the truth is no more than this above that of random units."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One method on all cases: `checked` by intervention, `overlaps` with the truth of the cases where it is known."""

    name: str
    share: float
    checked: tuple[Evidence, ...]
    overlaps: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """`tried`: every method, `random` last; `best`: the one that did best on validation; `shuffled`: the same on shuffled weights."""

    tried: tuple[Tried, ...]
    best: Tried
    shuffled: Tried

    @property
    def chance(self) -> Tried:
        return self.tried[-1]


def compare(asked: Asked | Written, fitted: Sequence[Case], right: Sequence[Case], seed: int, progress: Progress) -> Compared:
    """All methods on the right answers. What they need to choose (how many units, which method is best) they choose on `fitted`, answers of validation;
    the random control has as many units of each text as the best method."""
    methods = methods_of(asked)
    tried, merits = [], []
    for done, (name, method) in enumerate(methods.items()):
        progress(f"explain, {name}", done, len(methods) + 2)
        try:
            share, merit = fit(method, asked, fitted, seed)
            tried.append(try_method(name, method, asked, right, share, seed))
        except UsageError:  # a text whose tokens cannot be told apart: occlusion needs none
            continue
        merits.append(merit)
    best = tried[int(np.argmax(merits))]
    progress("explain, random", len(methods), len(methods) + 2)
    chance = at_chance(best, asked, right, seed)
    mixed = shuffled(asked, seed)
    progress("explain, shuffled weights", len(methods) + 1, len(methods) + 2)
    control = try_method(best.name, methods_of(mixed)[best.name], mixed, right[:SHUFFLED], best.share, seed)
    return Compared((*tried, chance), best, control)


def at_chance(best: Tried, asked: Asked | Written, right: Sequence[Case], seed: int) -> Tried:
    """As many units of each text as a method chose, drawn at random."""
    drawn, score, pairs = np.random.default_rng(seed), asked.scorer(), list(zip(right, best.checked, strict=True))
    chosen = [tuple(sorted(drawn.choice(len(case.parts.ranges), len(one.chosen), replace=False).tolist())) for case, one in pairs]
    checked = tuple(
        check(score, case.parts, case.label, picked, np.zeros(len(case.parts.ranges)), seed=seed + at)
        for at, (case, picked) in enumerate(zip(right, chosen, strict=True))
    )
    return Tried("random", best.share, checked, _overlaps(right, chosen))


def methods_of(asked: Asked | Written) -> dict[str, Method]:
    """Methods by name; gradients and attention only where an answer is one logit of one pass."""
    found = {"occlusion": occlusion(asked.scorer())}
    if isinstance(asked, Asked) and asked.loaded.head != "channel" and has_sites(asked.loaded.model):
        found |= {"gradient x input": by_gradient(asked, integrated=False), "integrated gradients": by_gradient(asked, integrated=True)}
        found |= {"attention": by_attention(asked)}
    return found


def fit(method: Method, asked: Asked | Written, fitted: Sequence[Case], seed: int) -> tuple[float, float]:
    """(share of the best unit's score from which units are chosen, how well that does): by overlap with the truth where it is known, else at SHARE by
    how many more answers go without the chosen units than without random ones."""
    scores = [method(case.parts.text, case.parts, case.label) for case in fitted]
    known = [(given, case.truth_U) for given, case in zip(scores, fitted, strict=True) if case.truth_U.any()]
    if known:
        share = fit_share(known)
        return share, float(np.mean([overlap(choose(given, share), truth)["iou"] for given, truth in known]))
    checked = [
        check(asked.scorer(), case.parts, case.label, choose(given, SHARE), given, seed=seed + at)
        for at, (case, given) in enumerate(zip(fitted, scores, strict=True))
    ]
    return SHARE, float(np.mean([one.necessity_flips - one.random_necessity_flips for one in checked])) if checked else 0.0


def try_method(name: str, method: Method, asked: Asked | Written, cases: Sequence[Case], share: float, seed: int) -> Tried:
    """The method's units of each case, checked by intervention and held against the truth where it is known."""
    scores = [method(case.parts.text, case.parts, case.label) for case in cases]
    chosen = [choose(given, share) for given in scores]
    score = asked.scorer()
    checked = tuple(
        check(score, case.parts, case.label, picked, given, seed=seed + at) for at, (case, picked, given) in enumerate(zip(cases, chosen, scores, strict=True))
    )
    return Tried(name, share, checked, _overlaps(cases, chosen))


def _overlaps(cases: Sequence[Case], chosen: Sequence[Sequence[int]]) -> tuple[Mapping[str, float], ...]:
    """Where the truth is known."""
    return tuple(
        overlap(picked, case.truth_U) | {"distractors": float(case.decoy_U[list(picked)].mean())}
        for case, picked in zip(cases, chosen, strict=True)
        if case.truth_U.any()
    )


def shuffled(asked: A, seed: int) -> A:
    """The same model with the entries of every weight permuted."""
    model, generator = copy.deepcopy(asked.loaded.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
    return replace(asked, loaded=replace(asked.loaded, model=model))


def row(tried: Tried) -> dict[str, Any]:
    """A line of the method table: shares of answers that change, and overlap with the truth."""
    seen = tried.checked
    told: dict[str, Any] = {
        "method": tried.name,
        "share": tried.share,
        "n": len(seen),
        "necessity_flips": float(np.mean([found.necessity_flips for found in seen])),
        "random_necessity_flips": float(np.mean([found.random_necessity_flips for found in seen])),
        "sufficiency_flips": float(np.mean([found.sufficiency_flips for found in seen])),
        "random_sufficiency_flips": float(np.mean([found.random_sufficiency_flips for found in seen])),
    }
    return told | {name: float(np.mean([one[name] for one in tried.overlaps])) for name in ("precision", "recall", "iou", "distractors") if tried.overlaps}


def findings(compared: Compared, cases: Sequence[Case], seed: int) -> Iterator[Finding]:
    """What the best method's lines were shown to do, each beside its control; intervals draw groups (a text and its twins) anew."""
    best, chance = compared.best, compared.chance
    groups = groups_of(cases)
    known = np.flatnonzero([case.truth_U.any() for case in cases])
    without = [(found.necessity_flips, found.random_necessity_flips) for found in best.checked]
    alone = [(not found.sufficiency_flips, 1 - found.random_sufficiency_flips) for found in best.checked]
    yield _compared("Without the marked lines the answer is no longer given", best.name, without, groups, seed)
    yield _compared("The marked lines alone give the answer", best.name, alone, groups, seed)
    if best.overlaps:
        pairs = [(a["iou"], b["iou"]) for a, b in zip(best.overlaps, chance.overlaps, strict=True)]
        yield _compared("The marked lines are those that the data names as evidence (intersection over union)", best.name, pairs, groups[known], seed)
    control = [(a["iou"], b["iou"]) for a, b in zip(compared.shuffled.overlaps, chance.overlaps)]
    if control:
        gap = interval([a - b for a, b in control], groups[known][: len(control)], seed)
        said = "supported" if gap.high <= CLOSE else "refuted" if gap.low > CLOSE else "undecided"
        yield Finding("On shuffled weights the same method does no better than random lines", best.name, *_means(control, gap), said)
    edited = np.flatnonzero([case.edited_U.any() for case in cases])
    if len(edited):
        hits = [float(cases[at].edited_U[list(best.checked[at].chosen)].any()) for at in edited]
        at_random = [min(float(cases[at].edited_U.mean()) * len(best.checked[at].chosen), 1.0) for at in edited]
        claim = "Where one edit takes the answer away, a marked line holds that edit"
        yield _compared(claim, best.name, list(zip(hits, at_random, strict=True)), groups[edited], seed)


def groups_of(cases: Sequence[Case]) -> np.ndarray:
    """A number for each case's group: a text and its twins are one draw."""
    return np.unique([case.example.group or case.example.id for case in cases], return_inverse=True)[1] if cases else np.zeros(0, int)


def verdict(gap: Interval) -> Literal["supported", "refuted", "undecided"]:
    """By the whole interval; never on fewer than LEAST groups, where a bootstrap's interval is too short."""
    return "undecided" if gap.n < LEAST else "supported" if gap.low > 0 else "refuted" if gap.high < 0 else "undecided"


def interval(values: Sequence[float] | np.ndarray, groups: np.ndarray, seed: int) -> Interval:
    """Mean with its 95% interval, groups drawn anew."""
    return bootstrap(weighted_mean(np.asarray(values, dtype=np.float64)), groups, seed=seed, vectorised=True)


def _compared(claim: str, method: str, pairs: Sequence[tuple[float, float]], groups: np.ndarray, seed: int) -> Finding:
    """Ours against random lines, case by case. `interval` is that of the difference."""
    gap = interval([float(ours) - float(other) for ours, other in pairs], groups, seed)
    return Finding(claim, method, *_means(pairs, gap), verdict(gap))


def _means(pairs: Sequence[tuple[float, float]], gap: Interval) -> tuple[float, Interval, float]:
    """(effect, interval of the difference, control) as a finding has them."""
    return float(np.mean([ours for ours, _ in pairs])), gap, float(np.mean([other for _, other in pairs]))
