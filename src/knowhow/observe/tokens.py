"""Loss by class of token: how common it is, whether its context has shown it before, and what it is made of.

Columns `tokens.loss.<class>` (mean nats) and `tokens.share.<class>`: `all`; `repeated` (the target stands earlier in its row) and `first` (it does not);
`copied` (so does the pair of the token before and the target: what an induction head can copy) and `fresh`; with `counts`, `common`, `middling` and `rare`
(the most frequent tokens that make up half of the text, the next 40%, the rest); with `strings`, `space`, `word`, `number`, `punctuation`, `other`.
Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from knowhow.data.batch import IGNORE
from knowhow.model.loaded import device_of
from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo

KINDS = ("space", "word", "number", "punctuation", "other")
BANDS = ("common", "middling", "rare")
CUTS = (0.5, 0.9)
"""Shares of the text at which the frequency bands end."""


class TokenLosses:
    """Satisfies Observer. `batches`: rows with next-token targets (none: the step's own); `strings` V: what each token stands for in text; `counts` V: how
    often each stands in the training text. Cost: one forward pass of the rows. Rows without targets leave nothing."""

    name = "tokens"

    def __init__(self, due: When, batches: Sequence[Batch] = (), strings: Sequence[str] = (), counts: np.ndarray | None = None) -> None:
        self.due = due
        self._batches = batches
        self._kind_V = torch.tensor([KINDS.index(kind_of(text)) for text in strings]) if len(strings) else None
        self._band_V = torch.from_numpy(bands(counts)) if counts is not None else None
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        batches = [batch for batch in self._batches or info.batches if batch.targets_BT is not None]
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        with unnoticed(info.model), torch.no_grad():
            for batch in batches:
                nll_BT = losses(info.model, batch)
                for name, chosen_BT in self._classes(batch).items():
                    sums[name] = sums.get(name, 0.0) + float(nll_BT[chosen_BT].sum())
                    counts[name] = counts.get(name, 0.0) + float(chosen_BT.sum())
        if not counts.get("all"):
            return
        row = {"step": float(info.step)}
        row |= {f"tokens.loss.{name}": sums[name] / count for name, count in counts.items() if count}
        row |= {f"tokens.share.{name}": count / counts["all"] for name, count in counts.items()}
        self._rows.append(row)

    def _classes(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Masks BT of the supervised targets of each class."""
        targets_BT = batch.targets_BT.cpu()
        real_BT = targets_BT != IGNORE
        repeated_BT, copied_BT = shown_before(batch.tokens_BT.cpu(), targets_BT)
        found = {
            "all": real_BT,
            "repeated": real_BT & repeated_BT,
            "first": real_BT & ~repeated_BT,
            "copied": real_BT & copied_BT,
            "fresh": real_BT & ~copied_BT,
        }
        for names, class_V in ((KINDS, self._kind_V), (BANDS, self._band_V)):
            if class_V is not None:
                class_BT = class_V[targets_BT.clamp(min=0)]
                found |= {name: real_BT & (class_BT == at) for at, name in enumerate(names)}
        return found

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """−log p of each target in nats, BT float64 on the processor; 0 where there is none."""
    device = device_of(model)
    logits_BTV = model(input_ids=batch.tokens_BT.to(device), use_cache=False).logits
    targets_BT = batch.targets_BT.to(device)
    nll = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none", ignore_index=IGNORE)
    return nll.view_as(targets_BT).double().cpu()


def shown_before(tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each target stands among the row's tokens up to it, and whether the pair (token before it, target) does: bool BT each."""
    whole_BS = torch.cat([tokens_BT, targets_BT[:, -1:].clamp(min=0)], 1).long()
    pairs_BT = whole_BS[:, :-1] * (int(whole_BS.max()) + 1) + whole_BS[:, 1:]
    return _again(whole_BS)[:, 1:], _again(pairs_BT)


def _again(keys_BT: torch.Tensor) -> torch.Tensor:
    """Whether an equal key stands earlier in the row: in a stable order of the keys, the one before it is equal."""
    ordered_BT, order_BT = keys_BT.sort(dim=1, stable=True)
    equal_BT = torch.zeros_like(keys_BT, dtype=torch.bool)
    equal_BT[:, 1:] = ordered_BT[:, 1:] == ordered_BT[:, :-1]
    return torch.zeros_like(equal_BT).scatter(1, order_BT, equal_BT)


def kind_of(text: str) -> str:
    """One of KINDS, by the characters besides leading and trailing space."""
    bare = text.strip()
    if not bare:
        return "space" if text else "other"
    if bare.isalpha():
        return "word"
    if bare.isdigit():
        return "number"
    return "punctuation" if not any(char.isalnum() or char == "\ufffd" for char in bare) else "other"


def bands(counts_V: np.ndarray) -> np.ndarray:
    """The band of each token: index into BANDS. A token belongs where the share of all more frequent ones before it falls."""
    order = np.argsort(-counts_V, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(counts_V[order])[:-1]]) / max(1.0, float(counts_V.sum()))
    band_V = np.empty(len(counts_V), np.int64)
    band_V[order] = np.searchsorted(np.asarray(CUTS), before, side="right")
    return band_V
