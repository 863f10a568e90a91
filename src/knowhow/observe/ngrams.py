"""How near the model's next-token distribution stands to the n-gram tables of the text that it is trained on, corpus by corpus.

Columns, n from 1 (unigram) to 3 (trigram): `ngrams.<corpus>.loss` (the model's mean loss on the rows looked at, nats per token), `.loss.n` (the table's, the
same at every look), `.kl.n` (KL of the model's distribution from the table's, nats), `.top.n` (share of places at which both hold the same token for the
likeliest). Tables are Kneser–Ney smoothed, so every KL is finite. Shape letters: B batch, T tokens, P places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.data.batch import IGNORE
from knowhow.maths import ngram
from knowhow.model.loaded import device_of
from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo

ORDERS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one corpus on the rows that are looked at: `losses` of each order over all targets; for each batch the places (row, position) at which
    distributions are compared, and `shares`, order by order PV float32, what the tables say there."""

    batches: Sequence[Batch]
    losses: tuple[float, ...]
    places: Sequence[tuple[np.ndarray, np.ndarray]]
    shares: Sequence[tuple[np.ndarray, ...]]


def tables(stream: np.ndarray, vocabulary: int, batches: Sequence[Batch], places: int = 256) -> Tables:
    """Tables of `stream` (token ids), read at about `places` places of the rows, evenly spread, none with fewer than two tokens before it.
    Holds places × V numbers per order."""
    grams = [ngram.fit(np.asarray(stream), vocabulary, order=order) for order in ORDERS]
    rows = [(at, row, _whole(batch, row)) for at, batch in enumerate(batches) for row in range(len(batch.tokens_BT))]
    losses = tuple(float(np.concatenate([ngram.losses(gram, whole)[1:] for _, _, whole in rows]).mean()) for gram in grams)
    all_places = [(at, row, position) for at, row, whole in rows for position in range(1, len(whole) - 1)]
    chosen = all_places[:: max(1, len(all_places) // places)]
    found, shares = [], []
    for at in range(len(batches)):
        here = [(row, position) for which, row, position in chosen if which == at]
        by_row = {row: np.array([position for other, position in here if other == row]) for row in dict.fromkeys(row for row, _ in here)}
        found.append((np.array([row for row, _ in here], np.int64), np.array([position for _, position in here], np.int64)))
        parts = [[ngram.following(gram, _whole(batches[at], row), positions) for row, positions in by_row.items()] for gram in grams]
        shares.append(tuple(np.concatenate(part).astype(np.float32) if part else np.empty((0, vocabulary), np.float32) for part in parts))
    return Tables(batches, losses, found, shares)


class NGrams:
    """Satisfies Observer. `corpora`: name → Tables; cost: one forward pass of their rows."""

    name = "ngrams"

    def __init__(self, due: When, corpora: Mapping[str, Tables]) -> None:
        self.due = due
        self._corpora = corpora
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        row = {"step": float(info.step)}
        with unnoticed(info.model), torch.no_grad():
            for name, corpus in self._corpora.items():
                row |= {f"ngrams.{name}.{metric}": value for metric, value in agreement(info.model, corpus).items()}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def agreement(model: torch.nn.Module, corpus: Tables) -> dict[str, float]:
    """The columns of one corpus (see the module)."""
    device, total, count = device_of(model), 0.0, 0
    kl, top, places = np.zeros(len(ORDERS)), np.zeros(len(ORDERS)), 0
    for batch, (rows_P, positions_P), shares in zip(corpus.batches, corpus.places, corpus.shares, strict=True):
        logits_BTV = model(input_ids=batch.tokens_BT.to(device), use_cache=False).logits
        targets_BT = batch.targets_BT.to(device)
        total += float(torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum", ignore_index=IGNORE))
        count += int((targets_BT != IGNORE).sum())
        said_PV = logits_BTV[torch.from_numpy(rows_P), torch.from_numpy(positions_P)].float().log_softmax(-1).cpu()
        for at, share_PV in enumerate(shares):
            table_PV = torch.from_numpy(share_PV)
            kl[at] += float((said_PV.exp() * (said_PV - table_PV.log())).sum())
            top[at] += float((said_PV.argmax(-1) == table_PV.argmax(-1)).sum())
        places += len(rows_P)
    found = {"loss": total / max(1, count)}
    for at, order in enumerate(ORDERS):
        found |= {f"loss.{order}": corpus.losses[at], f"kl.{order}": kl[at] / max(1, places), f"top.{order}": top[at] / max(1, places)}
    return found


def _whole(batch: Batch, row: int) -> np.ndarray:
    """A row's tokens with its last target: what targets are predicted in, padding left out."""
    length = int(batch.mask_BT[row].sum())
    last = batch.targets_BT[row, length - 1 : length]
    return torch.cat([batch.tokens_BT[row, :length], last[last != IGNORE]]).cpu().numpy()
