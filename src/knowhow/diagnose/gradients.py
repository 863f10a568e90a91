"""Where the task pulls: the first gradient of every hidden matrix, its spectrum, how much of it is signal, and what shuffled labels leave of it.

Shape letters: O outputs, I inputs of a matrix, R singular values, N batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.diagnose.subject import RUN, Subject, mean_loss, measured, shuffled, site_of
from knowhow.errors import UsageError
from knowhow.types import Batch, Measurement

KEPT = 64
"""Singular values kept of each gradient: no plan gives a matrix a higher rank."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """`mean`: gradient per parameter over all batches; `signal`: the squared norm of its part that all batches share, unbiased: the mean of G_i·G_j over
    pairs i ≠ j; `square`: the mean squared norm of a batch's gradient; `spectra`: the first KEPT singular values of each hidden matrix's; `normal`: the
    stable rank |M|²_F / |M|²_2 of the mean gradient divided entry by entry by the root of its mean square, as Adam does."""

    mean: Mapping[str, torch.Tensor]
    normal: Mapping[str, float]
    signal: Mapping[str, float]
    square: Mapping[str, float]
    spectra: Mapping[str, Sequence[float]]
    rows: float


def gradients(subject: Subject, batches: Sequence[Batch] | None = None) -> Gradients:
    """Gradients at the start. Raises UsageError when they are zero everywhere or no numbers: then there is nothing to plan by."""
    batches = subject.batches if batches is None else batches
    parameters = subject.trained()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    hidden = subject.matrices()
    squares = {name: torch.zeros_like(p) for name, p in hidden.items()}
    square = dict.fromkeys(parameters, 0.0)
    for batch in batches:
        found = torch.autograd.grad(mean_loss(subject.model, subject.objective, [batch]), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient
                square[name] += float(gradient.double().square().sum())
                if name in squares:
                    squares[name] += gradient.square()
    count = len(batches)
    signal = {name: (float(g.double().square().sum()) - square[name]) / max(1, count * (count - 1)) for name, g in total.items()}
    mean = {name: g / count for name, g in total.items()}
    size = math.sqrt(sum(square.values()))
    if not math.isfinite(size):
        raise UsageError("the base's loss or its gradients on these rows are no numbers", fix="get the base again from its author, or take another")
    if size == 0:
        raise UsageError("the gradients of the task are zero: nothing that is trained changes the loss", fix="look at the data's labels and at what is frozen")
    normal = {name: stable_rank(mean[name] / ((squares[name] / count).sqrt() + 1e-12)) for name in hidden}
    spectra = {name: singular_values(mean[name])[:KEPT].tolist() for name in hidden}
    rows = sum(subject.objective.units(batch) for batch in batches) / count
    return Gradients(mean, normal, signal, {name: value / count for name, value in square.items()}, spectra, rows)


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Largest first, float64, by the eigenvalues of the smaller Gram matrix: several times quicker than a decomposition; values below 1e-7 of the largest
    are lost in rounding."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0)


def stable_rank(matrix: torch.Tensor) -> float:
    """|M|²_F / |M|²_2; 0 for a zero matrix."""
    squares = singular_values(matrix).square()
    return float(squares.sum() / squares[0]) if float(squares[0]) > 0 else 0.0


def pull(subject: Subject, found: Gradients) -> list[Measurement]:
    """Per hidden matrix: norm, stable rank |G|²_F/|G|²_2, the share of energy in its first 4 directions, and the share that all batches agree on; the same
    share when the labels are another row's (whatever is left there is not about the task)."""
    other = gradients(subject, shuffled(subject.batches[: (len(subject.batches) + 1) // 2]))
    n, rows = len(subject.batches), []
    for name, values in found.spectra.items():
        energy, site = [v * v for v in values], site_of(name)
        whole = sum(energy) or 1.0
        rows += [
            measured(site, "gradient.norm", float(found.mean[name].norm()), "nats", n),
            measured(site, "gradient.stable_rank", stable_rank(found.mean[name]), "", n),
            measured(site, "adam.stable_rank", found.normal[name], "", n),
            measured(site, "gradient.top4", sum(energy[:4]) / whole, "share", n),
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
