"""Bigrams, but for a few trigger tokens that are followed by the token before them (Bigram-Backcopy, Guo 2024): a head that is needed now and then.

Token 0 begins every row. Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from knowhow.experiments.attention_only import AttentionOnly
from knowhow.experiments.language import chain, next_token
from knowhow.experiments.system import Drawn, System
from knowhow.types import Batch


@dataclass(frozen=True)
class Backcopy:
    """−log p(next token), summed; metrics: the part of it at triggers (`trigger_loss`) and their number (`triggers`)."""

    triggers: int
    earliest: int = 2
    name: str = "backcopy"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        logits_BTV = model(input_ids=batch.tokens_BT, use_cache=False).logits
        loss_BT = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.targets_BT.flatten(), reduction="none").view_as(batch.tokens_BT)
        at_BT = copies(batch.tokens_BT, self.triggers, self.earliest)
        return loss_BT.sum(), {"trigger_loss": (loss_BT.detach() * at_BT).sum(), "triggers": at_BT.sum()}

    def units(self, batch: Batch) -> float:
        return float(batch.tokens_BT.numel())


def copies(tokens_BT: torch.Tensor, triggers: int, earliest: int = 2) -> torch.Tensor:
    """Where the next token is the token before: at triggers (tokens 1 … `triggers`) from position `earliest` on, where there is a token to copy."""
    return (tokens_BT >= 1) & (tokens_BT <= triggers) & (torch.arange(tokens_BT.shape[1]) >= earliest)


def sequences(chain_VV: torch.Tensor, triggers: int, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Rows BT: token 0, then tokens 1 … V by the chain, or by copying after triggers."""
    tokens = [torch.zeros(rows, dtype=torch.long), 1 + torch.randint(len(chain_VV), (rows,), generator=generator)]
    for position in range(1, length - 1):
        last, before = tokens[-1], tokens[-2]
        following = 1 + torch.multinomial(chain_VV[last - 1], 1, generator=generator)[:, 0]
        tokens.append(torch.where((last <= triggers) & (position >= 2), before, following))
    return torch.stack(tokens, 1)


def backcopy(
    seed: int, *, vocab: int = 32, triggers: int = 3, rows: int = 32, length: int = 32, width: int = 48, normalised: bool = True, begun: bool = True
) -> System:
    """One layer of one head that sees earlier tokens only, so that what it writes says nothing of the chain. `begun` False: rows come without the token
    that begins them. Facts: `idle` (share of tokens that need no copy, from other rows), `softmax` and `begun` (1 or 0)."""
    chain_VV = chain(seed, vocab)
    sample_BT = sequences(chain_VV, triggers, 1000, length + 1, torch.Generator().manual_seed(seed))[:, :-1]
    idle = 1 - float(copies(sample_BT, triggers).float().mean())
    batches = Drawn(lambda generator: next_token(sequences(chain_VV, triggers, rows, length + 2 - begun, generator)[:, 1 - begun :]), seed)
    model = AttentionOnly(seed, vocab=vocab + 1, layers=1, heads=1, width=width, normalised=normalised, itself=False)
    return System(model, Backcopy(triggers, 1 + begun), batches, {"idle": idle, "softmax": float(normalised), "begun": float(begun)})
