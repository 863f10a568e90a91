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

PARTS = (("layer", ("attn.out", "mlp.out")), ("attn", ("attn.out",)), ("mlp", ("mlp.out",)))


@torch.no_grad()
def skips(model: torch.nn.Module, objective: Objective, batches: Sequence[Batch], *, metric: str, parts: bool = True) -> list[Measurement]:
    """Rise of the mean loss in nats per unit when a layer is left out (site `layers.3`), and its attention or MLP alone (`layers.3.attn`)."""
    inner = without_adapter(model)
    start = plain_loss(model, objective, batches)
    rows = []
    for layer in range(body(inner).depth):
        for name, kinds in PARTS if parts else PARTS[:1]:
            edits = [Edit(f"layers.{layer}.{kind}", torch.zeros_like) for kind in kinds]
            with tap(inner, edits=edits, check=False):
                rise = plain_loss(model, objective, batches) - start
            site = f"layers.{layer}" if name == "layer" else f"layers.{layer}.{name}"
            rows.append(measured(site, metric, rise, "nats", len(batches)))
    return rows


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
