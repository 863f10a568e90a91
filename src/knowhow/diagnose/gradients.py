"""Where the task pulls: the first gradient of every hidden matrix, its spectrum, how much of it is signal, and what shuffled labels leave of it.

Shape letters: O outputs, I inputs of a matrix, R singular values, N batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.diagnose.subject import Subject, mean_loss, measured, shuffled
from knowhow.errors import UsageError
from knowhow.maths import hvp
from knowhow.model.loaded import site_of
from knowhow.types import RUN, Batch, Measurement

KEPT = 64
"""Singular values kept of each gradient: no plan gives a matrix a higher rank."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """`mean`: gradient per parameter over all batches; `squares`: of each hidden matrix, the mean square of every entry over the batches; `signal`: the
    squared norm of the part that all batches share, unbiased: the mean of G_i·G_j over pairs i ≠ j; `square`: the mean squared norm of a batch's gradient;
    `rows`: supervised units of a batch."""

    mean: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]
    signal: Mapping[str, float]
    square: Mapping[str, float]
    rows: float


def gradients(subject: Subject, batches: Sequence[Batch] | None = None) -> Gradients:
    """Gradients at the start. Raises UsageError when they are zero everywhere or no numbers: then there is nothing to plan by."""
    batches = subject.batches if batches is None else batches
    parameters = subject.trained()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = {name: torch.zeros_like(p) for name, p in subject.matrices().items()}
    square = dict.fromkeys(parameters, 0.0)
    for batch in batches:
        found = hvp.gradient(lambda batch=batch: mean_loss(subject.model, subject.objective, [batch]), list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            total[name] += gradient
            square[name] += float(gradient.double().square().sum())
            if name in squares:
                squares[name] += gradient.square()
    size = math.sqrt(sum(square.values()))
    if not math.isfinite(size):
        raise UsageError("the base's loss or its gradients on these rows are no numbers", fix="get the base again from its author, or take another")
    if size == 0:
        raise UsageError("the gradients of the task are zero: nothing that is trained changes the loss", fix="look at the data's labels and at what is frozen")
    count = len(batches)
    signal = {name: (float(g.double().square().sum()) - square[name]) / max(1, count * (count - 1)) for name, g in total.items()}
    rows = sum(subject.objective.units(batch) for batch in batches) / count
    per_batch = {name: value / count for name, value in square.items()}
    return Gradients({name: g / count for name, g in total.items()}, {name: s / count for name, s in squares.items()}, signal, per_batch, rows)


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Largest first, float64, by the eigenvalues of the smaller Gram matrix: several times quicker than a decomposition; values below 1e-7 of the largest
    are lost in rounding."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0)


def spectra(found: Gradients) -> dict[str, torch.Tensor]:
    """All singular values of each hidden matrix's mean gradient."""
    return {name: singular_values(found.mean[name]) for name in found.squares}


def stable_rank(values: torch.Tensor) -> float:
    """|M|²_F / |M|²_2 of all singular values, largest first; 0 for a zero matrix."""
    return float(values.square().sum() / values[0].square()) if float(values[0]) > 0 else 0.0


def pull(subject: Subject, found: Gradients, spectra: Mapping[str, torch.Tensor]) -> list[Measurement]:
    """Per hidden matrix: norm, stable rank |G|²_F/|G|²_2 of the gradient and of what Adam makes of it (entry by entry over the root of the mean square),
    the share of energy in its first 4 directions, and the share that all batches agree on; the same share when the labels are another row's (whatever is
    left there is not about the task)."""
    other = gradients(subject, shuffled(subject.batches[: (len(subject.batches) + 1) // 2]))
    n, rows = len(subject.batches), []
    for name, values in spectra.items():
        energy, site = values[:KEPT].square(), site_of(name)
        normal = singular_values(found.mean[name] / (found.squares[name].sqrt() + 1e-12))
        rows += [
            measured(site, "gradient.norm", float(found.mean[name].norm()), "nats", n),
            measured(site, "gradient.stable_rank", stable_rank(values), "", n),
            measured(site, "adam.stable_rank", stable_rank(normal), "", n),
            measured(site, "gradient.top4", float(energy[:4].sum()) / (float(energy.sum()) or 1.0), "share", n),
            measured(site, "gradient.signal", max(0.0, found.signal[name]), "nats²", n),
            measured(site, "gradient.shuffled", max(0.0, other.signal[name]), "nats²", n),
        ]
    return rows


def noise(found: Gradients, batches: int) -> list[Measurement]:
    """The gradient noise scale tr Σ / |G|², in supervised units (McCandlish 2018, eq. 2.10): the batch at which noise and signal are alike. Not measured
    when the batches share no direction."""
    signal, square = sum(found.signal.values()), sum(found.square.values())
    rows = [measured(RUN, "gradient.square", square, "nats²", batches), measured(RUN, "gradient.shared", signal, "nats²", batches)]
    if signal > 0:
        rows.append(measured(RUN, "noise.scale", max(0.0, (square - signal) * found.rows / signal), "units", batches))
    return rows
