"""The nearest known cases of a new one, and what differs. Shape letters: N known cases, F features."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from knowhow.types import Item, Near

SHOWN = 8
"""Differing lines of each side."""
COMPARED = 2000
"""Lines of each side that are compared one with another."""


@dataclass(frozen=True)
class Cases:
    """Known cases. `masked`: a line as it is compared (names drawn at random count as one); `parted`: a text's lines."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    masked: Callable[[str], str]
    parted: Callable[[str], list[str]] = str.splitlines

    @cached_property
    def _index(self) -> tuple[Any, Any]:
        words = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), lowercase=False, sublinear_tf=True, dtype=np.float32)
        return words, words.fit_transform([self._whole(self.parted(text)) for text in self.texts])

    def _whole(self, lines: Sequence[str]) -> str:
        return "\n".join(map(self.masked, lines))

    def nearest(self, item: Item, count: int = 3) -> list[Near]:
        """The `count` most alike, most alike first; none where nothing is known."""
        if not self.ids or not item.ranges:
            return []
        words, known_NF = self._index
        lines = item.lines()
        cosine_N = np.asarray((known_NF @ words.transform([self._whole(lines)]).T).todense()).ravel()
        best = np.argsort(-cosine_N, kind="stable")[:count]
        return [self._near(int(at), float(cosine_N[at]), lines) for at in best if cosine_N[at] > 0]

    def _near(self, at: int, similarity: float, lines: Sequence[str]) -> Near:
        theirs = self.parted(self.texts[at])[:COMPARED]
        matcher = difflib.SequenceMatcher(a=[*map(self.masked, lines[:COMPARED])], b=[*map(self.masked, theirs)], autojunk=False)
        here: list[int] = []
        there: list[str] = []
        for kind, a0, a1, b0, b1 in matcher.get_opcodes():
            if kind != "equal":
                here += range(a0, a1)
                there += theirs[b0:b1]
        same = not here and not there and len(lines) <= COMPARED
        return Near(self.ids[at], self.labels[at], round(similarity, 4), same, tuple(here[:SHOWN]), tuple(there[:SHOWN]))
