"""Batches: rows of tokens in, microbatches of like length out, the same on any machine and after any restart.

B rows of a microbatch, T its longest row rounded up. Padding is on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from knowhow.types import Batch

IGNORE = -100
ROUND_TO = 8
WINDOW_STEPS = 24
"""Bucketing happens inside a shuffled window of so many steps: lengths are alike within a microbatch, mixed within a step."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N tokenised rows in one flat array: nothing is held per row.

    `tokens` int32, row i is `tokens[offsets[i]:offsets[i+1]]`; `supervised` (same length as `tokens`, bool) marks targets of
    language-model rows, None = all; `labels` is N (class index or number) or N×C; `onsets` N×K (Batch.onset_BK); `weights` N."""

    tokens: np.ndarray
    offsets: np.ndarray
    ids: Sequence[str] | range
    supervised: np.ndarray | None = None
    labels: np.ndarray | None = None
    onsets: np.ndarray | None = None
    weights: np.ndarray | None = None
    groups: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def rows(
    token_lists: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    supervised: Sequence[Sequence[bool]] | None = None,
    labels: np.ndarray | None = None,
    onsets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    groups: Sequence[str] = (),
) -> Rows:
    """Flatten lists of token ids."""
    lengths = np.fromiter((len(tokens) for tokens in token_lists), np.int64, len(token_lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((token for tokens in token_lists for token in tokens), np.int32, int(offsets[-1]))
    marks = None if supervised is None else np.fromiter((mark for marks in supervised for mark in marks), bool, int(offsets[-1]))
    return Rows(flat, offsets, ids, marks, labels, onsets, weights, groups)


@dataclass
class TokenBudget:
    """Endless stream of steps over `rows`; satisfies the Batches protocol.

    A step holds about `batch_tokens` padded tokens as microbatches of at most `microbatch_tokens` (a longer row is a microbatch of
    its own). The order is a function of (seed, epoch) alone, never of the number of processes."""

    rows: Rows
    batch_tokens: int
    microbatch_tokens: int
    pad: int
    seed: int
    language_model: bool = False
    drop: float = 0.0
    epoch: int = 0
    index: int = 0

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            plan = self.plan(self.epoch)
            while self.index < len(plan):
                micro, random = plan[self.index], np.random.Generator(np.random.PCG64([self.seed, self.epoch, self.index]))
                self.index += 1
                batches = [collate(self.rows, chosen, pad=self.pad, language_model=self.language_model) for chosen in micro]
                yield [thinned(batch, self.drop, self.pad, random) for batch in batches] if self.drop else batches
            self.epoch, self.index = self.epoch + 1, 0

    def state(self) -> dict[str, int]:
        """Where the next step will come from."""
        return {"epoch": self.epoch, "index": self.index}

    def restore(self, state: Mapping[str, int]) -> None:
        self.epoch, self.index = int(state["epoch"]), int(state["index"])

    def steps_per_epoch(self) -> int:
        return len(self.plan(0))

    def plan(self, epoch: int) -> list[list[np.ndarray]]:
        """Every step of an epoch as lists of row indices, one list per microbatch."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = self._shuffled(random)
        lengths = _rounded(self.rows.lengths[order])
        cuts = np.searchsorted(np.cumsum(lengths), np.arange(1, 1 + lengths.sum() // (self.batch_tokens * WINDOW_STEPS)) * self.batch_tokens * WINDOW_STEPS)
        steps: list[list[np.ndarray]] = []
        for window in np.split(order, cuts):
            if len(window):
                steps += self._window(window, random)
        return steps

    def _shuffled(self, random: np.random.Generator) -> np.ndarray:
        """Rows in a random order; those of a group one after another, so that twins of one length meet in a step and their loss differs in little
        but their labels."""
        if not self.rows.groups:
            return random.permutation(len(self.rows))
        names, group_N = np.unique(np.asarray(self.rows.groups), return_inverse=True)
        return np.argsort(random.permutation(len(names))[group_N], kind="stable")

    def _window(self, window: np.ndarray, random: np.random.Generator) -> list[list[np.ndarray]]:
        micro = by_length(window, self.rows.lengths, self.microbatch_tokens)
        total = sum(len(chosen) * int(_rounded(self.rows.lengths[chosen]).max()) for chosen in micro)
        count = min(len(micro), max(1, round(total / self.batch_tokens)))
        # every step takes each count-th microbatch of the sorted list: short, middling and long ones together
        steps = [micro[start::count] for start in range(count)]
        return [steps[i] for i in random.permutation(count)]


def by_length(chosen: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Sort rows by length (ties keep their order) and cut them where rows × longest would pass `budget` tokens."""
    ordered = chosen[np.argsort(lengths[chosen], kind="stable")]
    padded = _rounded(lengths[ordered])
    parts, start = [], 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * padded[end] > budget:
            parts.append(ordered[start:end])
            start = end
    return parts


def collate(rows: Rows, chosen: np.ndarray, *, pad: int, language_model: bool) -> Batch:
    """One microbatch. For language models `targets_BT[b, t]` is the token after t, IGNORE where it is padding or not supervised."""
    width = int(_rounded(rows.lengths[chosen]).max())
    tokens = np.full((len(chosen), width), pad, np.int64)
    mask = np.zeros((len(chosen), width), bool)
    targets = np.full((len(chosen), width), IGNORE, np.int64) if language_model else None
    for at, row in enumerate(chosen):
        start, end = rows.offsets[row], rows.offsets[row + 1]
        piece = rows.tokens[start:end]
        tokens[at, : len(piece)] = piece
        mask[at, : len(piece)] = True
        if targets is not None:
            marks = slice(None) if rows.supervised is None else rows.supervised[start + 1 : end]
            following = targets[at, : len(piece) - 1]
            following[marks] = piece[1:][marks]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        targets_BT=None if targets is None else torch.from_numpy(targets),
        labels=None if rows.labels is None else torch.from_numpy(rows.labels[chosen]),
        onset_BK=None if rows.onsets is None else torch.from_numpy(rows.onsets[chosen].astype(np.int64)),
        weight_B=None if rows.weights is None else torch.from_numpy(rows.weights[chosen].astype(np.float32)),
        groups=[rows.groups[row] for row in chosen] if rows.groups else (),
        ids=[rows.ids[row] for row in chosen],
    )


def thinned(batch: Batch, share: float, pad: int, random: np.random.Generator) -> Batch:
    """The microbatch with about `share` of each row's tokens left out; the first and the last always stay."""
    mask_BT = batch.mask_BT.numpy()
    lengths_B = mask_BT.sum(1)
    keep_BT = mask_BT & (random.random(mask_BT.shape) >= share)
    keep_BT[:, 0] = True
    keep_BT[np.arange(len(lengths_B)), lengths_B - 1] = True
    width = int(_rounded(keep_BT.sum(1)).max())
    order_BT = np.argsort(~keep_BT, axis=1, kind="stable")[:, :width]
    kept_BT = np.take_along_axis(keep_BT, order_BT, 1)
    tokens_BT = np.where(kept_BT, np.take_along_axis(batch.tokens_BT.numpy(), order_BT, 1), pad)
    onset_BK = None
    if batch.onset_BK is not None:
        before_BT = np.concatenate([np.zeros((len(keep_BT), 1), np.int64), np.cumsum(keep_BT, 1)], 1)
        onset_BK = torch.from_numpy(np.take_along_axis(before_BT, batch.onset_BK.numpy(), 1))
    return replace(batch, tokens_BT=torch.from_numpy(tokens_BT), mask_BT=torch.from_numpy(kept_BT), onset_BK=onset_BK)


def _rounded(lengths: np.ndarray) -> np.ndarray:
    return np.maximum(ROUND_TO, -(-lengths // ROUND_TO) * ROUND_TO)
