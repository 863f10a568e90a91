"""Habits of the base that compression and attention caches care about: the attention sink, and how heavy the tails of the residual stream are.

Shape letters: B batch, T tokens, D model, H heads.
"""

from __future__ import annotations

import torch

from knowhow.diagnose.subject import measured
from knowhow.maths.spectra import kurtosis
from knowhow.model.loaded import without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.types import RUN, Batch, Measurement

EPSILON = 0.3
"""Mean attention to the first token above which a head counts as a sink (Gu 2024, arXiv 2410.10781, sec. 3)."""


@torch.no_grad()
def tails(model: torch.nn.Module, batch: Batch) -> list[Measurement]:
    """Largest magnitude and kurtosis of the residual stream behind each layer, all features together (kurtosis 3: normal)."""
    inner = without_adapter(model)
    with tap(inner, "layers.*.resid_post", check=False) as seen:
        inner(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long())
    rows = []
    for layer in range(body(inner).depth):
        values = seen[f"layers.{layer}.resid_post"][batch.mask_BT.bool()].double()
        site, tail = f"layers.{layer}.resid_post", kurtosis(values)
        rows += [measured(site, "outlier.largest", float(values.abs().max()), "", len(values)), measured(site, "outlier.kurtosis", tail, "", len(values))]
    return rows


@torch.no_grad()
def sinks(model: torch.nn.Module, batch: Batch) -> list[Measurement]:
    """Mean attention to the first token of each layer, over heads and the later real queries, and the share of heads above EPSILON (run, `sink.share`)."""
    inner = without_adapter(model)
    with tap(inner, "layers.*.attn.pattern", check=False) as seen:
        inner(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long())
    late_BT = batch.mask_BT.bool().clone()
    late_BT[:, :4] = False
    rows, above, heads = [], 0, 0
    for layer in range(body(inner).depth):
        to_first_BHT = seen[f"layers.{layer}.attn.pattern"][..., 0].float()
        weight_BT = late_BT.float() / late_BT.sum().clamp(min=1)
        mean_H = torch.einsum("bht,bt->h", to_first_BHT, weight_BT)
        above, heads = above + int((mean_H > EPSILON).sum()), heads + len(mean_H)
        rows.append(measured(f"layers.{layer}", "sink.attention", float(mean_H.mean()), "share", int(late_BT.sum())))
    return [*rows, measured(RUN, "sink.share", above / heads, "share of heads", heads)]
