"""Edges by gradients: every component's output against every later component's input, in two passes per step (EAP, Syed et al. 2023, arXiv 2310.10348;
EAP-IG, Hanna et al. 2024, arXiv 2403.17806), with grouped-query attention: a key-value group is one reader, each query head another.

A sender is the embedding, a head (its share of attn.out) or an MLP; a reader the queries of a head, the keys or values of a group, an MLP, or the logits.
Shape letters: B pairs, T tokens, D stream, H heads, J key-value heads, K head size, S senders, R readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from knowhow.explain.attribution import answered, between, check_gradients, shares
from knowhow.explain.circuits.ports import check_adds
from knowhow.explain.edges import Reader, order, readers
from knowhow.explain.inputs import Inputs
from knowhow.explain.sweep import Metric
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.protocols import Progress

LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class EdgeScores:
    """`scores` SRB: estimated change of the metric when the edge alone carries the source run's value; 0 where the sender comes after the reader.

    `senders`: embed, a0.h1, m0 …; `readers`: a0.h1.q, a0.h0.k, m0 …, logits (a key-value group under its own number)."""

    scores: torch.Tensor
    senders: tuple[str, ...]
    readers: tuple[str, ...]
    possible: torch.Tensor


def edge_attribution(
    model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, *, answer: int | None = -1, steps: int = 1, progress: Progress | None = None
) -> EdgeScores:
    """Scores of all edges for patching `source` into `base`; `steps` > 1 averages gradients between the embeddings of both (EAP-IG).

    Raises UsageError where `contributions` does and for inputs of different shapes."""
    parts = body(model)
    with torch.no_grad():
        start, end = (contributions(model, inputs) for inputs in (base, source))
    moved = {name: end[name] - start[name] for name in start}
    ports = [*(reader.name for reader in readers(parts)), LOGITS]
    beside = parts.anatomy.mid is None
    possible = torch.tensor([[port == LOGITS or order(sender, beside=beside) < order(port, beside=beside) for port in ports] for sender in moved])
    scores = torch.zeros(len(moved), len(ports), next(iter(moved.values())).shape[0])
    places = shares(steps)
    for done, share in enumerate(places):
        if progress is not None:
            progress("edge attribution", done, len(places))
        grads = reader_gradients(model, base, source, metric, answer, share)
        for at, port in enumerate(ports):
            for sender, delta_BTD in enumerate(moved.values()):
                if possible[sender, at]:
                    scores[sender, at] += (delta_BTD * grads[port]).sum((1, 2)) / steps
    return EdgeScores(scores, tuple(moved), tuple(ports), possible)


@torch.no_grad()
def contributions(model: torch.nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """What each sender adds to the stream, BTD: embed (all that enters the first block), heads (without the bias of their common matrix), MLPs.

    Raises UsageError for families that norm a head's output together with the others' (gemma2, olmo2, BERT): no head has a share of its own there."""
    parts = body(model)
    check_adds(parts)
    with tap(model, "layers.0.resid_pre", "layers.*.attn.z", "layers.*.mlp.out") as seen:
        model(**inputs)
    found = {"embed": seen["layers.0.resid_pre"]}
    for layer in range(parts.depth):
        z_BTHK = seen[f"layers.{layer}.attn.z"]
        matrix = parts.block(layer).get_submodule(parts.anatomy.head_out)
        nothing_BTD = matrix(torch.zeros_like(z_BTHK).flatten(2))
        for head in range(z_BTHK.shape[2]):
            alone = torch.zeros_like(z_BTHK)
            alone[:, :, head] = z_BTHK[:, :, head]
            found[f"a{layer}.h{head}"] = matrix(alone.flatten(2)) - nothing_BTD
        found[f"m{layer}"] = seen[f"layers.{layer}.mlp.out"]
    return found


def reader_gradients(model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, answer: int | None, share: float) -> dict[str, torch.Tensor]:
    """Gradient of the metric by the stream, through each reader alone (and LOGITS): BTD, where the run is at `share` of the way from `base` to `source`.

    From the reader's own value back to what it read, never past it."""
    check_gradients(model)
    parts = body(model)
    middle = "resid_mid" if parts.anatomy.mid is not None else "resid_pre"
    kinds = ("resid_pre", middle, "attn.q", "attn.k", "attn.v", "mlp.in")
    patterns = [f"layers.*.{kind}" for kind in dict.fromkeys(kinds)] + [f"layers.{parts.depth - 1}.resid_post"]
    with torch.enable_grad(), tap(model, *patterns, edits=[between(model, base, source, share)], grad=True) as seen:
        total = metric(answered(model(**base).logits, answer)).sum()
    values = seen.all()
    outputs = [name for name in values if name.split(".", 2)[-1] in ("attn.q", "attn.k", "attn.v", "mlp.in")]
    last = f"layers.{parts.depth - 1}.resid_post"
    grads = dict(zip([*outputs, last], torch.autograd.grad(total, [values[name] for name in [*outputs, last]], retain_graph=True), strict=True))
    found: dict[str, torch.Tensor] = {LOGITS: grads[last]}
    for name in outputs:
        layer, port = int(name.split(".")[1]), name.rsplit(".", 1)[1]
        if port == "in":
            found[f"m{layer}"] = _back(values, name, f"layers.{layer}.{middle}", grads[name])
            continue
        for head in range(grads[name].shape[2]):
            alone = torch.zeros_like(grads[name])
            alone[:, :, head] = grads[name][:, :, head]
            found[Reader(layer, port, head).name] = _back(values, name, f"layers.{layer}.resid_pre", alone)
    return found


def _back(values: Mapping[str, Any], name: str, read: str, grad: torch.Tensor) -> torch.Tensor:
    """The gradient carried from a site's value to the stream that it was made of."""
    return torch.autograd.grad(values[name], values[read], grad, retain_graph=True)[0]
