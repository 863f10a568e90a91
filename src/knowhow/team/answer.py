"""One case answered by one specialist: labels with calibrated probabilities, the units that each rests on, and the fewest whose deletion changes it.

Over any domain: a case is a text of units (a report's events, a document's sentences). Evidence is found by taking units away, coarse first and then
fine, and every claim is asked again without its evidence, with it alone, and without as many random units. Only deletions are ever tried.
Shape letters: N texts, C labels, U units, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from knowhow.evaluate import calibration
from knowhow.explain.asking import Asked
from knowhow.explain.evidence import Units, choose, occlusion
from knowhow.model import infer
from knowhow.team.views import View, views
from knowhow.types import Answer, Claim, Item, Predictions, Task

COARSE, FINE = 48, 96
"""The most units that are taken away one by one, in the first and in the second round."""
SHARE = 0.3
"""Of the best unit's score: what counts as evidence (the build's own choice where nothing was marked)."""
DELETED = 12
"""The most units of a counterfactual."""
CHUNK = 64
DRAWS = 4
"""Random deletions beside each claim."""
HELD = 0.25
"""Share of random deletions that may take an answer away without its evidence being doubted."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A specialist as triage asks it. `probabilities`: N texts → NC, calibrated; `thresholds`: C with many labels, else None; `threshold`: the confidence
    from which it answers at the risk that it was built for (None: it was not calibrated, or no threshold could be shown to keep that risk)."""

    name: str
    asked: Asked
    labels: tuple[str, ...]
    probabilities: Callable[[Sequence[str]], np.ndarray]
    thresholds: tuple[float, ...] | None = None
    threshold: float | None = None

    def given(self, probs_C: np.ndarray) -> list[int]:
        """Labels that these probabilities give."""
        return [int(probs_C.argmax())] if self.thresholds is None else np.flatnonzero(probs_C >= np.asarray(self.thresholds)).tolist()

    def confidence(self, probs_C: np.ndarray) -> float:
        """Of the whole answer, as calibration counts it."""
        given = Predictions(self.name, ("0",), probs_NC=probs_C[None], thresholds_C=None if self.thresholds is None else np.asarray(self.thresholds))
        return float(calibration.confidence_of(given, Task("classify", self.labels, self.thresholds is not None))[0])

    @property
    def room(self) -> int:
        """Tokens of a view."""
        return max(16, self.asked.context - 4 - len(infer.encode(self.asked.loaded.tokenizer, [self.asked.before or " "], context=10**6)[0]))

    def sizes(self, item: Item) -> list[int]:
        """Tokens of each unit, its line break included: U."""
        rows = self.asked.loaded.tokenizer([line + item.between for line in item.lines()], add_special_tokens=False)["input_ids"] if item.ranges else []
        return [len(row) for row in rows]


def answers(reader: Reader, items: Sequence[Item], *, evidence: bool = True, seed: int = 0) -> Iterator[Answer]:
    """An answer for each case, in their order; the views of all are read together, in batches of like length."""
    seen = [views(item, reader.sizes(item), reader.room) for item in items]
    texts = [view.parts.text for each in seen for view in each]
    probs_VC = np.concatenate([reader.probabilities(texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)]) if texts else np.zeros((0, 0))
    at = 0
    for item, each in zip(items, seen, strict=True):
        yield _answer(reader, item, each, probs_VC[at : at + len(each)], evidence, seed)
        at += len(each)


def _answer(reader: Reader, item: Item, seen: Sequence[View], probs_VC: np.ndarray, evidence: bool, seed: int) -> Answer:
    if not seen:
        return Answer(item, dict.fromkeys(reader.labels, 0.0), (), 0)
    probs_C = probs_VC.mean(0) if reader.thresholds is None else probs_VC.max(0)
    given = reader.given(probs_C)
    claims = [claim(reader, seen[int(probs_VC[:, label].argmax())], label, seed) for label in given] if evidence else []
    sure = None if reader.threshold is None else reader.confidence(probs_C) >= reader.threshold
    said = dict(zip(reader.labels, probs_C.tolist(), strict=True))
    return Answer(item, said, tuple(reader.labels[label] for label in given), len(seen), tuple(claims), sure)


def claim(reader: Reader, view: View, label: int, seed: int = 0) -> Claim:
    """What one label of one view rests on; the control deletes as many parts that are no evidence. Where every part is evidence there is no control, and
    the claim is not held."""
    parts, places, scores_U = _scored(reader, view, label)
    chosen = sorted(choose(scores_U, SHARE), key=lambda part: -scores_U[part])
    cumulative = [chosen[:count] for count in range(1, min(len(chosen), DELETED) + 1)]
    others, drawn = [part for part in range(len(places)) if part not in set(chosen)], np.random.default_rng(seed)
    random = [drawn.choice(others, min(len(chosen), len(others)), replace=False).tolist() for _ in range(DRAWS)] if others else []
    probs_NC = reader.probabilities([parts.text, parts.without(chosen), parts.only(chosen), *(parts.without(few) for few in [*cumulative, *random])])
    gone_N = [label not in reader.given(probs_C) for probs_C in probs_NC]
    count = next((count for count in range(1, len(cumulative) + 1) if gone_N[2 + count]), None)
    enough = None if count is None else (_units(places, chosen[:count]), float(probs_NC[2 + count, label]))
    start, without, alone = (float(probs_NC[row, label]) for row in range(3))
    flips, random_flips = gone_N[1], float(np.mean(gone_N[3 + len(cumulative) :])) if random else 1.0
    return Claim(reader.labels[label], _units(places, chosen), start, without, alone, flips, random_flips, enough, flips and random_flips <= HELD)


def _units(places: Sequence[tuple[int, ...]], chosen: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(unit for part in chosen for unit in places[part]))


def _scored(reader: Reader, view: View, label: int) -> tuple[Units, list[tuple[int, ...]], np.ndarray]:
    """Parts of the view, the units of the case that each part is, and how far the label falls without it: blocks first, then single units of the best."""
    score = reader.asked.scorer()
    blocks = np.array_split(np.arange(len(view.units)), min(COARSE, len(view.units)))
    parts = _joined(view, blocks)
    scores_U = occlusion(score)(parts.text, parts, label)
    if len(view.units) > COARSE:
        fine, used = set[int](), 0
        for block in sorted(choose(scores_U, SHARE / 2), key=lambda block: -scores_U[block]):
            if used + len(blocks[block]) <= FINE or not fine:
                fine.add(block)
                used += len(blocks[block])
        blocks = _split(blocks, fine)
        parts = _joined(view, blocks)
        singles = [at for at, block in enumerate(blocks) if len(block) == 1]
        logits_N = score([parts.text, *(parts.without([at]) for at in singles)], label)
        scores_U = np.zeros(len(blocks))
        scores_U[singles] = logits_N[0] - logits_N[1:]
    return parts, [tuple(view.units[at] for at in block) for block in blocks], scores_U


def _joined(view: View, blocks: Sequence[np.ndarray]) -> Units:
    return Units(view.parts.text, tuple((view.parts.ranges[block[0]][0], view.parts.ranges[block[-1]][1]) for block in blocks))


def _split(blocks: Sequence[np.ndarray], fine: set[int]) -> list[np.ndarray]:
    """The blocks with those of `fine` taken apart."""
    return [piece for at, block in enumerate(blocks) for piece in (np.split(block, len(block)) if at in fine else [block])]
