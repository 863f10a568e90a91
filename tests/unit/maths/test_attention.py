"""Attention in tiles against torch's in float32: as close as torch's own bf16 kernel up to a factor, and only where it says it is active."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from knowhow.maths import attention
from knowhow.maths.attention import BLOCK, BlockAttention

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def problem(B: int, H: int, J: int, T: int, K: int = 16) -> Triple:
    """Query, key, value laid out as models do: B×T×heads×K in memory."""
    random = torch.Generator().manual_seed(T)
    return tuple(torch.randn(B, T, heads, K, generator=random).transpose(1, 2).requires_grad_() for heads in (H, J, J))


def both(triple: Triple, grad: torch.Tensor, **given: object) -> list[torch.Tensor]:
    out = F.scaled_dot_product_attention(*triple, **given)
    return [out, *torch.autograd.grad(out, triple, grad.to(out.dtype))]


def distance(mine: torch.Tensor, other: torch.Tensor) -> float:
    return float((mine.float() - other.float()).detach().norm() / other.float().detach().norm())


def padding(B: int, T: int, kind: str) -> torch.Tensor:
    keep = torch.ones(B, 1, 1, T, dtype=torch.bool)
    keep[0, :, :, T // 2 :] = False
    return keep.expand(B, 1, T, T) if kind == "bool" else torch.zeros(B, 1, T, T).masked_fill(~keep, -1e9)


@pytest.mark.parametrize("T", [1, 24, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 44])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_causal_attention_and_its_gradients(T: int, heads: tuple[int, int]) -> None:
    triple = problem(3, *heads, T)
    grad = torch.randn(3, heads[0], T, 16, generator=torch.Generator().manual_seed(1))
    given = {"is_causal": True, "enable_gqa": heads[0] != heads[1]}
    exact = both(triple, grad, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16), BlockAttention():
        ours = both(triple, grad, **given)
    assert ours[0].dtype == torch.bfloat16
    assert [made.shape for made in ours] == [made.shape for made in exact]
    # a single token looks only at itself: its query has no gradient at all
    assert max(distance(mine, other) for mine, other in zip(ours, exact) if float(other.detach().norm()) > 1e-3) < 0.01


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("T", [40, BLOCK + 30])
def test_masks(kind: str, T: int) -> None:
    triple, grad = problem(2, 4, 4, T), torch.randn(2, 4, T, 16, generator=torch.Generator().manual_seed(1))
    exact = both(triple, grad, attn_mask=padding(2, T, kind))
    with torch.autocast("cpu", dtype=torch.bfloat16), BlockAttention():
        ours = both(triple, grad, attn_mask=padding(2, T, kind))
    assert max(distance(mine, other) for mine, other in zip(ours, exact)) < 0.01
    assert float(ours[2][0, :, T // 2 :].abs().max()) == 0.0


def test_one_mask_row_for_all_queries_and_rows_of_the_batch_that_do_not_fit_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    triple, grad = problem(5, 2, 2, 30), torch.randn(5, 2, 30, 16, generator=torch.Generator().manual_seed(1))
    mask = padding(5, 30, "bool")[:, :, :1]
    exact = both(triple, grad, attn_mask=mask)
    monkeypatch.setattr(attention, "TILE", 2 * 2 * 30 * 30)
    with torch.autocast("cpu", dtype=torch.bfloat16), BlockAttention():
        ours = both(triple, grad, attn_mask=mask)
    assert max(distance(mine, other) for mine, other in zip(ours, exact)) < 0.01


def test_a_query_that_may_look_nowhere_gets_finite_numbers() -> None:
    triple, grad = problem(2, 2, 2, 20), torch.ones(2, 2, 20, 16)
    nowhere = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16), BlockAttention():
        assert all(torch.isfinite(made).all() for made in both(triple, grad, attn_mask=nowhere))


def test_the_scale_is_the_caller_s() -> None:
    triple = problem(2, 2, 2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16), BlockAttention():
        ours = F.scaled_dot_product_attention(*triple, is_causal=True, scale=1.0)
    assert distance(ours, F.scaled_dot_product_attention(*triple, is_causal=True, scale=1.0)) < 0.02
    assert distance(ours, F.scaled_dot_product_attention(*triple, is_causal=True)) > 0.05


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    inner = attention.attention
    monkeypatch.setattr(attention, "attention", lambda *args, **given: (seen.append(1), inner(*args, **given))[1])
    return seen


@pytest.mark.parametrize("case", ["float32", "dropout", "long", "other lengths", "narrow values"])
def test_it_leaves_alone_what_it_does_not_compute(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    query, key, value = (part.detach() for part in problem(1, 2, 2, attention.LONGEST + 1 if case == "long" else 20))
    given = {"is_causal": case != "narrow values", "dropout_p": 0.5 if case == "dropout" else 0.0}
    key, value = (key[:, :, :10], value[:, :, :10]) if case == "other lengths" else (key, value)
    value = value[..., :8] if case == "narrow values" else value
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case != "float32"), BlockAttention():
        made = F.scaled_dot_product_attention(query, key, value, **given)
    assert not seen
    assert made.shape == (1, 2, query.shape[2], value.shape[3])


def test_bf16_tensors_need_no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    with BlockAttention():
        F.scaled_dot_product_attention(*(part.detach().bfloat16() for part in problem(1, 2, 2, 20)), is_causal=True)
    assert seen


def test_scores_are_rounded_as_the_plain_formula_rounds_them() -> None:
    triple, grad = problem(4, 4, 4, 200), torch.randn(4, 4, 200, 16, generator=torch.Generator().manual_seed(1))
    exact = both(triple, grad, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with BlockAttention():
            ours = both(triple, grad, is_causal=True)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            theirs = both(triple, grad, is_causal=True)
    assert all(distance(mine, true) < 2 * distance(other, true) for mine, other, true in zip(ours, theirs, exact))
