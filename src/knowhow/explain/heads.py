"""What single heads do: where they look, which activations they leave behind, and what their weights read and write.

Patterns show what a head did on the given rows. Weights show what it could do: x_i's and x_j's score is x_iᵀ W_Qᵀ W_K x_j ("QK"), and what j's value
adds to the stream is W_O W_V x_j ("OV", Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"); both have rank K, so all is
computed from K × D factors. Shape letters: B rows, T positions (queries), S positions (keys), L layers, H and G heads, J key-value heads, K head size,
D model, R rank, O outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.explain.lens import pulled_back
from knowhow.model.loaded import device_of
from knowhow.model.replay import Recording
from knowhow.model.sites import Body, body
from knowhow.model.taps import tap

Tensor = torch.Tensor
THRESHOLDS: Mapping[str, float] = MappingProxyType({"previous": 0.4, "duplicate": 0.4, "induction": 0.4, "sink": 0.3})
"""The score from which a head has a role: 0.3 for sinks is Gu et al.'s ε; 0.4 for the others is a convention of ours."""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Mean attention (0 to 1) that a head's queries pay to their targets, by name of score, each BLH; NaN in rows without such a query."""

    values: Mapping[str, Tensor]

    @property
    def means(self) -> dict[str, Tensor]:
        """LH of each score, over the rows that have it."""
        return {name: value_BLH.nanmean(0) for name, value_BLH in self.values.items()}

    def roles(self, thresholds: Mapping[str, float] = THRESHOLDS) -> tuple[tuple[str, ...], ...]:
        """Of each layer and head the largest mean score that reaches its threshold, or "other". Raises UsageError for a score that is not there."""
        unknown = [name for name in thresholds if name not in self.values]
        if unknown or not thresholds:
            raise UsageError(f"a threshold of {', '.join(unknown) or 'no score'}", allowed=", ".join(self.values))
        names = list(thresholds)
        means_NLH = torch.stack([self.means[name].nan_to_num(0.0) for name in names])
        floors_N11 = torch.tensor([thresholds[name] for name in names], device=means_NLH.device).view(-1, 1, 1)
        best_LH = torch.where(means_NLH >= floors_N11, means_NLH, -1.0).max(0)
        pairs = zip(best_LH.values.tolist(), best_LH.indices.tolist(), strict=True)
        return tuple(tuple(names[which] if value >= 0 else "other" for value, which in zip(*row, strict=True)) for row in pairs)


@torch.no_grad()
def head_scores(model: torch.nn.Module, inputs: Mapping[str, Any], *, rows: int = 8) -> HeadScores:
    """Scores of every head on given token rows (`inputs`: the model's keyword arguments, input_ids BT; padding is no query and no target).

    previous: attention of each token to the one before. duplicate: to earlier occurrences of the same token (Wang et al. 2022, arXiv 2211.00593).
    induction: to the tokens after those ("prefix matching", Olsson et al. 2022, arXiv 2209.11895; meant for `repeated_tokens`, where only a copy has a
    past). sink: to the first token (Gu et al. 2024, arXiv 2410.10781), the first token's own query left out. `rows`: the most that run together.
    Raises UsageError for no rows, a model in training, and one whose attention cannot be looked into."""
    tokens_BT = inputs["input_ids"]
    if not len(tokens_BT) or rows < 1:
        raise UsageError(f"{len(tokens_BT)} rows, {rows} together", allowed="at least 1")
    depth, found = _at_rest(model).depth, []
    for index in torch.arange(len(tokens_BT), device=tokens_BT.device).split(rows):
        part = {name: value[index] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        with tap(model, "layers.*.attn.pattern") as seen:
            model(**part)
        real_BT = part["attention_mask"].bool() if "attention_mask" in part else torch.ones_like(part["input_ids"], dtype=torch.bool)
        wanted = targets(part["input_ids"], real_BT)
        patterns = [seen[f"layers.{layer}.attn.pattern"] for layer in range(depth)]
        found.append({name: torch.stack([attention_to(pattern, *where) for pattern in patterns], 1) for name, where in wanted.items()})
    return HeadScores({name: torch.cat([part[name] for part in found]) for name in found[0]})


def targets(tokens_BT: Tensor, real_BT: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a score → (which keys are targets BTS, which queries count BT)."""
    T = tokens_BT.shape[1]
    both_BTS = real_BT[:, :, None] & real_BT[:, None]
    before_TS = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril(-1)
    same_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None]) & before_TS & both_BTS
    after_BTS = torch.zeros_like(same_BTS)
    after_BTS[:, :, 1:] = same_BTS[:, :, :-1]
    first_BS = real_BT & (real_BT.cumsum(1) == 1)
    previous_TS = before_TS.triu(-1)
    found = {"previous": previous_TS & both_BTS, "duplicate": same_BTS, "induction": after_BTS & before_TS, "sink": first_BS[:, None] & before_TS & both_BTS}
    return {name: (target_BTS, target_BTS.any(2)) for name, target_BTS in found.items()}


def attention_to(pattern_BHTS: Tensor, target_BTS: Tensor, query_BT: Tensor) -> Tensor:
    """Mean over the queries that count of the attention that falls on their targets, BH; NaN for rows without such a query."""
    # where, not a product: a padded query's probabilities need not be finite
    paid_BHT = torch.where((target_BTS & query_BT[..., None])[:, None], pattern_BHTS.float(), 0.0).sum(3)
    return paid_BHT.sum(2) / query_BT.sum(1)[:, None]


def repeated_tokens(vocabulary: Sequence[int], *, rows: int, period: int, repeats: int = 2, seed: int = 0, first: int | None = None) -> Tensor:
    """Token rows B × T of `period` random tokens, all different, said `repeats` times over (Olsson et al. 2022); `first` stands before them (a BOS).

    Raises UsageError for fewer tokens than the period, and for fewer than 2 repeats."""
    if not 1 <= period <= len(set(vocabulary)) or repeats < 2 or rows < 1:
        got = f"{rows} rows of period {period}, {repeats} times, from {len(set(vocabulary))} tokens"
        raise UsageError(got, allowed="at least one row, two repeats, and as many tokens as the period is long")
    random, known = torch.Generator().manual_seed(seed), torch.tensor(sorted(set(vocabulary)))
    drawn_BT = torch.stack([known[torch.randperm(len(known), generator=random)[:period]] for _ in range(rows)]).repeat(1, repeats)
    return drawn_BT if first is None else torch.cat([torch.full((rows, 1), first), drawn_BT], 1)


@dataclass(frozen=True, slots=True)
class Massive:
    """One massive activation: where in which layer's resid_post it stands."""

    layer: int
    row: int
    position: int
    feature: int
    value: float


def massive(recorded: Recording, *, size: float = 100.0, ratio: float = 1000.0) -> tuple[Massive, ...]:
    """Values of resid_post beyond `size` and beyond `ratio` times the median magnitude of their row in that layer (Sun et al. 2024, arXiv 2402.17762).

    Largest first; padding is left out. Raises UsageError for a size or ratio below 0."""
    if size < 0 or ratio < 0:
        raise UsageError(f"size {size}, ratio {ratio}", allowed="numbers from 0 on")
    found, real_BT = [], _real(recorded)
    for layer, stream_BTD in enumerate(recorded.stream[1:]):
        for row, (values_TD, real_T) in enumerate(zip(stream_BTD.float(), real_BT, strict=True)):
            size_TD = values_TD.abs()
            high_TD = (size_TD > size) & (size_TD > ratio * size_TD[real_T].median()) & real_T[:, None]
            found += [Massive(layer, row, at, feature, float(values_TD[at, feature])) for at, feature in high_TD.nonzero().tolist()]
    return tuple(sorted(found, key=lambda one: -abs(one.value)))


def kurtosis(recorded: Recording) -> Tensor:
    """Pearson's kurtosis of the D values at each token's resid_post (3 for normal ones, about D with one value alone), mean over real tokens, BL."""
    real_BT, found = _real(recorded).float(), []
    for stream_BTD in recorded.stream[1:]:
        centred_BTD = stream_BTD.double() - stream_BTD.double().mean(-1, keepdim=True)
        tailed_BT = centred_BTD.pow(4).mean(-1) / centred_BTD.square().mean(-1).square().clamp_min(1e-300)
        found.append((tailed_BT * real_BT).sum(1) / real_BT.sum(1))
    return torch.stack(found, 1).float()


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
    parts = _at_rest(model)
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


_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_BY_BLOCKS = ("c_attn", "qkv_proj", "Wqkv")
"""Fused projections whose outputs are all queries, then all keys, then all values."""
_BY_HEADS = ("query_key_value",)
"""Fused projections whose outputs are, head by head, its query, key and value."""


def _projections(parts: Body, layer: int, H: int, J: int) -> list[Tensor]:
    """Matrices HKD, JKD, JKD of a layer's queries, keys and values."""
    attention, D, device = parts.attention(layer), parts.root.config.get_text_config().hidden_size, device_of(parts.root)
    children = dict(attention.named_children())
    for names in _SEPARATE:
        if all(name in children for name in names):
            return [_matrix(children[name], D, device).view(heads, -1, D) for name, heads in zip(names, (H, J, J), strict=True)]
    fused = [name for name in (*_BY_BLOCKS, *_BY_HEADS) if name in children]
    if not fused:
        raise UsageError(f"projections {', '.join(children)}", allowed=", ".join([*(" ".join(names) for names in _SEPARATE), *_BY_BLOCKS, *_BY_HEADS]))
    matrix_OD = _matrix(children[fused[0]], D, device)
    if fused[0] in _BY_HEADS:
        return list(matrix_OD.view(H, 3, -1, D).unbind(1))
    return list(matrix_OD.view(H + 2 * J, -1, D).split((H, J, J)))


def _matrix(module: torch.nn.Module, width: int, device: torch.device, *, block: int = 1024) -> Tensor:
    """W (O × width, float32) of an affine module, from its slopes: whatever holds its weights, and with no bias to round against."""
    dtype = next(module.parameters()).dtype
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


def _at_rest(model: torch.nn.Module) -> Body:
    if model.training:
        raise UsageError("a model in training", allowed="a model in eval mode, where nothing is dropped at random", fix="call model.eval() first")
    return body(model)


def _real(recorded: Recording) -> Tensor:
    """BT: which tokens are no padding."""
    mask_BT = recorded.inputs.get("attention_mask")
    like = recorded.stream[0][..., 0]
    return torch.ones_like(like, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
