"""What a linear probe reads off each layer: `probes.layers.k.score` on rows it was not fitted on, and `.shuffled`, the same probe fitted to shuffled labels
(the control). Score: share right, of labels right, or of variance explained (maths/linear.py). Shape letters: B batch, T tokens, N rows, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths.linear import Answer, fit, score_of
from knowhow.model.loaded import device_of, without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo

FEWEST = 8
"""Rows below which half of them are no sample to fit on."""


class Probes:
    """Satisfies Observer. `batches`: labelled rows (none: the step's own); half of them are fitted on, the others scored. `encoder`: its first token
    is read, else the last real one. Cost: one forward pass and two fits a layer. Rows without labels leave nothing."""

    name = "probes"

    def __init__(self, due: When, batches: Sequence[Batch] = (), *, encoder: bool = False, penalty: float = 1e-2) -> None:
        self.due = due
        self._batches, self._encoder, self._penalty = batches, encoder, penalty
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        batches = [batch for batch in self._batches or info.batches if batch.labels is not None]
        if sum(len(batch.tokens_BT) for batch in batches) < FEWEST:
            return
        inner = without_adapter(info.model)
        with unnoticed(info.model), torch.no_grad():
            read = [self._read(inner, batch) for batch in batches]
        features = {layer: torch.cat([one[layer] for one in read]) for layer in range(body(inner).depth)}
        if not all(bool(torch.isfinite(values_ND).all()) for values_ND in features.values()):
            return
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None]).cpu()
        self._rows.append({"step": float(info.step)} | scores(features, labels, self._penalty))

    def _read(self, inner: torch.nn.Module, batch: Batch) -> dict[int, torch.Tensor]:
        device = device_of(inner)
        with tap(inner, "layers.*.resid_post", check=False) as seen:
            inner(input_ids=batch.tokens_BT.to(device), attention_mask=batch.mask_BT.long().to(device))
        at_B = torch.zeros(len(batch.mask_BT), dtype=torch.long) if self._encoder else batch.mask_BT.long().sum(1).cpu() - 1
        place = (torch.arange(len(at_B)), at_B)
        return {layer: seen[f"layers.{layer}.resid_post"].cpu()[place].float() for layer in range(body(inner).depth)}

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def kind_of(labels: torch.Tensor) -> tuple[Answer, int]:
    """What labels ask for and how many outputs: an index N; shares or marks NC (one when every row sums to 1, else many); numbers N."""
    if labels.ndim == 2:
        return ("one" if bool(((labels.double().sum(-1) - 1).abs() < 1e-6).all()) else "many"), labels.shape[1]
    return ("number", 1) if labels.is_floating_point() else ("one", int(labels.max()) + 1)


def scores(features: Mapping[int, torch.Tensor], labels: torch.Tensor, penalty: float) -> dict[str, float]:
    """Score of each layer's probe and of its control: fitted on one half of the rows, scored on the other. The halves and the shuffle are the same at every
    look, and torch's own random state is not touched."""
    kind, outputs = kind_of(labels)
    random = torch.Generator().manual_seed(0)
    order_N = torch.randperm(len(labels), generator=random)
    fitted, scored = order_N[: len(labels) // 2], order_N[len(labels) // 2 :]
    shuffled = fitted[torch.randperm(len(fitted), generator=random)]
    row = {}
    for layer, values_ND in features.items():
        for metric, given in (("score", fitted), ("shuffled", shuffled)):
            reader = fit(values_ND[fitted], labels[given], kind, outputs, penalty=penalty, steps=30)
            row[f"probes.layers.{layer}.{metric}"] = score_of(reader(values_ND[scored]), labels[scored], kind)
    return row
