"""How sparse a model is: the activations of its MLPs' neurons, layer by layer, and its weights.

Columns per layer: `sparsity.layers.k.zero` (share of activations that are exactly zero), `.small` (below `threshold` × the layer's root mean square),
`.neurons` (participation ratio of the neurons' mean energies: the share of neurons in use over all tokens), `.active` (the mean over tokens of the
participation ratio of one token's energies); for weights `sparsity.weights` over all matrices that training moves and `sparsity.<site>.weights` of each:
the share below `threshold` × the matrix's root mean square (.0797 at .1 when normal). Shape letters: B batch, T tokens, N real tokens, F neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from knowhow.maths.spectra import participation
from knowhow.model.loaded import device_of, hidden_matrices, site_of, without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.observe.looking import head_rows, unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, StepInfo


class Sparsity:
    """Satisfies Observer. `batches`: the rows looked at (none: the first `rows` of the step's first microbatch); cost: one forward pass of them.
    Raises UsageError at its first look at a family whose parts are not known (model/sites.py)."""

    name = "sparsity"

    def __init__(self, due: When, batches: Sequence[Batch] = (), rows: int = 8, threshold: float = 0.1) -> None:
        self.due = due
        self._batches, self._limit, self._threshold = batches, rows, threshold
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        row = {"step": float(info.step)}
        inner = without_adapter(info.model)
        energies: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(body(inner).depth)}
        with unnoticed(info.model), torch.no_grad():
            for batch in self._batches or [head_rows(info.batches[0], self._limit)]:
                for layer, values_NF in neurons(inner, batch).items():
                    energies[layer].append(values_NF)
        for layer, parts in energies.items():
            row |= {f"sparsity.layers.{layer}.{metric}": value for metric, value in sparsity(torch.cat(parts), self._threshold).items()}
        few = total = 0
        for name, weight in hidden_matrices(info.model).items():
            small = int((weight.detach().abs() < self._threshold * weight.detach().square().mean().sqrt()).sum())
            row[f"sparsity.{site_of(name)}.weights"] = small / weight.numel()
            few, total = few + small, total + weight.numel()
        if total:
            row["sparsity.weights"] = few / total
        self._rows.append(row)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def neurons(inner: torch.nn.Module, batch: Batch) -> dict[int, torch.Tensor]:
    """Activations NF of each layer's neurons at the real tokens of a batch."""
    device = device_of(inner)
    mask_BT = batch.mask_BT.bool().to(device)
    with tap(inner, "layers.*.mlp.act", check=False) as seen:
        inner(input_ids=batch.tokens_BT.to(device), attention_mask=mask_BT.long())
    return {layer: seen[f"layers.{layer}.mlp.act"][mask_BT].float() for layer in range(body(inner).depth)}


def sparsity(values_NF: torch.Tensor, threshold: float) -> dict[str, float]:
    """The four numbers of a layer (see the module)."""
    energies_NF = values_NF.double().square()
    scale = energies_NF.mean().sqrt()
    return {
        "zero": float((values_NF == 0).double().mean()),
        "small": float((values_NF.abs() < threshold * scale).double().mean()),
        "neurons": float(participation(energies_NF.mean(0))),
        "active": float(participation(energies_NF).mean()),
    }
