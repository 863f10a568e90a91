"""What attention heads do: attend to the token before, to what followed the same token earlier (induction), to the first token (sink).

What laws/induction.py and laws/sinks.py read: `circuits.previous`, `circuits.induction`, `circuits.sink` (the largest over the heads), `circuits.copy_loss`,
and the same by head, `circuits.layers.L.heads.H.previous`. Shape letters: B batch, T queries, S keys, H heads, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from knowhow.observe.looking import head_rows, unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo

SETTLED = 4
"""Queries before this position see too few keys to tell a sink from an even spread."""


class Circuits:
    """Satisfies Observer. Sinks are read on the first `rows` rows of the step's batch; with a `vocab`, the other scores on `rows` sequences of random tokens in
    which a `segment` comes back at random distances, so that neither a token nor a distance alone tells where to look. Cost: a copy of the model, 2 passes."""

    name = "circuits"

    def __init__(self, due: When, vocab: int = 0, rows: int = 32, length: int = 32, segment: int = 8) -> None:
        self.due = due
        self._limit = rows
        self._probe = repeats(torch.Generator().manual_seed(0), vocab, rows, length, segment) if vocab else None
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        with unnoticed(info.model):
            scores = by_head(
                "sink",
                [pattern_BHTS[:, :, SETTLED:, 0].mean((0, 2)) for pattern_BHTS in patterns(info.model, head_rows(info.batches[0], self._limit).tokens_BT)],
            )
            if self._probe is not None:
                tokens_BT, source_BT = self._probe
                seen = patterns(info.model, tokens_BT)
                scores |= by_head("previous", [previous(pattern_BHTS) for pattern_BHTS in seen])
                scores |= by_head("induction", [induction(pattern_BHTS, source_BT) for pattern_BHTS in seen])
                scores["circuits.copy_loss"] = copy_loss(info.model, tokens_BT, source_BT)
        self._rows.append({"step": info.step, **scores})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def repeats(generator: torch.Generator, vocab: int, rows: int, length: int, segment: int, distance: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens BT in which `segment` tokens come back once, at a random distance (or always at `distance`); the others differ where the vocabulary
    suffices, so that nothing else repeats. And BT: where the token after each repeated one first stood (−1: its next token is not repeated)."""
    tokens_BT = torch.randint(vocab, (rows, length), generator=generator)
    if vocab >= length:
        tokens_BT = torch.rand(rows, vocab, generator=generator).argsort(1)[:, :length]
    farthest = length - segment
    distance_B = torch.randint(segment, farthest + 1, (rows,), generator=generator) if distance is None else torch.full((rows,), distance)
    start_B = (torch.rand(rows, generator=generator) * (farthest - distance_B + 1)).long()
    from_BS = start_B[:, None] + torch.arange(segment)
    to_BS = from_BS + distance_B[:, None]
    tokens_BT.scatter_(1, to_BS, tokens_BT.gather(1, from_BS))
    source_BT = torch.full_like(tokens_BT, -1).scatter_(1, to_BS[:, :-1], from_BS[:, 1:])
    return tokens_BT, source_BT


def patterns(model: torch.nn.Module, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each layer's attention BHTS in float32, by a copy of the model that keeps it."""
    reader = copy.deepcopy(model).eval()
    if isinstance(reader, PreTrainedModel):
        reader.set_attn_implementation("eager")
    with torch.inference_mode():
        return tuple(pattern_BHTS.float() for pattern_BHTS in reader(input_ids=tokens_BT, use_cache=False, output_attentions=True).attentions)


def previous(pattern_BHTS: torch.Tensor) -> torch.Tensor:
    """Mean attention to the token before: H."""
    return pattern_BHTS.diagonal(-1, 2, 3).mean((0, 2))


def induction(pattern_BHTS: torch.Tensor, source_BT: torch.Tensor) -> torch.Tensor:
    """Mean attention of repeated tokens to what followed them the first time (prefix matching, Olsson 2022): H."""
    at_BHT = pattern_BHTS.gather(3, source_BT.clamp(min=0)[:, None, :, None].expand(-1, pattern_BHTS.shape[1], -1, 1))[..., 0]
    return at_BHT.transpose(1, 2)[source_BT >= 0].mean(0)


def copy_loss(model: torch.nn.Module, tokens_BT: torch.Tensor, source_BT: torch.Tensor) -> float:
    """Mean −log p of the next token where it is a repeated one, in nats."""
    with torch.inference_mode():
        log_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float().log_softmax(-1)
    right_BT = log_BTV.gather(2, tokens_BT.gather(1, source_BT.clamp(min=0))[..., None])[..., 0]
    return float(-right_BT[source_BT >= 0].mean())


def by_head(score: str, layers: Sequence[torch.Tensor]) -> dict[str, float]:
    """The largest over the heads, and each by its place; `layers`: H each."""
    each = {f"circuits.layers.{layer}.heads.{head}.{score}": float(value) for layer, values_H in enumerate(layers) for head, value in enumerate(values_H)}
    return {f"circuits.{score}": max(each.values()), **each}
