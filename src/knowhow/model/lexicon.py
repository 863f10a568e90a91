"""Writing with given words alone: at every step only tokens that go on a permitted word, or begin the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from knowhow.model.infer import pieces


@dataclass
class _Node:
    next: dict[int, _Node] = field(default_factory=dict)
    ends: bool = False


class Lexicon:
    """Words parted by single blanks. A tokenizer that parts text at blanks gives a word the same tokens wherever it stands; a word that does not come back
    from its own tokens is left out, so that what is written is made of these words whatever the model would like to say.

    `ends`: token ids that may end the text, after a whole word."""

    def __init__(self, tokenizer: Any, words: Iterable[str], ends: Iterable[int]) -> None:
        self.root, self.ends = _Node(), frozenset(ends)
        listed = sorted(set(words))
        for word, row in zip(listed, pieces(tokenizer, [f" {word}" for word in listed]), strict=True):
            if tokenizer.decode(row, clean_up_tokenization_spaces=False) == f" {word}":
                node = self.root
                for token in row:
                    node = node.next.setdefault(token, _Node())
                node.ends = True

    def allowed(self, written: Sequence[int]) -> frozenset[int]:
        """Tokens that may come next; after something that is no permitted text, the ends alone."""
        node = self.root
        for token in written:
            if token in node.next:
                node = node.next[token]
            elif node.ends and token in self.root.next:
                node = self.root.next[token]
            else:
                return self.ends
        found = set(node.next)
        if node.ends:
            found |= set(self.root.next) | self.ends
        return frozenset(found)
