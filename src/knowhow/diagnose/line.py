"""Looks along the direction that Adam's first step takes, −sign(gradient): how far a step may go before it harms, and what it does to general text.

Adam moves every weight by about its learning rate a step, whatever the gradient's size, so distance along this line is measured in learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from knowhow.diagnose.gradients import Gradients
from knowhow.diagnose.subject import Subject, mean_loss, measured, plain_loss
from knowhow.maths import hvp
from knowhow.protocols import Objective
from knowhow.types import RUN, Batch, Measurement

DISTANCES = tuple(10 ** (-5 + k / 2) for k in range(8))
"""Learning rates at which the line is looked at: 1e-5 to .03, two a decade."""


@torch.no_grad()
def along_signs(subject: Subject, found: Gradients, distances: Sequence[float] = DISTANCES) -> list[Measurement]:
    """Loss on fresh rows at θ − d·sign(G) for each distance d (site `d`), of the task and of general text, relative to d = 0, in nats; and the ceiling
    of one step: the distance at which the loss of the task is back where it began, interpolated in the logarithm (run, `line.ceiling`); `line.best` is the
    distance with the lowest loss."""
    looks: list[tuple[Objective, Sequence[Batch]]] = [(subject.objective, subject.fresh)]
    if subject.general_objective is not None and subject.general:
        looks.append((subject.general_objective, subject.general))
    (start, *_), walked = walk(subject, list(found.mean.values()), distances, looks)
    n, rises = len(subject.fresh), [rise for rise, *_ in walked]
    rows = [measured(RUN, "line.start", start, "nats", n)]
    for distance, each in zip(distances, walked, strict=True):
        for metric, rise, (_, batches) in zip(("line.task", "line.general"), each, looks, strict=False):
            rows.append(measured(f"{distance:.3g}", metric, rise, "nats", len(batches)))
    best = min(zip(rises, distances, strict=True))
    if best[0] < 0:
        rows.append(measured(RUN, "line.best", best[1], "learning rate", n))
    ceiling = crossing(distances, rises)
    return rows if ceiling is None else [*rows, measured(RUN, "line.ceiling", ceiling, "learning rate", n)]


@torch.no_grad()
def walk(
    subject: Subject, gradient: Sequence[torch.Tensor], distances: Sequence[float], looks: Sequence[tuple[Objective, Sequence[Batch]]]
) -> tuple[list[float], list[list[float]]]:
    """Of each look (an objective and its rows): the loss where the weights are, and at each distance along −sign(gradient) the rise over it."""
    weights, signs = list(subject.trained().values()), [-part.sign() for part in gradient]
    starts = [plain_loss(subject.model, objective, batches) for objective, batches in looks]
    rises = []
    for distance in distances:
        with hvp.moved(weights, signs, distance):
            rises.append([plain_loss(subject.model, *look) - start for look, start in zip(looks, starts, strict=True)])
    return starts, rises


STARTS = tuple(10 ** (-2 + k / 2) for k in range(6))
"""From .01 to 3, where training from a fresh head breaks down."""
BROKEN = 2.2
"""Times the loss of the untrained model; see laws/learning_rate_ceiling.py."""


def from_the_start(subject: Subject, batches: int = 2) -> list[Measurement]:
    """The distance along −sign(G) at which the loss is BROKEN times that of the untrained model, its fresh head included, and stays above (run,
    `start.ceiling`). The gradient is that of a few batches."""
    gradient = hvp.gradient(lambda: mean_loss(subject.model, subject.objective, subject.batches[:batches]), list(subject.trained().values()))
    (start,), walked = walk(subject, gradient, STARTS, [(subject.objective, subject.fresh)])
    rises = [rise for (rise,) in walked]
    rows = [measured(f"{d:.3g}", "start.task", rise, "nats", len(subject.fresh)) for d, rise in zip(STARTS, rises, strict=True)]
    ceiling = crossing(STARTS, [rise - (BROKEN - 1) * start for rise in rises])
    return rows if ceiling is None else [*rows, measured(RUN, "start.ceiling", ceiling, "learning rate", len(subject.fresh))]


def crossing(distances: Sequence[float], rises: Sequence[float]) -> float | None:
    """The first distance at which a rise that was below zero is above it for good, between two looks in proportion to the rises; None: there is none."""
    for before, after in zip(range(len(rises) - 1), range(1, len(rises)), strict=True):
        if rises[before] < 0 and all(not rise < 0 for rise in rises[after:]):
            low, high = rises[before], rises[after]
            share = -low / (high - low) if math.isfinite(high) and high > low else 0.0
            return float(math.exp(math.log(distances[before]) + share * math.log(distances[after] / distances[before])))
    return None
