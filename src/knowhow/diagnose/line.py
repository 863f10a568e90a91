"""Looks along the direction that Adam's first step takes, −sign(gradient): how far a step may go before it harms, and what it does to general text.

Adam moves every weight by about its learning rate a step, whatever the gradient's size, so distance along this line is measured in learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from knowhow.diagnose.gradients import Gradients
from knowhow.diagnose.subject import RUN, Subject, measured, plain_loss
from knowhow.maths import hvp
from knowhow.types import Measurement

DISTANCES = tuple(10 ** (-5 + k / 3) for k in range(12))
"""Learning rates at which the line is looked at: 1e-5 to about .05, three a decade."""


@torch.no_grad()
def along_signs(subject: Subject, found: Gradients, distances: Sequence[float] = DISTANCES) -> list[Measurement]:
    """Loss on fresh rows at θ − d·sign(G) for each distance d (site `d`), of the task and of general text, relative to d = 0, in nats; and the ceiling
    of one step: the distance at which the loss of the task is back where it began, interpolated in the logarithm (run, `line.ceiling`)."""
    parameters = subject.trained()
    signs = [-found.mean[name].sign() for name in parameters]
    weights = list(parameters.values())
    start = plain_loss(subject.model, subject.objective, subject.fresh)
    texts = subject.general_objective
    general = plain_loss(subject.model, texts, subject.general) if texts is not None and subject.general else 0.0
    rows, rises = [measured(RUN, "line.start", start, "nats", len(subject.fresh))], []
    for distance in distances:
        with hvp.moved(weights, signs, distance):
            rises.append(plain_loss(subject.model, subject.objective, subject.fresh) - start)
            rows.append(measured(f"{distance:.3g}", "line.task", rises[-1], "nats", len(subject.fresh)))
            if texts is not None and subject.general:
                rise = plain_loss(subject.model, texts, subject.general) - general
                rows.append(measured(f"{distance:.3g}", "line.general", rise, "nats", len(subject.general)))
    ceiling = crossing(distances, rises)
    return rows if ceiling is None else [*rows, measured(RUN, "line.ceiling", ceiling, "learning rate", len(subject.fresh))]


def crossing(distances: Sequence[float], rises: Sequence[float]) -> float | None:
    """The first distance at which a rise that was below zero is above it for good, between two looks in proportion to the rises; None: there is none."""
    for before, after in zip(range(len(rises) - 1), range(1, len(rises)), strict=True):
        if rises[before] < 0 and all(not rise < 0 for rise in rises[after:]):
            low, high = rises[before], rises[after]
            share = -low / (high - low) if math.isfinite(high) and high > low else 0.0
            return float(math.exp(math.log(distances[before]) + share * math.log(distances[after] / distances[before])))
    return None
