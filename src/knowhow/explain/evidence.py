"""Which lines of a text an answer rests on, and whether it really does: every span is checked by taking it away.

A text is cut into units (its lines; sentences where there is one line). A method scores each unit for one label; those near the best one are the
evidence; then the answer is asked again without them (necessity), with them alone (sufficiency), and the same for as many random units.
Where the truth is known (generated data), spans are compared with it, and with those of the same model with shuffled weights, which must be at chance
(Adebayo et al. 2018, arXiv 1810.03292). Shape letters: N texts, U units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knowhow.errors import UsageError
from knowhow.types import Span

Scorer = Callable[[Sequence[str], int], np.ndarray]
"""(N texts, label's column) → how far each speaks for the label, N in nats: above 0 the label is the answer."""
Method = Callable[[str, "Units", int], np.ndarray]
"""(text, its units, label's column) → a score for each unit, U: how much it speaks for the label."""
SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True, slots=True)
class Units:
    """Half-open character ranges of a text, in order; what lies between them stays in every variant."""

    text: str
    ranges: tuple[tuple[int, int], ...]

    def without(self, dropped: Sequence[int]) -> str:
        """The text with these units cut out, each with the line break behind it."""
        gone, at, parts = set(dropped), 0, []
        for unit, (start, end) in enumerate(self.ranges):
            if unit in gone:
                parts.append(self.text[at:start])
                at = end + (self.text[end : end + 1] == "\n")
        return "".join([*parts, self.text[at:]])

    def only(self, kept: Sequence[int]) -> str:
        """The text with nothing but these units."""
        return self.without([unit for unit in range(len(self.ranges)) if unit not in set(kept)])

    def of(self, spans: Sequence[Span]) -> np.ndarray:
        """Which units (U, bool) any of the spans touches."""
        return np.array([any(span.start < end and start < span.end for span in spans) for start, end in self.ranges], bool)

    def spans(self, chosen: Sequence[int], kind: str) -> tuple[Span, ...]:
        return tuple(Span(*self.ranges[unit], kind) for unit in sorted(chosen))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence for one label of one text. `necessity`: how far the logit falls without it; `sufficiency`: how far it falls with it alone (both in nats,
    `_flips`: whether the answer changes); `random_…`: the same for random units of equal number, means over draws."""

    label: int
    chosen: tuple[int, ...]
    scores: np.ndarray
    logit: float
    necessity: float
    sufficiency: float
    random_necessity: float
    random_sufficiency: float
    necessity_flips: bool
    sufficiency_flips: bool
    random_necessity_flips: float
    random_sufficiency_flips: float


def units(text: str, most: int = 64) -> Units:
    """Lines that are not blank; of a text of one line its sentences; of a single sentence its words. Neighbours are joined so that there are at most `most`."""
    for pattern in (r"[^\n]*\S[^\n]*", r"\S[^.!?\n]*[.!?]*", r"\S+"):
        ranges = [match.span() for match in re.finditer(pattern, text)]
        if len(ranges) > 1:
            break
    joined = -(-len(ranges) // most) or 1
    groups = [ranges[first : first + joined] for first in range(0, len(ranges), joined)]
    return Units(text, tuple((group[0][0], group[-1][1]) for group in groups))


def occlusion(score: Scorer) -> Method:
    """How far the label's logit falls when a unit alone is cut out (Zeiler & Fergus 2014; Li et al. 2016, arXiv 1612.08220)."""

    def scores(text: str, parts: Units, label: int) -> np.ndarray:
        logits_N = score([text, *(parts.without([unit]) for unit in range(len(parts.ranges)))], label)
        return logits_N[0] - logits_N[1:]

    return scores


def at_random(seed: int) -> Method:
    """Uniform scores: the control that every method must beat."""
    drawn = np.random.default_rng(seed)
    return lambda text, parts, label: drawn.random(len(parts.ranges))


def choose(scores_U: np.ndarray, share: float) -> tuple[int, ...]:
    """Units that reach `share` of the best one's score; the best alone when nothing speaks for the label."""
    if not len(scores_U):
        return ()
    best = float(scores_U.max())
    return tuple(np.flatnonzero(scores_U >= share * best).tolist()) if best > 0 else (int(scores_U.argmax()),)


def check(score: Scorer, parts: Units, label: int, chosen: Sequence[int], scores_U: np.ndarray, *, draws: int = 2, seed: int = 0) -> Evidence:
    """Ask again without the chosen units, with them alone, and the same for `draws` random sets of equal number.

    Raises UsageError for a text without units."""
    if not parts.ranges:
        raise UsageError("a text without a word", allowed="a text with at least one unit")
    drawn = np.random.default_rng(seed)
    others = [drawn.choice(len(parts.ranges), len(chosen), replace=False).tolist() for _ in range(draws)]
    sets = [list(chosen), *others]
    logits = score([parts.text, *(parts.without(one) for one in sets), *(parts.only(one) for one in sets)], label)
    start, without, alone = float(logits[0]), logits[1 : len(sets) + 1], logits[len(sets) + 1 :]
    return Evidence(
        label, tuple(sorted(chosen)), scores_U, start,
        float(start - without[0]), float(start - alone[0]), float(np.mean(start - without[1:])), float(np.mean(start - alone[1:])),
        bool(without[0] <= 0), bool(alone[0] <= 0), float(np.mean(without[1:] <= 0)), float(np.mean(alone[1:] <= 0)),
    )  # fmt: skip


def overlap(chosen: Sequence[int], truth_U: np.ndarray) -> dict[str, float]:
    """Precision, recall and intersection over union of units."""
    said_U = np.zeros(len(truth_U), bool)
    said_U[list(chosen)] = True
    both, either = float((said_U & truth_U).sum()), float((said_U | truth_U).sum())
    return {"precision": both / max(said_U.sum(), 1), "recall": both / max(truth_U.sum(), 1), "iou": both / max(either, 1.0)}


def fit_share(scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The share of `SHARES` whose choices have the best mean IoU on (scores U, truth U) of texts that are not tested on."""
    return max(SHARES, key=lambda share: float(np.mean([overlap(choose(scores, share), truth)["iou"] for scores, truth in scored] or [0.0])))
