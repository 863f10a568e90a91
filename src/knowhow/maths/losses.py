"""Losses as pure functions. Shapes: N supervised positions, D model, V vocabulary, B batch, C classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK = 1024
CACHED = 2**18
"""Float32 logits that are worked on at a time, so that every pass over them but the first finds them in the cache."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward pass, chunk by chunk, so the N×V logits never exist at once."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, weights_N, dtype):  # type: ignore[no-untyped-def]
        weight = weight_VD.to(dtype)
        hidden = hidden_ND.to(dtype)
        d_hidden = torch.empty_like(hidden) if hidden_ND.requires_grad else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if weight_VD.requires_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = hidden[start : start + CHUNK]
            target = targets_N[start : start + CHUNK, None]
            grad = part @ weight.T
            scale = weights_N[start : start + CHUNK, None].float() if weights_N is not None else None
            nll = _to_gradient(grad, target, scale)
            total += (nll * scale).sum() if scale is not None else nll.sum()
            if d_hidden is not None:
                torch.mm(grad, weight, out=d_hidden[start : start + CHUNK])
            if d_weight is not None:
                d_weight += grad.T @ part
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        d_hidden, d_weight = ctx.saved_tensors
        hidden_type, weight_type = ctx.dtypes
        left = (d_hidden * grad).to(hidden_type) if d_hidden is not None else None
        right = d_weight.mul_(grad).to(weight_type) if d_weight is not None else None
        return left, right, None, None, None


def _to_gradient(logits_NV: torch.Tensor, targets_N1: torch.Tensor, scale_N1: torch.Tensor | None) -> torch.Tensor:
    """Turns logits in place into the gradient of the weighted loss; returns −log p of each target (N×1, float32)."""
    nll_N1 = torch.empty(targets_N1.shape, dtype=torch.float32, device=logits_NV.device)
    rows = max(8, CACHED // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else CHUNK
    for start in range(0, len(logits_NV), rows):
        here = slice(start, start + rows)
        target = targets_N1[here]
        logp = torch.log_softmax(logits_NV[here], -1, dtype=torch.float32)
        torch.neg(logp.gather(1, target), out=nll_N1[here])
        grad = logp.exp_()
        grad.scatter_add_(1, target, torch.full_like(target, -1.0, dtype=torch.float32))
        logits_NV[here] = grad if scale_N1 is None else grad.mul_(scale_N1[here])
    return nll_N1


def linear_cross_entropy(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor | None = None) -> torch.Tensor:
    """Sum over N of weight × −log softmax(hidden Wᵀ)[target], in nats, accumulated in float32.

    Matrix products run in bfloat16 under autocast and in the weight's type otherwise. Gradients of first order only.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    if not torch.is_grad_enabled():
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N, dtype)


def soft_cross_entropy(logits_BC: torch.Tensor, targets_BC: torch.Tensor, weights_B: torch.Tensor) -> torch.Tensor:
    """Sum over B of weight × cross-entropy against a distribution over classes (rows of `targets_BC` sum to 1), in nats."""
    return -(weights_B * (targets_BC * F.log_softmax(logits_BC.float(), -1)).sum(-1)).sum()


def binary_cross_entropy(logits_BC: torch.Tensor, targets_BC: torch.Tensor, weights_B: torch.Tensor) -> torch.Tensor:
    """Sum over B of weight × mean over C of independent binary cross-entropies, in nats (many labels)."""
    each_BC = F.binary_cross_entropy_with_logits(logits_BC.float(), targets_BC, reduction="none")
    return (weights_B * each_BC.mean(-1)).sum()


def squared_error(values_B: torch.Tensor, targets_B: torch.Tensor, weights_B: torch.Tensor) -> torch.Tensor:
    """Sum over B of weight × (value − target)²."""
    return (weights_B * (values_B.float() - targets_B) ** 2).sum()
