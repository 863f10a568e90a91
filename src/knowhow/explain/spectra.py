"""What the weights of heads read and write, whatever they see.

x_i's and x_j's score is x_iᵀ W_Qᵀ W_K x_j ("QK"), and what j's value adds to the stream is W_O W_V x_j ("OV", Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"); both have rank K, so all is computed from K × D factors.
Shape letters: L layers, H and G heads, J key-value heads, K head size, D model, R rank, O outputs of a projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knowhow.errors import UsageError
from knowhow.explain.heads import at_rest
from knowhow.explain.lens import pulled_back
from knowhow.model.loaded import device_of
from knowhow.model.projections import BY_BLOCKS, BY_HEADS, SEPARATE
from knowhow.model.sites import Body, body

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """Weights of one layer's heads as they act on the stream: gains of the norm before (and of one behind attention) multiplied in, a centring norm's
    mean taken out, biases left out. A query head has its group's key and value."""

    query_HKD: Tensor
    key_HKD: Tensor
    value_HKD: Tensor
    out_HDK: Tensor


def factors(model: torch.nn.Module, layer: int) -> Factors:
    """The four matrices of every head of a layer, in float32, separate or fused projections, adapters included.

    Rotation makes the QK form depend on distance: these are the unrotated matrices. Norms of queries and keys (qwen3, gemma3, olmo2), clipping (olmo)
    and the 1/√K of the scores act behind them and are left out. Raises UsageError for a model in training and a layer or projections it does not have."""
    parts = at_rest(model)
    if not 0 <= layer < parts.depth:
        raise UsageError(f"layer {layer}", allowed=f"0 to {parts.depth - 1}")
    anatomy, block, H = parts.anatomy, parts.block(layer), parts.heads
    projected = _projections(parts, layer, H, parts.groups)
    if anatomy.norm:
        projected = [_folded(block.get_submodule(anatomy.norm), part) for part in projected]
    query_HKD, key_HKD, value_HKD = (part.repeat_interleave(H // len(part), 0) for part in projected)
    mixed_HKD = _matrix(block.get_submodule(anatomy.head_out), query_HKD.flatten(0, 1).shape[0], device_of(model)).T.reshape(query_HKD.shape)
    if anatomy.attn_out.path != anatomy.head_out:
        mixed_HKD = _folded(block.get_submodule(anatomy.attn_out.path), mixed_HKD)
    return Factors(query_HKD, key_HKD, value_HKD, mixed_HKD.transpose(1, 2))


@dataclass(frozen=True, slots=True)
class Spectra:
    """Singular values of every head, largest first, LHR with R the smaller of K and D: of W_Qᵀ W_K (unrotated, see `factors`) and of W_O W_V."""

    qk_LHR: Tensor
    ov_LHR: Tensor


@torch.no_grad()
def spectra(model: torch.nn.Module) -> Spectra:
    """Singular values of the QK and OV forms (Elhage et al. 2021). Raises UsageError for families whose projections are not known."""
    found = []
    for layer in range(body(model).depth):
        part = factors(model, layer)
        pairs = ((part.query_HKD.mT, part.key_HKD.mT), (part.out_HDK, part.value_HKD.mT))
        found.append([torch.linalg.svdvals(_triangle(left) @ _triangle(right).mT) for left, right in pairs])
    qk, ov = (torch.stack(one) for one in zip(*found, strict=True))
    return Spectra(qk, ov)


@dataclass(frozen=True, slots=True)
class Composition:
    """How far the reader's queries, keys or values read what the sender writes: [sender's layer, its head, reader's layer, its head], LHLH, 0 to 1,
    NaN where the reader does not come after the sender. `random`: the root mean square of each score were the sender's matrix turned at random."""

    query: Tensor
    key: Tensor
    value: Tensor
    random: float


@torch.no_grad()
def composition(model: torch.nn.Module) -> Composition:
    """Composition scores (Elhage et al. 2021): ‖W_QKᵀ W_OV‖ (queries), ‖W_QK W_OV‖ (keys), ‖W_OV W_OV‖ (values), Frobenius, each over both factors' norms.

    For a turn drawn at random E‖A U B‖² = ‖A‖² ‖B‖² / D whatever the spectra, so the baseline is D^−½ exactly. The QK form is the unrotated one (see
    `factors`); in encoders that norm after each addition the gains in between are left out. Holds all factors: 4·L·H·K·D numbers."""
    layers = [factors(model, layer) for layer in range(body(model).depth)]
    L, (H, _, D) = len(layers), layers[0].query_HKD.shape
    found = torch.full((3, L, H, L, H), torch.nan, device=layers[0].query_HKD.device)
    for sender, sent in enumerate(layers):
        wrote_GRK = _triangle(sent.value_HKD.mT)
        sent_norm_G = _norm(_triangle(sent.out_HDK) @ wrote_GRK.mT)
        for reader in range(sender + 1, L):
            part = layers[reader]
            query, key, out = (_triangle(one) for one in (part.query_HKD.mT, part.key_HKD.mT, part.out_HDK))
            norm_H, norm_of_value_H = _norm(query @ key.mT), _norm(out @ _triangle(part.value_HKD.mT).mT)
            for port, (left_HRK, read_HKD, own_H) in enumerate(
                ((key, part.query_HKD, norm_H), (query, part.key_HKD, norm_H), (out, part.value_HKD, norm_of_value_H))
            ):
                met_HGKK = read_HKD[:, None] @ sent.out_HDK[None]
                score_HG = _norm(left_HRK[:, None] @ met_HGKK @ wrote_GRK.mT[None])
                found[port, sender, :, reader] = (score_HG / own_H[:, None] / sent_norm_G).T
    return Composition(*found.unbind(0), random=D**-0.5)


def _projections(parts: Body, layer: int, H: int, J: int) -> list[Tensor]:
    """Matrices HKD, JKD, JKD of a layer's queries, keys and values."""
    attention, D, device = parts.attention(layer), parts.root.config.get_text_config().hidden_size, device_of(parts.root)
    children = dict(attention.named_children())
    for names in SEPARATE:
        if all(name in children for name in names):
            return [_matrix(children[name], D, device).view(heads, -1, D) for name, heads in zip(names, (H, J, J), strict=True)]
    fused = [name for name in (*BY_BLOCKS, *BY_HEADS) if name in children]
    if not fused:
        raise UsageError(f"projections {', '.join(children)}", allowed=", ".join([*(" ".join(names) for names in SEPARATE), *BY_BLOCKS, *BY_HEADS]))
    matrix_OD = _matrix(children[fused[0]], D, device)
    if fused[0] in BY_HEADS:
        return list(matrix_OD.view(H, 3, -1, D).unbind(1))
    return list(matrix_OD.view(H + 2 * J, -1, D).split((H, J, J)))


def _matrix(module: torch.nn.Module, width: int, device: torch.device, *, block: int = 1024) -> Tensor:
    """W (O × width, float32) of an affine module, from its slopes: whatever holds its weights, and with no bias to round against. One of integers has
    no slopes: what it makes of each unit vector."""
    like = next(module.parameters(), None)
    if like is None:
        ends = torch.cat([torch.zeros(1, width, device=device), torch.eye(width, device=device)])
        made = module(ends)
        return (made[1:] - made[:1]).T.float()
    dtype = like.dtype
    outputs = module(torch.zeros(1, width, device=device, dtype=dtype)).shape[-1]
    found = []
    for rows in torch.arange(outputs, device=device).split(block):
        with torch.enable_grad():
            empty = torch.zeros(len(rows), width, device=device, dtype=dtype, requires_grad=True)
            (slope,) = torch.autograd.grad(module(empty), empty, torch.nn.functional.one_hot(rows, outputs).to(dtype))
        found.append(slope.float())
    return torch.cat(found)


def _folded(norm: torch.nn.Module, rows_HKD: Tensor) -> Tensor:
    """Each row times the norm's gain, and without its mean where the norm centres: what a norm does to a vector of root mean square 1 and mean 0."""
    unit_D = torch.ones_like(rows_HKD[0, 0])
    unit_D[::2] = -1
    unit_D -= unit_D.mean()
    unit_D /= unit_D.square().mean().sqrt()
    like = next(norm.parameters(), unit_D)
    return pulled_back(norm, unit_D.to(like.dtype).expand_as(rows_HKD), rows_HKD)


def _triangle(tall: Tensor) -> Tensor:
    """R of QR: norms and singular values of a product with it are those of the product with the tall matrix."""
    return torch.linalg.qr(tall, mode="r").R


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)
