"""How far a linear network has learned each mode of its task: the singular values of the inputs' and targets' correlation, and the part of the network's
map that lies on each.

What laws/mode_times.py reads: `modes.learned.k` uₖᵀWvₖ ÷ sₖ, strongest mode first; `modes.whiteness` the largest entry of |1/B Σ xxᵀ − 1|;
`modes.coupling` the share of the map's square that is on no mode. Shape letters: B rows, D inputs, O outputs, K modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import StepInfo


class Modes:
    """Satisfies Observer. For models that are linear in an input BD; the row of a step describes the weights before its update."""

    name = "modes"

    def __init__(self, due: When) -> None:
        self.due = due
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        batch = info.batches[0]
        inputs_BD, targets_BO = batch.tokens_BT, batch.labels
        assert targets_BO is not None
        count = len(inputs_BD)
        inputs_DD = inputs_BD.T @ inputs_BD / count
        left_OK, strengths_K, right_KD = torch.linalg.svd(targets_BO.T @ inputs_BD / count, full_matrices=False)
        same_DD = torch.eye(inputs_BD.shape[1], dtype=inputs_BD.dtype, device=inputs_BD.device)
        with unnoticed(info.model), torch.no_grad():
            map_OD = info.model(same_DD).T
        parts_KK = left_OK.T @ map_OD @ right_KD.T
        learned = (parts_KK.diagonal() / strengths_K).tolist()
        coupling = 1 - parts_KK.diagonal().square().sum() / map_OD.square().sum()
        row = {"step": info.step, "modes.whiteness": float((inputs_DD - same_DD).abs().max()), "modes.coupling": float(coupling)}
        self._rows.append(row | {f"modes.learned.{k + 1}": value for k, value in enumerate(learned)})

    def after(self, info: StepInfo) -> None:
        pass

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
