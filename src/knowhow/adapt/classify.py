"""Classification and regression through the architecture's own head: what is trained is what `from_pretrained` will load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from knowhow.adapt.lm import decoder
from knowhow.maths.losses import binary_cross_entropy, soft_cross_entropy, squared_error
from knowhow.model.load import head_modules
from knowhow.model.loaded import without_adapter
from knowhow.types import Batch


@dataclass(frozen=True)
class Classify:
    """`kind` one: labels B (index) or BC (a distribution: conflicting rows of one input); many: BC 0/1; number: B.

    `class_weights_C` multiplies an example's weight by that of its class (expected weight for a distribution);
    `forward` may be a compiled stand-in for the model (with `replication`, for its decoder).
    `replication`: share of the loss that is the mean over every position from which the labels hold (`Batch.onset_BK`), the rest being the
    last position's: target replication (Lipton et al., 2016, eq. 3); where onsets come from evidence, supervision of the process. For many
    labels the positions before an onset say that the label is not there yet. Causal models only."""

    name: str = "classify"
    kind: Literal["one", "many", "number"] = "one"
    causal: bool = True
    smoothing: float = 0.0
    class_weights_C: torch.Tensor | None = None
    forward: Callable[..., Any] | None = None
    replication: float = 0.0

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        weights_B = _weights(batch)
        if not self.replication:
            # right padding under causal attention needs no mask; encoders look both ways and do
            logits_BC = (self.forward or model)(input_ids=batch.tokens_BT, attention_mask=None if self.causal else batch.mask_BT.long()).logits
            return self._loss(logits_BC, batch.labels, weights_B), self._hits(logits_BC, batch.labels, weights_B)
        logits_BTC = head(model)((self.forward or decoder(model))(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state)
        logits_BC = logits_BTC[torch.arange(len(logits_BTC), device=logits_BTC.device), batch.mask_BT.sum(1) - 1]
        labels_N, weights_N = replicated(batch, weights_B, self.kind)
        last = self._loss(logits_BC, batch.labels, weights_B)
        loss = (1 - self.replication) * last + self.replication * self._loss(logits_BTC.flatten(0, 1), labels_N, weights_N)
        return loss, {"last": last.detach(), **self._hits(logits_BC, batch.labels, weights_B)}

    def units(self, batch: Batch) -> float:
        """Weight of the examples (class weights do not count: they are scaled to a mean of 1 by their maker)."""
        return float(_weights(batch).sum())

    def _loss(self, logits_NC: torch.Tensor, labels: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
        if self.kind == "number":
            return squared_error(logits_NC[:, 0], labels.float(), weights_N)
        if self.kind == "many":
            return binary_cross_entropy(logits_NC, labels.float(), weights_N)
        targets_NC = self._targets(labels, logits_NC.shape[1])
        return soft_cross_entropy(logits_NC, self._smoothed(targets_NC), self._weighted(weights_N, targets_NC))

    def _hits(self, logits_BC: torch.Tensor, labels: torch.Tensor, weights_B: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.kind == "number":
            return {}
        if self.kind == "many":
            hit_B = ((logits_BC > 0) == (labels > 0.5)).float().mean(-1)
        else:
            hit_B = self._targets(labels, logits_BC.shape[1]).gather(1, logits_BC.argmax(-1, keepdim=True)).squeeze(1)
        return {"accuracy": (weights_B * hit_B).sum().detach()}

    def _targets(self, labels: torch.Tensor, classes: int) -> torch.Tensor:
        return labels.float() if labels.ndim == 2 else F.one_hot(labels.long(), classes).float()

    def _smoothed(self, targets_BC: torch.Tensor) -> torch.Tensor:
        return targets_BC * (1 - self.smoothing) + self.smoothing / targets_BC.shape[1]

    def _weighted(self, weights_B: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
        return weights_B if self.class_weights_C is None else weights_B * (targets_BC @ self.class_weights_C.to(targets_BC))


def replicated(batch: Batch, weights_B: torch.Tensor, kind: Literal["one", "many", "number"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and weights of every position, N = B·T: a row's weight is shared evenly by those of its positions that have a target.

    Many labels: each position has one, 1 from the label's onset. Else the row's own label, from its onset."""
    positions_T = torch.arange(batch.mask_BT.shape[1], device=batch.mask_BT.device)
    held_BTK = positions_T[None, :, None] >= batch.onset_BK[:, None, :]
    if kind == "many":
        counted_BT, labels_N = batch.mask_BT, held_BTK.float().flatten(0, 1)
    else:
        counted_BT = batch.mask_BT & held_BTK[..., 0]
        labels_N = batch.labels.repeat_interleave(batch.mask_BT.shape[1], 0)
    share_B = weights_B / counted_BT.sum(1).clamp(min=1)
    return labels_N, (share_B[:, None] * counted_BT).flatten()


def head(model: torch.nn.Module) -> torch.nn.Module:
    """The module above the decoder, adapters included."""
    inner = without_adapter(model)
    return inner.get_submodule(head_modules(inner)[0])


def _weights(batch: Batch) -> torch.Tensor:
    return batch.weight_B if batch.weight_B is not None else torch.ones(len(batch.tokens_BT), device=batch.tokens_BT.device)
