"""Outliers of the residual stream, layer by layer: `outliers.layers.k.largest` (largest magnitude behind the layer) and `.kurtosis` (of all features at all
real tokens together; 3 is normal)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths.spectra import kurtosis
from knowhow.model.loaded import device_of, without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.observe.looking import head_rows, unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo


class Outliers:
    """Satisfies Observer. `batches`: the rows looked at (none: the first `rows` of the step's first microbatch); cost: one forward pass of them.
    Raises UsageError at its first look at a family whose parts are not known (model/sites.py)."""

    name = "outliers"

    def __init__(self, due: When, batches: Sequence[Batch] = (), rows: int = 8) -> None:
        self.due = due
        self._batches, self._limit = batches, rows
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        inner, device = without_adapter(info.model), device_of(info.model)
        streams: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(body(inner).depth)}
        with unnoticed(info.model), torch.no_grad():
            for batch in self._batches or [head_rows(info.batches[0], self._limit)]:
                mask_BT = batch.mask_BT.bool().to(device)
                with tap(inner, "layers.*.resid_post", check=False) as seen:
                    inner(input_ids=batch.tokens_BT.to(device), attention_mask=mask_BT.long())
                for layer, parts in streams.items():
                    parts.append(seen[f"layers.{layer}.resid_post"][mask_BT].float())
        row = {"step": float(info.step)}
        for layer, parts in streams.items():
            values_ND = torch.cat(parts)
            row |= {f"outliers.layers.{layer}.largest": float(values_ND.abs().max()), f"outliers.layers.{layer}.kurtosis": kurtosis(values_ND)}
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows
