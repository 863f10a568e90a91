"""What can already be read off the base: linear probes by layer with shuffled labels as their control, and how a probe on frozen features grows with data.

Shape letters: L layers, N rows, D features, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from knowhow.diagnose.subject import measured
from knowhow.maths.linear import Answer, fit, loss_of, score_of
from knowhow.model.loaded import without_adapter
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.types import RUN, Batch, Measurement

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
DRAWS = 2


@dataclass(frozen=True, slots=True)
class Features:
    """What stands at the place that a head reads (the last real token; an encoder's first), behind every layer and in front of the head."""

    layers_LND: torch.Tensor
    final_ND: torch.Tensor
    labels: torch.Tensor

    def rows(self, chosen_N: torch.Tensor) -> Features:
        return Features(self.layers_LND[:, chosen_N], self.final_ND[chosen_N], self.labels[chosen_N])


@torch.no_grad()
def features(model: torch.nn.Module, batches: Sequence[Batch], *, head: torch.nn.Module, encoder: bool) -> Features:
    """One pass over the batches. `head`: the linear module whose inputs are the features in front of it."""
    inner = without_adapter(model)
    depth, layers, finals, labels = body(inner).depth, [], [], []
    read: list[torch.Tensor] = []
    for batch in batches:
        with tap(inner, "layers.*.resid_post", check=False) as seen:
            hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
            try:
                inner(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long())
            finally:
                hook.remove()
        at_B = torch.zeros(len(batch.tokens_BT), dtype=torch.long) if encoder else batch.mask_BT.long().sum(1) - 1
        place = (torch.arange(len(at_B)), at_B)
        layers.append(torch.stack([seen[f"layers.{layer}.resid_post"][place].float() for layer in range(depth)]))
        finals.append((read[-1][place] if read[-1].ndim == 3 else read[-1]).float())
        labels.append(batch.labels)
    return Features(torch.cat(layers, 1), torch.cat(finals), torch.cat(labels))


def best_penalty(train: Features, valid: Features, kind: Answer, outputs: int) -> float:
    """The penalty with the lowest loss on other rows."""
    tried = [(float(loss_of(fit(train.final_ND, train.labels, kind, outputs, penalty=p)(valid.final_ND), valid.labels, kind)), p) for p in PENALTIES]
    return min(tried)[1]


def by_layer(train: Features, valid: Features, kind: Answer, outputs: int, *, penalty: float, seed: int = 0) -> list[Measurement]:
    """Score of a probe behind each layer on other rows, and of one whose labels were shuffled in training."""
    order_N = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    rows = []
    for layer in range(len(train.layers_LND)):
        for metric, labels in (("probe.score", train.labels), ("probe.shuffled", train.labels[order_N])):
            reader = fit(train.layers_LND[layer], labels, kind, outputs, penalty=penalty)
            rows.append(measured(f"layers.{layer}", metric, score_of(reader(valid.layers_LND[layer]), valid.labels, kind), "share", len(valid.labels)))
    return rows


def smoothed(labels: torch.Tensor, kind: Answer, outputs: int) -> torch.Tensor:
    """Shares with one more row that is of every class alike (Laplace): a class that a few rows do not show is rare, not impossible."""
    if kind == "number":
        return labels
    count, even = len(labels), 0.5 if kind == "many" else 1 / outputs
    shares = torch.nn.functional.one_hot(labels, outputs) if labels.ndim == 1 and kind == "one" else labels
    return (shares.double() * count + even) / (count + 1)


def growth(train: Features, valid: Features, kind: Answer, outputs: int, *, seed: int = 0) -> list[Measurement]:
    """Loss and score on other rows of a probe on frozen features, fitted on growing shares of the rows (site: how many), mean of DRAWS draws."""
    generator, whole, rows = torch.Generator().manual_seed(seed), len(train.labels), []
    for share in FRACTIONS:
        count = max(2, round(share * whole))
        losses, scores = [], []
        for _ in range(DRAWS if share < 1 else 1):
            part = train.rows(torch.randperm(whole, generator=generator)[:count])
            part = replace(part, labels=smoothed(part.labels, kind, outputs))
            reader = fit(part.final_ND, part.labels, kind, outputs, penalty=best_penalty(part, valid, kind, outputs))
            losses.append(float(loss_of(reader(valid.final_ND), valid.labels, kind)))
            scores.append(score_of(reader(valid.final_ND), valid.labels, kind))
        rows += [
            measured(str(count), "growth.loss", sum(losses) / len(losses), "nats", len(losses)),
            measured(str(count), "growth.score", sum(scores) / len(scores), "share", len(scores)),
        ]
    return [*rows, measured(RUN, "growth.rows", whole, "rows", whole)]
