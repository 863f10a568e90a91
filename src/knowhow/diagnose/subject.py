"""What is diagnosed: a model about to be trained, its objective, and a few hundred rows of its task.

Shape letters: B batch, T tokens, D model, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from knowhow.model.loaded import hidden_matrices
from knowhow.protocols import Objective
from knowhow.types import Batch, Measurement


@dataclass(frozen=True, slots=True)
class Subject:
    """`batches`: microbatches of training rows, each its own draw; `fresh`: others that no gradient was taken on; `general` with its objective: general
    text as next-token rows (empty for an encoder). `head`: parameters of a fresh head, by prefix of their names."""

    model: torch.nn.Module
    objective: Objective
    batches: Sequence[Batch]
    fresh: Sequence[Batch]
    general: Sequence[Batch] = ()
    general_objective: Objective | None = None
    head: tuple[str, ...] = ()

    def trained(self) -> dict[str, torch.Tensor]:
        """Parameters that training would move, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def matrices(self) -> dict[str, torch.Tensor]:
        """Hidden weight matrices: neither embeddings nor the head."""
        return {name: p for name, p in hidden_matrices(self.model).items() if not name.startswith(self.head)}


def measured(site: str, metric: str, value: float, unit: str, n: int) -> Measurement:
    return Measurement(site, metric, float(value), unit, n)


def mean_loss(model: torch.nn.Module, objective: Objective, batches: Sequence[Batch]) -> torch.Tensor:
    """Loss per supervised unit over the batches, in the graph."""
    units = sum(objective.units(batch) for batch in batches)
    return torch.stack([objective(model, batch)[0] for batch in batches]).sum() / units


@torch.no_grad()
def plain_loss(model: torch.nn.Module, objective: Objective, batches: Sequence[Batch]) -> float:
    return float(mean_loss(model, objective, batches))


def shuffled(batches: Sequence[Batch], *, seed: int = 0) -> list[Batch]:
    """The same inputs with labels of other rows (classes, numbers), or with targets of other rows (texts): a task that has nothing to say."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in batches:
        order_B = torch.randperm(len(batch.tokens_BT), generator=generator)
        labels = None if batch.labels is None else batch.labels[order_B]
        targets_BT = None if batch.targets_BT is None else torch.where(batch.targets_BT < 0, batch.targets_BT, batch.targets_BT[order_B].clamp(min=0))
        onset_BK = None if batch.onset_BK is None else batch.onset_BK[order_B]
        found.append(replace(batch, labels=labels, targets_BT=targets_BT, onset_BK=onset_BK))
    return found


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; mode, random state and gradients are what they were afterwards."""
    training, random = model.training, torch.get_rng_state()
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        torch.set_rng_state(random)
