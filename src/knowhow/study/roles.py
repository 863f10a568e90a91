"""Scores of attention heads as functions that can be differentiated, and an observer of them for models that do not predict tokens.

Shape letters: B batch, T queries, S keys, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.model.loaded import device_of, without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.observe.circuits import SETTLED, induction, previous, repeats
from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo

ROLES = ("previous", "induction", "sink")
ROWS, SEGMENT = 32, 8


class Roles:
    """Satisfies Observer: `roles.layers.L.heads.H.previous`, `.induction` and `.sink` of every head, all on random tokens in which a segment comes back
    (observe/circuits.py). Cost: one forward pass."""

    name = "roles"

    def __init__(self, due: When, length: int = 32) -> None:
        self.due = due
        self._length = length
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        row = {"step": float(info.step)}
        with unnoticed(info.model), torch.no_grad():
            for layer in range(body(info.model).depth):
                for role, scores_H in scores(info.model, layer, self._length).items():
                    row |= {f"roles.layers.{layer}.heads.{head}.{role}": float(score) for head, score in enumerate(scores_H)}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def scores(model: torch.nn.Module, layer: int, length: int = 32) -> dict[str, torch.Tensor]:
    """Role → H of one layer; with gradients to the parameters where gradients are on."""
    inner = without_adapter(model)
    vocabulary = inner.config.get_text_config().vocab_size
    tokens_BT, source_BT = (part.to(device_of(inner)) for part in repeats(torch.Generator().manual_seed(0), vocabulary, ROWS, length, SEGMENT))
    site = f"layers.{layer}.attn.pattern"
    with tap(inner, site, grad=torch.is_grad_enabled(), check=False) as seen:
        inner(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT))
    pattern_BHTS = seen[site]
    return {"previous": previous(pattern_BHTS), "induction": induction(pattern_BHTS, source_BT), "sink": pattern_BHTS[:, :, SETTLED:, 0].mean((0, 2))}
