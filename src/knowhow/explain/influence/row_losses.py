"""Losses of single rows, for attribution: of the rows' labels, of labels that the model draws itself, of every class by its probability.

Rows are a mapping of what the model is called with, and `labels`: B (class index), BC (0/1: many labels), B float (a number), or BT (the token that follows
each position, −100 where none is supervised). Shape letters: B rows, T tokens, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from knowhow.errors import UsageError
from knowhow.explain.influence.per_example import Loss

IGNORE = -100


def of_labels(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
    """The loss that training sums, B, in nats: cross-entropy (summed over supervised tokens), binary cross-entropy (mean over labels) or squared error."""
    return _loss(_logits(model, rows), rows["labels"])


def of_margin(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
    """Minus the log odds of the right class, B (Park et al. 2023, sec. 3.1): unlike the loss it does not level off where the model is sure.

    Raises UsageError for labels that are not one class a row."""
    logits_BC, labels_B = _logits(model, rows), rows["labels"]
    if logits_BC.ndim != 2 or labels_B.ndim != 1 or labels_B.is_floating_point() or logits_BC.shape[1] < 2:
        raise UsageError("a margin of rows without one class each", allowed="labels B of class indices", fix="take of_labels")
    right_B1 = labels_B[:, None]
    return torch.logsumexp(logits_BC.scatter(1, right_B1, float("-inf")), 1) - logits_BC.gather(1, right_B1)[:, 0]


def drawn(seed: int) -> Loss:
    """The loss of labels drawn from the model's own answers: its squared gradients are the Fisher matrix on average (numbers: a normal of variance ½ about
    the answer, whose likelihood the squared error is). A new draw at each call."""
    generator = torch.Generator().manual_seed(seed)

    def loss(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
        logits, labels = _logits(model, rows), rows["labels"]
        given = logits.detach().float().cpu()
        if logits.ndim == 3:
            own = torch.multinomial(given.softmax(-1).flatten(0, 1), 1, generator=generator).view(labels.shape).to(labels.device)
            return _loss(logits, torch.where(labels == IGNORE, labels, own))
        if labels.ndim == 2:
            return _loss(logits, (torch.rand(given.shape, generator=generator) < given.sigmoid()).to(labels))
        if labels.is_floating_point():
            return _loss(logits, (given[:, 0] + 0.5**0.5 * torch.randn(len(given), generator=generator)).to(labels))
        return _loss(logits, torch.multinomial(given.softmax(-1), 1, generator=generator)[:, 0].to(labels))

    return loss


def every_class(classes: int) -> tuple[Loss, ...]:
    """One loss per class, weighted by the root of the class's own probability: together their squared gradients are the Fisher matrix itself, with nothing
    drawn. For rows of one class each."""

    def of(number: int) -> Loss:
        def loss(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
            logp_B = F.log_softmax(_logits(model, rows).float(), -1)[:, number]
            return -logp_B * (0.5 * logp_B).exp().detach()

        return loss

    return tuple(of(number) for number in range(classes))


def _logits(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
    if "labels" not in rows:
        raise UsageError(f"rows of {', '.join(rows) or 'nothing'}", allowed="what the model is called with, and labels")
    logits: torch.Tensor = model(**{name: value for name, value in rows.items() if name != "labels"}).logits
    return logits


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.ndim == 3:
        each_BT = F.cross_entropy(logits.float().transpose(1, 2), labels.long(), ignore_index=IGNORE, reduction="none")
        return each_BT.sum(1)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(1)
    if labels.is_floating_point():
        return (logits[:, 0].float() - labels).square()
    return F.cross_entropy(logits.float(), labels, reduction="none")
