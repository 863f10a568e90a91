"""Random tokens of which a segment comes back: the next token is known only where it repeats.

Shape letters: B batch, T tokens.
"""

from __future__ import annotations

import torch

from knowhow.experiments.attention_only import AttentionOnly
from knowhow.experiments.language import Language
from knowhow.experiments.system import Drawn, System
from knowhow.observe.circuits import repeats
from knowhow.types import Batch


def copying(
    seed: int, *, vocab: int = 32, rows: int = 32, length: int = 32, segment: int = 8, layers: int = 2, width: int = 48, distance: int | None = None
) -> System:
    """An attention-only model supervised on the repeated tokens. `distance`: the segment always comes back that far on; left out, at random distances.

    Facts: `copied_segment`, `layers`, `random_distance` (1 or 0), `copy_loss_blind` (ln vocab)."""

    def draw(generator: torch.Generator) -> Batch:
        tokens_BT, source_BT = repeats(generator, vocab, rows, length, segment, distance)
        targets_BT = torch.where(source_BT >= 0, tokens_BT.gather(1, source_BT.clamp(min=0)), -100)
        return Batch(tokens_BT, torch.ones_like(tokens_BT), targets_BT)

    facts = {"copied_segment": segment, "layers": layers, "random_distance": float(distance is None), "copy_loss_blind": float(torch.tensor(vocab).log())}
    return System(AttentionOnly(seed, vocab=vocab, layers=layers, heads=2, width=width), Language(), Drawn(draw, seed), facts)
