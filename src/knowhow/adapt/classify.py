"""Classification and regression through the architecture's own head: what is trained is what `from_pretrained` will load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from knowhow.maths.losses import binary_cross_entropy, soft_cross_entropy, squared_error
from knowhow.types import Batch


@dataclass(frozen=True)
class Classify:
    """`kind` one: labels B (index) or BC (a distribution: conflicting rows of one input); many: BC 0/1; number: B.

    `class_weights_C` multiplies an example's weight by that of its class (expected weight for a distribution);
    `forward` may be a compiled stand-in for the model."""

    name: str = "classify"
    kind: Literal["one", "many", "number"] = "one"
    causal: bool = True
    smoothing: float = 0.0
    class_weights_C: torch.Tensor | None = None
    forward: Callable[..., Any] | None = None

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        # right padding under causal attention needs no mask; encoders look both ways and do
        logits_BC = (self.forward or model)(input_ids=batch.tokens_BT, attention_mask=None if self.causal else batch.mask_BT.long()).logits
        weights_B = _weights(batch)
        if self.kind == "number":
            return squared_error(logits_BC[:, 0], batch.labels.float(), weights_B), {}
        if self.kind == "many":
            loss = binary_cross_entropy(logits_BC, batch.labels.float(), weights_B)
            right = ((logits_BC > 0) == (batch.labels > 0.5)).float().mean(-1)
            return loss, {"accuracy": (weights_B * right).sum().detach()}
        targets_BC = self._targets(batch.labels, logits_BC.shape[1])
        loss = soft_cross_entropy(logits_BC, self._smoothed(targets_BC), self._weighted(weights_B, targets_BC))
        hit = targets_BC.gather(1, logits_BC.argmax(-1, keepdim=True)).squeeze(1)
        return loss, {"accuracy": (weights_B * hit).sum().detach()}

    def units(self, batch: Batch) -> float:
        """Weight of the examples (class weights do not count: they are scaled to a mean of 1 by their maker)."""
        return float(_weights(batch).sum())

    def _targets(self, labels: torch.Tensor, classes: int) -> torch.Tensor:
        return labels.float() if labels.ndim == 2 else F.one_hot(labels.long(), classes).float()

    def _smoothed(self, targets_BC: torch.Tensor) -> torch.Tensor:
        return targets_BC * (1 - self.smoothing) + self.smoothing / targets_BC.shape[1]

    def _weighted(self, weights_B: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
        return weights_B if self.class_weights_C is None else weights_B * (targets_BC @ self.class_weights_C.to(targets_BC))


def _weights(batch: Batch) -> torch.Tensor:
    return batch.weight_B if batch.weight_B is not None else torch.ones(len(batch.tokens_BT), device=batch.tokens_BT.device)
