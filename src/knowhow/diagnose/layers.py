"""What each layer is worth to the base on this task's rows: the loss without it, and how far it turns the residual stream.

A layer is left out by taking nothing from its attention and its MLP. Shape letters: B batch, T tokens, D model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from knowhow.diagnose.subject import measured, plain_loss
from knowhow.model.loaded import without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import Edit, tap
from knowhow.protocols import Objective
from knowhow.types import Batch, Measurement

OUT = ("attn.out", "mlp.out")
"""What a layer adds to the residual stream."""


@torch.no_grad()
def skips(model: torch.nn.Module, objective: Objective, batches: Sequence[Batch], *, metric: str) -> list[Measurement]:
    """Rise of the mean loss in nats per unit when a layer is left out (site `layers.3`)."""
    inner = without_adapter(model)
    start = plain_loss(model, objective, batches)
    rows = []
    for layer in range(body(inner).depth):
        with tap(inner, edits=_left_out(layer), check=False):
            rise = plain_loss(model, objective, batches) - start
        rows.append(measured(f"layers.{layer}", metric, rise, "nats", len(batches)))
    return rows


def _left_out(layer: int) -> list[Edit]:
    return [Edit(f"layers.{layer}.{kind}", torch.zeros_like) for kind in OUT]


@torch.no_grad()
def shifts(model: torch.nn.Module, batches: Sequence[Batch], *, many: bool, metric: str) -> list[Measurement]:
    """How far the answers move when a layer is left out: KL(with it ‖ without it) in nats per row of a classifier, the sum over labels where many hold at
    once, half the squared difference of numbers. Unlike the loss it does not fall when a layer was only overconfident."""
    inner = without_adapter(model)
    whole = [_logits(inner, batch) for batch in batches]
    rows = []
    for layer in range(body(inner).depth):
        with tap(inner, edits=_left_out(layer), check=False):
            apart = torch.cat([divergence(before_BC, _logits(inner, batch), many=many) for before_BC, batch in zip(whole, batches, strict=True)])
        rows.append(measured(f"layers.{layer}", metric, float(apart.mean()), "nats", len(apart)))
    return rows


def divergence(before_BC: torch.Tensor, after_BC: torch.Tensor, *, many: bool) -> torch.Tensor:
    """B: KL of softmax, of sigmoids summed over labels, or of unit normals round one number."""
    if before_BC.shape[1] == 1:
        return (before_BC - after_BC).square().sum(1) / 2
    if many:
        before_BC, after_BC = torch.stack([before_BC, torch.zeros_like(before_BC)], -1), torch.stack([after_BC, torch.zeros_like(after_BC)], -1)
    before, after = before_BC.log_softmax(-1), after_BC.log_softmax(-1)
    return (before.exp() * (before - after)).flatten(1).sum(1)


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long()).logits
    return found.double()


@torch.no_grad()
def turns(model: torch.nn.Module, batch: Batch) -> list[Measurement]:
    """1 − cosine between a layer's input and output, mean over real tokens: block influence (Men et al. 2024, arXiv 2403.03853)."""
    inner = without_adapter(model)
    with tap(inner, "layers.*.resid_pre", "layers.*.resid_post", check=False) as seen:
        inner(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long())
    real_BT = batch.mask_BT.bool()
    rows = []
    for layer in range(body(inner).depth):
        before_ND, after_ND = seen[f"layers.{layer}.resid_pre"][real_BT], seen[f"layers.{layer}.resid_post"][real_BT]
        cosine = torch.nn.functional.cosine_similarity(before_ND.float(), after_ND.float(), dim=-1).mean()
        rows.append(measured(f"layers.{layer}", "layer.turn", 1 - float(cosine), "", int(real_BT.sum())))
    return rows
