"""What observers share: rows of a step's batch to look at, and a model that answers the same way twice while it is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from knowhow.protocols import Observer
from knowhow.types import Batch, Trace


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that training moves, by name; a tied one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def head_rows(batch: Batch, limit: int | None) -> Batch:
    """The first `limit` rows of a batch (None: all)."""
    if limit is None or len(batch.tokens_BT) <= limit:
        return batch

    def head(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[:limit]

    return replace(
        batch,
        tokens_BT=batch.tokens_BT[:limit],
        mask_BT=batch.mask_BT[:limit],
        targets_BT=head(batch.targets_BT),
        labels=head(batch.labels),
        onset_BK=head(batch.onset_BK),
        weight_B=head(batch.weight_B),
        groups=batch.groups[:limit],
        rewards=head(batch.rewards),
        teacher_logits=head(batch.teacher_logits),
        ids=batch.ids[:limit],
    )


@contextmanager
def unnoticed(model: torch.nn.Module) -> Iterator[None]:
    """Inside, dropout is off; afterwards the modes of all modules and torch's random state are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    random = torch.get_rng_state()
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(random)


def merged(observers: Sequence[Observer]) -> Trace:
    """The rows of all observers as one trace: a row a step, oldest first."""
    rows: dict[int, dict[str, float]] = {}
    for observer in observers:
        for row in observer.rows():
            rows.setdefault(int(row["step"]), {}).update(_numbers(row))
    return Trace(tuple(rows[step] for step in sorted(rows)))


def _numbers(row: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}
