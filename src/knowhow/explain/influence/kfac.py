"""The curvature of a loss in the shape of its layers (K-FAC, Martens & Grosse 2015, arXiv 1503.05671), with eigenvalues taken from the rows' own gradients
(EK-FAC, George et al. 2018, arXiv 1806.03884), as Grosse et al. 2023 (arXiv 2308.03296) use it for influence.

Of a linear layer: A = mean of (what it read)(what it read)ᵀ and S = mean of (gradient of what it gave)(that)ᵀ over the tokens that the loss hangs on,
eigenvectors Q_A and Q_S, and Λ = mean over rows of (Q_Sᵀ G Q_A)², G being the row's gradient. The curvature is then (Q_S ⊗ Q_A) Λ (Q_S ⊗ Q_A)ᵀ. It
takes each layer for itself. Parameters of other modules (norms, embeddings, tied tables) get the diagonal of the same matrix, or are left out.
Shape letters: B rows of a batch, N all rows, T tokens, I inputs and E outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from knowhow.errors import UsageError
from knowhow.explain.influence.per_example import Block, Loss, blocks, flat, look, row_gradients
from knowhow.protocols import Progress

DAMPING = 0.1
"""Share of a layer's mean eigenvalue that is added to every one of them (Grosse et al. 2023)."""
NOTHING = 1e-5
"""Share of the largest output gradient below which a position's own is rounding (a first token's query, which can only look at itself)."""
Others = Literal["diagonal", "left out"]


@dataclass(frozen=True, slots=True)
class Basis:
    """Eigenvectors of one linear layer, in columns: of its output gradients EE and of its inputs II."""

    left: torch.Tensor
    right: torch.Tensor

    def turned(self, grads_BEI: torch.Tensor) -> torch.Tensor:
        """Gradients in the eigenbasis."""
        return self.left.T @ grads_BEI @ self.right


@dataclass(frozen=True, slots=True)
class Curvature:
    """`bases`: linear block → eigenvectors; `values`: block → eigenvalues EI, or the diagonal in the parameter's shape; `rows`: N behind them."""

    bases: Mapping[str, Basis]
    values: Mapping[str, torch.Tensor]
    rows: int
    damping: float = DAMPING

    def whiten(self, block: str, grads: torch.Tensor) -> torch.Tensor | None:
        """Gradients B… turned into the eigenbasis and divided by √(Λ + damping): inner products of two such are g (H + damping)⁻¹ g'. None: left out."""
        if block not in self.values:
            return None
        return self._turned(block, grads) * self._damped(block).rsqrt()

    def solve(self, block: str, grads: torch.Tensor) -> torch.Tensor | None:
        """(H + damping)⁻¹ times gradients B…, in the parameters' own coordinates."""
        if block not in self.values:
            return None
        scaled = self._turned(block, grads) / self._damped(block)
        return self.bases[block].left @ scaled @ self.bases[block].right.T if block in self.bases else scaled

    def _turned(self, block: str, grads: torch.Tensor) -> torch.Tensor:
        return self.bases[block].turned(grads) if block in self.bases else grads

    def _damped(self, block: str) -> torch.Tensor:
        values = self.values[block]
        # a direction without curvature (the sum of all logits) has no gradients either: rounding alone must not be divided by nothing
        least = max(float(values.max()) * torch.finfo(values.dtype).eps, torch.finfo(values.dtype).tiny)
        return (values + self.damping * values.mean()).clamp(min=least)


def curvature(
    model: torch.nn.Module, fisher: Sequence[Loss], batches: Sequence[Any], *,
    damping: float = DAMPING, others: Others = "diagonal", progress: Progress | None = None,
) -> Curvature:  # fmt: skip
    """Two passes over the rows: factors, then eigenvalues.

    `fisher`: losses whose squared gradients add up to the curvature. For the true Fisher: the loss of labels drawn from the model's own answers
    (row_losses.drawn), or one weighted loss per class (row_losses.every_class), which is exact; the training loss itself gives the empirical
    Fisher, which is another matrix (Kunstner et al. 2019, arXiv 1905.12558). Raises UsageError for no batches, no losses, negative damping."""
    if not batches or not fisher or damping < 0:
        raise UsageError(f"{len(batches)} batches, {len(fisher)} losses, damping {damping}", allowed="at least one batch and loss, damping from 0")
    parts = [part for part in blocks(model) if part.kind == "linear" or others == "diagonal"]
    if not parts:
        raise UsageError("a model of which no linear layer is trainable", fix='take others="diagonal"')
    bases = _bases(model, fisher, batches, parts, progress)
    sums: dict[str, torch.Tensor] = {}
    rows = 0
    for done, batch in enumerate(batches):
        if progress is not None:
            progress("eigenvalues", done, len(batches))
        for loss in fisher:
            found = row_gradients(model, loss, batch, parts)
            for name, grads in found.items():
                turned = bases[name].turned(grads) if name in bases else grads
                squared = turned.square().sum(0)
                sums[name] = sums[name] + squared if name in sums else squared
        rows += len(next(iter(found.values())))
    return Curvature(bases, {name: value / rows for name, value in sums.items()}, rows, damping)


def _bases(
    model: torch.nn.Module, fisher: Sequence[Loss], batches: Sequence[Any], parts: Sequence[Block], progress: Progress | None
) -> dict[str, Basis]:  # fmt: skip
    linear = [part for part in parts if part.kind == "linear"]
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for done, batch in enumerate(batches if linear else ()):
        if progress is not None:
            progress("Kronecker factors", done, len(batches))
        for loss in fisher:
            seen = look(model, loss, batch, linear)
            for part in linear:
                for call in seen.calls.get(part.owners[0][0], ()):
                    read_BTI, grad_BTE = flat(call, bias=len(part.names) == 2)
                    # positions that the loss does not hang on (padding, what follows the answer) say nothing of the layer at work
                    size_BT = grad_BTE.abs().amax(-1)
                    used = size_BT > NOTHING * size_BT.max()
                    _add(inputs, part.name, read_BTI[used])
                    _add(outputs, part.name, grad_BTE[used])
    dtype = next(model.parameters()).dtype
    return {name: Basis(_vectors(outputs[name], dtype), _vectors(inputs[name], dtype)) for name in inputs}


def _add(into: dict[str, torch.Tensor], name: str, values_ND: torch.Tensor) -> None:
    wide_ND = values_ND.double()
    product = wide_ND.T @ wide_ND
    into[name] = into[name] + product if name in into else product


def _vectors(moment_DD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Eigenvectors. Only their directions matter: the scale of a factor goes into the eigenvalues."""
    vectors: torch.Tensor = torch.linalg.eigh(moment_DD)[1]
    return vectors.to(dtype)
