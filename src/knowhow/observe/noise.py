"""How noisy the gradient is, estimated twice on rows that share nothing: what laws/noise_scale.py reads.

On one half of the first microbatch's rows, gradient by gradient: `noise.trace` tr Σ and `noise.square` |G|². On the other half, from batches:
`noise.small` and `noise.large`, mean |G|² of batches of `noise.rows_small` and `noise.rows_large` rows. A row (a sequence) is one draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from knowhow.maths import hvp
from knowhow.maths.noise import direct
from knowhow.observe.looking import head_rows, trained, unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo


class Noise:
    """Satisfies Observer. `small`: rows of the small batches; cost: a pass for each row of one half, and two of the other half. Needs 4 rows."""

    name = "noise"

    def __init__(self, due: When, small: int = 4) -> None:
        self.due = due
        self._small = small
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        batch = info.batches[0]
        half = len(batch.tokens_BT) // 2
        small = min(self._small, half // 2)
        if small < 1:
            return
        with unnoticed(info.model):
            each_NP = torch.stack([_gradient(info, batch, row, 1) for row in range(half)])
            starts = range(half, 2 * half - small + 1, small)
            parts = [_gradient(info, batch, start, small) for start in starts]
        trace, square = direct(each_NP)
        whole = torch.stack(parts).double().mean(0)
        row = {"step": info.step, "noise.trace": trace, "noise.square": square, "noise.rows_small": small, "noise.rows_large": small * len(parts)}
        squares = [float(part.double().square().sum()) for part in parts]
        self._rows.append(row | {"noise.small": sum(squares) / len(squares), "noise.large": float(whole.square().sum())})

    def after(self, info: StepInfo) -> None:
        """Nothing to see after the update."""

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def _gradient(info: StepInfo, batch: Batch, start: int, rows: int) -> torch.Tensor:
    """∇ of the mean loss on rows start … start + rows, flat P."""
    chosen = head_rows(_from(batch, start), rows)
    parameters = list(trained(info.model).values())
    return hvp.flat(hvp.gradient(lambda: info.objective(info.model, chosen)[0] / info.objective.units(chosen), parameters))


def _from(batch: Batch, start: int) -> Batch:
    """The rows of a batch from `start` on."""

    def tail(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[start:]

    return replace(
        batch,
        tokens_BT=batch.tokens_BT[start:],
        mask_BT=batch.mask_BT[start:],
        targets_BT=tail(batch.targets_BT),
        labels=tail(batch.labels),
        onset_BK=tail(batch.onset_BK),
        weight_B=tail(batch.weight_B),
        groups=batch.groups[start:],
        rewards=tail(batch.rewards),
        teacher_logits=tail(batch.teacher_logits),
        ids=batch.ids[start:],
    )
