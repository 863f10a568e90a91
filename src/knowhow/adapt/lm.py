"""Next-token objectives: `lm` (every token) and `sft` (completions only). The difference is in the batch's targets, not in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from knowhow.data.batch import IGNORE
from knowhow.maths.losses import linear_cross_entropy
from knowhow.model.loaded import without_adapter
from knowhow.types import Batch

SCALES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class NextToken:
    """−log p(target), summed over supervised tokens. Only supervised positions reach the vocabulary, and logits are never held at once.

    `backbone` may be a compiled stand-in for the model's own decoder."""

    name: str = "lm"
    backbone: Callable[..., Any] | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        targets_N = batch.targets_BT.reshape(-1)
        chosen = (targets_N != IGNORE).nonzero(as_tuple=True)[0]
        weights_N = None
        if batch.weight_B is not None:
            weights_N = batch.weight_B[:, None].expand_as(batch.targets_BT).reshape(-1)[chosen]
        if scales_logits(model):
            logits_NV = model(input_ids=batch.tokens_BT).logits.flatten(0, 1)[chosen].float()
            each_N = torch.nn.functional.cross_entropy(logits_NV, targets_N[chosen], reduction="none")
            return (each_N if weights_N is None else each_N * weights_N).sum(), {}
        # padding is on the right and attention is causal: no supervised position can see it, so no mask is needed
        backbone = self.backbone if self.backbone is not None else decoder(model)
        hidden_ND = backbone(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state.flatten(0, 1)
        if len(chosen) < len(targets_N):
            hidden_ND, targets_N = hidden_ND.index_select(0, chosen), targets_N[chosen]
        return linear_cross_entropy(hidden_ND, model.get_output_embeddings().weight, targets_N, weights_N), {}

    def units(self, batch: Batch) -> float:
        """Supervised tokens, each times its row's weight."""
        marked_BT = batch.targets_BT != IGNORE
        if batch.weight_B is None:
            return float(marked_BT.sum())
        return float((marked_BT.sum(1) * batch.weight_B).sum())


def decoder(model: torch.nn.Module) -> torch.nn.Module:
    """The stack below the language-model head, adapters included."""
    return without_adapter(model).base_model


def scales_logits(model: torch.nn.Module) -> bool:
    """True for families that change logits after the head (soft-capping, scaling) or add a bias to it."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None
    return not plain or any(config.to_dict().get(name) not in (None, 1, 1.0) for name in SCALES_LOGITS)
