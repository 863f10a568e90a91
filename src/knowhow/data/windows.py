"""Batches of long streams of tokens: fixed windows, documents as rows of their own, one stream after or beside another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.data.batch import Rows, by_length, collate
from knowhow.protocols import Batches
from knowhow.types import Batch


@dataclass
class Windows:
    """Endless stream of fixed windows over token streams, mixed by share; satisfies the Batches protocol.

    `streams` are flat token arrays (documents joined by an end-of-text token); each step holds `per_step` windows of `sequence` tokens
    as microbatches of `per_microbatch`. A stream that runs out starts again in a new order."""

    streams: Sequence[np.ndarray]
    shares: Sequence[float]
    sequence: int
    per_step: int
    per_microbatch: int
    steps: int
    seed: int
    index: int = 0

    def __post_init__(self) -> None:
        random = np.random.Generator(np.random.PCG64([self.seed, 1]))
        total = self.steps * self.per_step
        counts = np.floor(np.asarray(self.shares) / sum(self.shares) * total).astype(int)
        counts[0] += total - counts.sum()
        which = np.repeat(np.arange(len(self.streams)), counts)
        random.shuffle(which)
        self._stream = which
        self._window = np.empty(total, np.int64)
        for at, stream in enumerate(self.streams):
            windows = (len(stream) - 1) // self.sequence
            laps = -(-int(counts[at]) // windows)
            order = np.concatenate([random.permutation(windows) for _ in range(laps)]) if laps else np.empty(0, np.int64)
            self._window[which == at] = order[: counts[at]]

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            first = (self.index % self.steps) * self.per_step
            self.index += 1
            chosen = range(first, first + self.per_step)
            yield [self._batch(chosen[at : at + self.per_microbatch]) for at in range(0, self.per_step, self.per_microbatch)]

    def state(self) -> dict[str, int]:
        """Where the next step will come from."""
        return {"index": self.index}

    def restore(self, state: Mapping[str, int]) -> None:
        self.index = int(state["index"])

    def _batch(self, chosen: range) -> Batch:
        starts = [(self.streams[self._stream[at]], int(self._window[at]) * self.sequence) for at in chosen]
        block = torch.from_numpy(np.stack([stream[start : start + self.sequence + 1] for stream, start in starts]).astype(np.int64))
        tokens = block[:, :-1].contiguous()
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), targets_BT=block[:, 1:].contiguous())


@dataclass
class Chained:
    """One stream after another: the first gives `turn` steps, the second all that follow; satisfies the Batches protocol."""

    first: Windows
    second: Windows
    turn: int
    index: int = 0

    def __iter__(self) -> Iterator[list[Batch]]:
        self.first.restore({"index": min(self.index, self.turn)})
        self.second.restore({"index": max(0, self.index - self.turn)})
        early, late = iter(self.first), iter(self.second)
        while True:
            self.index += 1
            yield next(early if self.index <= self.turn else late)

    def state(self) -> dict[str, int]:
        """Where the next step will come from."""
        return {"index": self.index}

    def restore(self, state: Mapping[str, int]) -> None:
        self.index = int(state["index"])


@dataclass
class Together:
    """Streams side by side: each step holds the microbatches of every one; satisfies the Batches protocol."""

    parts: Sequence[Batches]

    def __iter__(self) -> Iterator[list[Batch]]:
        for steps in zip(*self.parts, strict=True):
            yield [batch for step in steps for batch in step]

    def state(self) -> dict[str, int]:
        """Where the next step will come from: `part.name` of each."""
        return {f"{number}.{name}": value for number, part in enumerate(self.parts) for name, value in part.state().items()}

    def restore(self, state: Mapping[str, int]) -> None:
        for number, part in enumerate(self.parts):
            part.restore({key.split(".", 1)[1]: value for key, value in state.items() if key.startswith(f"{number}.")})


def documents(stream: np.ndarray, end: int, longest: int) -> Rows:
    """The documents of a stream (each ends with `end`) as rows of at most `longest` tokens; a longer one is cut into several."""
    ends = np.flatnonzero(stream == end) + 1
    starts = np.concatenate([[0], ends])[: len(ends)]
    cuts = [np.arange(start, stop, longest) for start, stop in zip(starts, ends, strict=True)]
    offsets = np.concatenate([*cuts, ends[-1:]]).astype(np.int64)
    return Rows(stream, offsets, range(len(offsets) - 1))


def even_windows(stream: np.ndarray, sequence: int, count: int = 16) -> list[Batch]:
    """Up to `count` windows evenly spread over a stream, four to a batch."""
    starts = np.linspace(0, len(stream) - sequence - 1, min(count, max(1, len(stream) // sequence)), dtype=int)
    blocks = [torch.from_numpy(stream[start : start + sequence + 1].astype(np.int64)) for start in starts]
    batches = []
    for at in range(0, len(blocks), 4):
        block = torch.stack(blocks[at : at + 4])
        batches.append(Batch(block[:, :-1].contiguous(), torch.ones_like(block[:, 1:], dtype=torch.bool), targets_BT=block[:, 1:].contiguous()))
    return batches


def first_documents(stream: np.ndarray, end: int, longest: int, tokens: int) -> list[Batch]:
    """About `tokens` tokens of a stream's first documents, those of like length together."""
    made = documents(stream, end, longest)
    count = max(1, int(np.searchsorted(made.offsets, tokens)))
    return [collate(made, chosen, pad=end, language_model=True) for chosen in by_length(np.arange(min(count, len(made))), made.lengths, 4 * longest)]
