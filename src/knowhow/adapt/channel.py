"""A generative classifier: the language-model loss on the text, its labels given before it (model/channel.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import IGNORE
from knowhow.model.channel import UNKNOWN
from knowhow.types import Batch


@dataclass(frozen=True)
class Channel:
    """−log P(text | labels), summed over the text's tokens; for one label its own token is a target too, so that −log P(label, text) is learnt.

    `states`: token ids of the labels, C or C3 (`model.channel.states`); `start`: the token before them. Of many labels each visit hides a random
    share, drawn anew for each row (the square of a uniform one: few, and now and then all), for answering asks for one while the others are unknown."""

    states: torch.Tensor
    start: int
    name: str = "channel"
    next_token: NextToken = field(default_factory=NextToken)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        given_BP = self.given(batch.labels).to(batch.tokens_BT)
        start_B1 = torch.full_like(given_BP[:, :1], self.start)
        text_BT = batch.tokens_BT.masked_fill(~batch.mask_BT, IGNORE)
        told_BP = given_BP if self.states.ndim == 1 else torch.full_like(given_BP, IGNORE)
        tokens_BT = torch.cat([start_B1, given_BP, batch.tokens_BT], 1)
        targets_BT = torch.cat([told_BP, text_BT, torch.full_like(start_B1, IGNORE)], 1)
        mask_BT = torch.cat([torch.ones_like(tokens_BT[:, : 1 + given_BP.shape[1]], dtype=torch.bool), batch.mask_BT], 1)
        return self.next_token(model, replace(batch, tokens_BT=tokens_BT, mask_BT=mask_BT, targets_BT=targets_BT))

    def given(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels' tokens, B1 of B (one label), BC of a 0/1 matrix BC (many)."""
        if self.states.ndim == 1:
            return self.states[labels.long().cpu()][:, None]
        state_BC = (labels > 0.5).long().cpu()
        hidden_BC = torch.rand(state_BC.shape) < torch.rand(len(state_BC), 1).square()
        state_BC = state_BC.masked_fill(hidden_BC, UNKNOWN)
        return self.states.expand(len(state_BC), -1, -1).gather(2, state_BC[..., None])[..., 0]

    def units(self, batch: Batch) -> float:
        """Tokens of the texts (and the label's, where there is one), each times its row's weight."""
        counted_B = batch.mask_BT.sum(1) + (self.states.ndim == 1)
        return float(counted_B.sum() if batch.weight_B is None else (counted_B * batch.weight_B).sum())
