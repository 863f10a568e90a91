"""Running a model with one of its sites replaced, and what the replacement costs.

Shape letters: B rows, T tokens, D features of a site (heads side by side), N vectors, R rows of a data set, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from knowhow.data.batch import IGNORE, Rows, by_length, collate
from knowhow.errors import UsageError
from knowhow.loop.step import to_device
from knowhow.model.loaded import Loaded, device_of, without_adapter
from knowhow.model.sites import Site, find
from knowhow.model.taps import Edit, tap
from knowhow.types import Batch

Tensor = torch.Tensor
Change = Callable[[Tensor], Tensor]
"""Vectors of the site that is read, ND → vectors for the site that is written, NE."""
Metric = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""(logits of the model, batch) → each row's sum and its units (tokens, or 1), both B. Of a loss, lower is better."""


def token_loss(logits_BTV: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """−log p of the supervised next tokens in nats, and their number."""
    assert batch.targets_BT is not None, "batches of a language model have targets"
    each_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), batch.targets_BT, ignore_index=IGNORE, reduction="none")
    return each_BT.double().sum(1), (batch.targets_BT != IGNORE).double().sum(1)


def label_loss(logits_BC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the row's class in nats; of many labels (BC) the sum over labels of each one's."""
    if batch.labels is None:
        raise UsageError("rows without labels", allowed="a class for each row, or a column for each label", fix="give the metric that is meant")
    if batch.labels.ndim == 1:
        each_B = F.cross_entropy(logits_BC.float(), batch.labels.long(), reduction="none")
    else:
        each_B = F.binary_cross_entropy_with_logits(logits_BC.float(), batch.labels.float(), reduction="none").sum(1)
    return each_B.double(), torch.ones_like(each_B, dtype=torch.float64)


def label_logit(label: int) -> Metric:
    """The logit of one label, a unit for each row."""
    return lambda logits_BC, batch: (logits_BC[:, label].double(), torch.ones(len(logits_BC), dtype=torch.float64, device=logits_BC.device))


def loss_of(loaded: Loaded) -> Metric:
    """What the model was made to lower: `token_loss` of a language model, `label_loss` of a classifier. Raises UsageError for other heads."""
    if loaded.head not in ("lm", "classifier"):
        raise UsageError(f"the loss of a {loaded.head}", allowed="a language model or a classifier", fix="give a metric")
    return token_loss if loaded.head == "lm" else label_loss


def batches(loaded: Loaded, rows: Rows, batch_tokens: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, batch) of all rows, short ones first. Raises UsageError for no rows, and rows longer than the model takes."""
    if not len(rows) or int(rows.lengths.max()) > loaded.context:
        got = f"{len(rows)} rows, the longest of {int(rows.lengths.max(initial=0))} tokens"
        raise UsageError(got, allowed=f"at least one, none longer than {loaded.context} tokens")
    for chosen in by_length(np.arange(len(rows)), rows.lengths, batch_tokens):
        batch = collate(rows, chosen, pad=loaded.tokenizer.pad_token_id, language_model=loaded.head == "lm")
        yield chosen, to_device(batch, device_of(loaded.model))


def clusters(rows: Rows) -> np.ndarray:
    """R: rows of one group belong together."""
    return np.unique(np.asarray(rows.groups), return_inverse=True)[1] if rows.groups else np.arange(len(rows))


def counted(batch: Batch, skip: int) -> Tensor:
    """BT bool: real tokens, the first `skip` of each row left out."""
    real_BT = batch.mask_BT.bool().clone()
    real_BT[:, :skip] = False
    return real_BT


def place(loaded: Loaded, name: str) -> Site:
    """One site with a vector for each position. Raises UsageError for another."""
    found = find(loaded.model, name)
    if len(found) > 1 or found[0].axes[1] != "positions" or name == "logits":
        raise UsageError(f"the site {name}", allowed="one site with a vector for each position", fix="name it in full, such as layers.2.resid_post")
    return found[0]


@torch.no_grad()
def values(loaded: Loaded, names: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """Site → BTD of the body alone: no logits are made."""
    with tap(loaded.model, *names) as seen:
        without_adapter(loaded.model).base_model(**_inputs(loaded, batch))
    return {name: seen[name].flatten(2) for name in names}


@torch.no_grad()
def run(loaded: Loaded, batch: Batch, edits: Sequence[Edit] = (), name: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Logits, and BTD of a site as the edits left it."""
    with tap(loaded.model, *([name] if name else []), edits=edits) as seen:
        logits = loaded.model(**_inputs(loaded, batch)).logits
    return logits, seen[name].flatten(2) if name else None


def splice(reads: str, writes: str, change: Change, real_BT: Tensor) -> list[Edit]:
    """Edits that write `change` of what is read, where `real_BT` says so; everything else stays."""
    held: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        held.append(value.flatten(2))
        return value

    def write(value: Tensor) -> Tensor:
        new_BTE = value.flatten(2).clone()
        read_BTD = new_BTE if reads == writes else held.pop()
        new_BTE[real_BT] = change(read_BTD[real_BT]).to(new_BTE.dtype)
        return new_BTE.view_as(value)

    return [Edit(writes, write)] if reads == writes else [Edit(reads, note), Edit(writes, write)]


def _inputs(loaded: Loaded, batch: Batch) -> Mapping[str, Any]:
    # padding is on the right: a causal model never sees it, and attention without a mask is quicker
    if loaded.kind == "causal":
        return {"input_ids": batch.tokens_BT, "use_cache": False}
    return {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT.long()}
