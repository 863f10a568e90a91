"""Attention in bf16 on processors without matrix tiles, where torch's own kernel takes up to four times as long as its products need.

Scores are made a tile at a time (some rows of the batch × all heads × `BLOCK` queries), small enough to stay in the cache between two products;
above the diagonal whole tiles are left out. Probabilities are kept for the way back.
Shapes: B batch, H heads, J key-value heads, T queries, S keys, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

BLOCK = 128
TILE = 2**19
LONGEST = 1024
"""Probabilities take B·H·T·S values; past this length torch's kernel, which keeps none, is the better bargain."""

Tensor = torch.Tensor


class BlockAttention(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` in bf16 on a CPU goes through `attention`, whoever calls it; all else stays as it is."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) >= 3 and fits(*args[:3], given):
            mask_BHTS = args[3] if len(args) > 3 else given.get("attn_mask")
            return attention(*args[:3], mask_BHTS, causal=given.get("is_causal", False), scale=given.get("scale"))
        return func(*args, **given)


def fits(query_BHTK: Tensor, key_BJSK: Tensor, value_BJSK: Tensor, given: Mapping[str, Any]) -> bool:
    """True where `attention` computes the same: bf16 (by autocast or by type) on a CPU, of moderate length, no dropout, values as wide as keys."""
    enabled = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if enabled else query_BHTK.dtype
    return (
        query_BHTK.device.type == "cpu"
        and kind == torch.bfloat16
        and query_BHTK.ndim == 4
        and max(query_BHTK.shape[2], key_BJSK.shape[2]) <= LONGEST
        and (query_BHTK.shape[2] == key_BJSK.shape[2] or not given.get("is_causal", False))
        and value_BJSK.shape == key_BJSK.shape
        and not given.get("dropout_p", 0.0)
    )


def attention(query_BHTK: Tensor, key_BJSK: Tensor, value_BJSK: Tensor, mask_BHTS: Tensor | None = None, *, causal: bool, scale: float | None = None) -> Tensor:
    """softmax(scale · q kᵀ + mask) v in bf16, with the shape of the query; `scale` is 1/√K unless given, H a multiple of J.

    Boolean masks are True where a query may look, others are added. Scores and probabilities are rounded to bf16, sums are float32,
    as in the plain formula under autocast (`eager` in transformers). First derivatives only, none for the mask."""
    scale = query_BHTK.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        query, key, value = ((query_BHTK * scale).bfloat16(), key_BJSK.bfloat16(), value_BJSK.bfloat16())
        return _forward(query, key, value, mask_BHTS, causal)[0]


@torch.library.custom_op("knowhow::attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    (B, H, T, K), (_, J, S, _) = query.shape, key.shape
    out_BTHK, kept = query.new_empty(B, T, H, K), query.new_empty(B * H * _area(T, S, causal))
    left = kept
    for rows in _rows(B, H, T, S):
        q, k, v = _flat(query[rows], 1), _flat(key[rows], H // J), _flat(value[rows], H // J)
        for start, end, last in _blocks(T, S, causal):
            scores = torch.bmm(q[:, start:end], k[:, :last].transpose(1, 2))
            if causal:
                scores[:, :, start:].add_(_above_diagonal(end - start))
            if mask is not None:
                _apply(scores.view(-1, H, end - start, last), mask if mask.shape[0] == 1 else mask[rows], start, end, last)
            probability, left = left[: scores.numel()].view(scores.shape), left[scores.numel() :]
            torch.softmax(scores, -1, out=probability)
            out_BTHK[rows, start:end].transpose(1, 2).copy_(torch.bmm(probability, v[:, :last]).view(-1, H, end - start, K))
    return out_BTHK.transpose(1, 2), kept


@torch.library.custom_op("knowhow::attention_backward", mutates_args=())
def _backward(d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    (B, H, T, K), (_, J, S, _) = query.shape, key.shape
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    left = kept
    for rows in _rows(B, H, T, S):
        q, k, v, d_o = _flat(query[rows], 1), _flat(key[rows], H // J), _flat(value[rows], H // J), _flat(d_out[rows], 1)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)
        for start, end, last in _blocks(T, S, causal):
            size = len(q) * (end - start) * last
            probability, left = left[:size].view(len(q), end - start, last), left[size:]
            d_block = d_o[:, start:end]
            d_probability = torch.bmm(d_block, v[:, :last].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probability, probability, -1, probability.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :last])
            d_k[:, :last] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
            d_v[:, :last] += torch.bmm(probability.transpose(1, 2), d_block)
        d_query[rows] = d_q.view(-1, H, T, K)
        d_key[rows] = d_k.view(-1, J, H // J, S, K).sum(2)
        d_value[rows] = d_v.view(-1, J, H // J, S, K).sum(2)
    return d_query, d_key, d_value


@_forward.register_fake
def _(query, key, value, mask, causal):  # type: ignore[no-untyped-def]
    B, H, T, K = query.shape
    return query.new_empty(B, T, H, K).transpose(1, 2), query.new_empty(B * H * _area(T, key.shape[2], causal))


@_backward.register_fake
def _(d_out, query, key, value, kept, causal):  # type: ignore[no-untyped-def]
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, key, value, _, ctx.causal = inputs
    ctx.save_for_backward(query, key, value, output[1])


def _differentiate(ctx, d_out, _):  # type: ignore[no-untyped-def]
    return *_backward(d_out, *ctx.saved_tensors, ctx.causal), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _area(T: int, S: int, causal: bool) -> int:
    """Scores of one head: whole blocks up to the diagonal, or all."""
    blocks = -(-T // BLOCK)
    return BLOCK * BLOCK * blocks * (blocks + 1) // 2 if causal and blocks > 1 else T * S


def _rows(B: int, H: int, T: int, S: int) -> Iterator[slice]:
    """Rows of the batch whose tiles fit the cache together."""
    many = max(1, TILE // (H * min(BLOCK, T) * S))
    return (slice(first, min(first + many, B)) for first in range(0, B, many))


def _blocks(T: int, S: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, query after the last, key after the last that they see)."""
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        yield start, end, end if causal else S


def _flat(part_bJTK: Tensor, repeats: int) -> Tensor:
    """One matrix per row and head; key-value heads are repeated for the queries that share them."""
    b, J, T, K = part_bJTK.shape
    return part_bJTK[:, :, None].expand(b, J, repeats, T, K).reshape(b * J * repeats, T, K)


def _above_diagonal(size: int) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=torch.bfloat16).triu_(1)


def _apply(scores_bHTS: Tensor, mask_bHTS: Tensor, start: int, end: int, last: int) -> None:
    part = (mask_bHTS if mask_bHTS.shape[2] == 1 else mask_bHTS[:, :, start:end])[..., :last]
    if part.dtype == torch.bool:
        # the lowest finite value: a query that may look nowhere (padding) gets numbers that nobody reads, not NaN
        scores_bHTS.masked_fill_(~part, torch.finfo(scores_bHTS.dtype).min)
    else:
        scores_bHTS.add_(part)
