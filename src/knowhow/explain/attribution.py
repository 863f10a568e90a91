"""What an answer rests on, by gradients: input tokens, activations, edges. All answers of a batch equal those of its rows alone.

Gradients are cheap and first-order: where attention is saturated they vanish although the part matters, so each use stands beside an exact
intervention (explain/sweep.py, explain/edges.py, explain/evidence.py).
Shape letters: B rows, T tokens, D stream, H heads, V vocabulary, M steps, S senders, R readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.inputs import Inputs
from knowhow.explain.sweep import Metric
from knowhow.model.loaded import has_gradients
from knowhow.model.taps import Edit, tap

STEPS = 16
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Integrated:
    """`scores` BT; `gap` B: |sum of a row's scores − (answer − answer at the baseline)|, to be compared with `span` B, that difference itself; `steps` used."""

    scores: torch.Tensor
    gap: torch.Tensor
    span: torch.Tensor
    steps: int


def gradient_x_input(model: torch.nn.Module, inputs: Inputs, metric: Metric, *, answer: int | None = -1) -> torch.Tensor:
    """Gradient of the metric by each token's embedding, times the embedding: BT, in the metric's unit (Shrikumar et al. 2016, arXiv 1605.01713)."""
    embedded_BTD = _embedded(model, inputs)
    grad_BTD, _ = _gradient(model, inputs, metric, embedded_BTD, answer)
    return _masked((grad_BTD * embedded_BTD).sum(-1), inputs)


def integrated_gradients(
    model: torch.nn.Module, inputs: Inputs, metric: Metric, *,
    baseline: torch.Tensor | None = None, answer: int | None = -1, steps: int = STEPS, most: int = 256, tolerance: float = TOLERANCE,
) -> Integrated:  # fmt: skip
    """Gradients along the straight way from `baseline` (embeddings BTD or what broadcasts to it; each row's mean unless given) to the input's
    embeddings, integrated by Gauss–Legendre points (Sundararajan et al. 2017, arXiv 1703.01365).

    Zeros are a poor baseline here: a norm has no gradient to speak of where its input vanishes, and completeness fails.
    Completeness is checked on every call: the points are doubled from `steps` until each row's scores add up to the change of the metric within
    `tolerance` of it (plus 1e-4), at most `most` of them; `gap` says what is left. Raises UsageError for a baseline that does not fit."""
    embedded_BTD = _embedded(model, inputs)
    start_BTD = _row_mean(embedded_BTD, inputs) if baseline is None else _fitting(baseline, embedded_BTD)
    ends = [_gradient(model, inputs, metric, value, answer)[1] for value in (start_BTD, embedded_BTD)]
    span_B = ends[1] - ends[0]
    while True:
        points_M, weights_M = np.polynomial.legendre.leggauss(steps)
        total_BTD = torch.zeros_like(embedded_BTD)
        for point, weight in zip(points_M, weights_M, strict=True):
            at_BTD = start_BTD + float(point + 1) / 2 * (embedded_BTD - start_BTD)
            total_BTD += float(weight) / 2 * _gradient(model, inputs, metric, at_BTD, answer)[0]
        scores_BT = _masked((total_BTD * (embedded_BTD - start_BTD)).sum(-1), inputs)
        gap_B = (scores_BT.sum(1) - span_B).abs()
        if bool((gap_B <= tolerance * span_B.abs() + 1e-4).all()) or steps >= most:
            return Integrated(scores_BT, gap_B, span_B, steps)
        steps = min(2 * steps, most)


def node_attribution(
    model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, *patterns: str, answer: int | None = -1, steps: int = 1
) -> dict[str, torch.Tensor]:
    """First-order estimate of what patching each site's value from `source` into `base` does to the metric (attribution patching, Nanda 2023; Syed et al.
    2023, arXiv 2310.10348): site → BT (BTH by head; a pattern's BHT).

    `steps` > 1: gradients averaged on the way between the embeddings of both (EAP-IG, Hanna et al. 2024, arXiv 2403.17806)."""
    with torch.no_grad():
        values = [_values(model, inputs, patterns) for inputs in (base, source)]
    scores = {name: torch.zeros(()) for name in values[0]}
    for share in shares(steps):
        grads = _site_gradients(model, base, source, metric, patterns, answer, share)
        scores = {name: scores[name] + ((values[1][name] - values[0][name]) * grads[name]).sum(-1) / steps for name in scores}
    return scores


def between(model: torch.nn.Module, base: Inputs, source: Inputs, share: float) -> Edit:
    """The edit that puts a run of `base` at a share of the way between the embeddings of both inputs."""
    start_BTD, end_BTD = _embedded(model, base), _embedded(model, source)
    if start_BTD.shape != end_BTD.shape:
        raise UsageError(f"inputs of shapes {tuple(start_BTD.shape[:2])} and {tuple(end_BTD.shape[:2])}", allowed="a base and a source of the same shape")
    return Edit("embed", lambda _: (start_BTD + share * (end_BTD - start_BTD)).requires_grad_())


def answered(logits: torch.Tensor, answer: int | None) -> torch.Tensor:
    """What a metric gets: logits BV at the answer's position; all of them for None and for a classifier."""
    return logits if logits.ndim == 2 or answer is None else logits[:, answer]


def check_gradients(model: torch.nn.Module) -> None:
    """Raises UsageError for a model whose integer kernels have no gradient."""
    if not has_gradients(model):
        fix = "take occlusion, patching or edges by ablation, which are exact there, or the model from before quantisation"
        raise UsageError("gradients of a model with integer kernels", allowed="a model of floating-point weights", fix=fix)


def shares(steps: int) -> list[float]:
    """Where gradients are taken on the way from base to source: at the base for one step."""
    if steps < 1:
        raise UsageError(f"{steps} steps", allowed="at least 1")
    return [0.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]


def _site_gradients(
    model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, patterns: tuple[str, ...], answer: int | None, share: float
) -> dict[str, torch.Tensor]:
    check_gradients(model)
    with torch.enable_grad(), tap(model, *patterns, edits=[between(model, base, source, share)], grad=True) as seen:
        total = metric(answered(model(**base).logits, answer)).sum()
    values = seen.all()
    grads = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    return {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in zip(values.items(), grads, strict=True)}


def _values(model: torch.nn.Module, inputs: Inputs, patterns: tuple[str, ...]) -> dict[str, torch.Tensor]:
    with tap(model, *patterns) as seen:
        model(**inputs)
    return seen.all()


@torch.no_grad()
def _embedded(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Values at `embed`, BTD."""
    with tap(model, "embed") as seen:
        model(**inputs)
    return seen["embed"]


def _gradient(
    model: torch.nn.Module, inputs: Inputs, metric: Callable[[torch.Tensor], torch.Tensor], embedded_BTD: torch.Tensor, answer: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of the metric by the embeddings BTD, the metric B) where the embeddings are these."""
    check_gradients(model)
    leaf_BTD = embedded_BTD.detach().clone().requires_grad_()
    with torch.enable_grad(), tap(model, edits=[Edit("embed", lambda _: leaf_BTD)]):
        value_B = metric(answered(model(**inputs).logits, answer))
    return torch.autograd.grad(value_B.sum(), leaf_BTD)[0], value_B.detach()


def _masked(scores_BT: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Nothing for padding."""
    mask_BT = inputs.get("attention_mask")
    return scores_BT if mask_BT is None else scores_BT * mask_BT


def _row_mean(embedded_BTD: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    mask_BT1 = inputs["attention_mask"][..., None] if inputs.get("attention_mask") is not None else torch.ones_like(embedded_BTD[..., :1])
    return ((embedded_BTD * mask_BT1).sum(1, keepdim=True) / mask_BT1.sum(1, keepdim=True)).expand_as(embedded_BTD)


def _fitting(baseline: torch.Tensor, embedded_BTD: torch.Tensor) -> torch.Tensor:
    try:
        return baseline.to(embedded_BTD).expand_as(embedded_BTD)
    except RuntimeError as error:
        raise UsageError(f"a baseline of shape {tuple(baseline.shape)}", allowed=f"what broadcasts to {tuple(embedded_BTD.shape)}") from error
