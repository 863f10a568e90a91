"""How much of a site its dictionary keeps, always beside what the model's own neurons keep with as many numbers per vector.

Unexplained: Σ|x − x̂|² / Σ|x − mean|². Recovered: (L_zero − L) / (L_zero − L_clean), L being the model's loss with the reconstruction standing at the site
and L_zero that with zeros there (Bricken et al. 2023; Gao et al. 2024, arXiv 2406.04093). Zeros in the stream ruin a model, so that recovered is near 1 for
poor reconstructions too: `cost`, the loss's rise itself, is the number to trust.
Shape letters: R rows, N vectors, E features of the site, F features of the dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from knowhow.data.batch import Rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary, strongest
from knowhow.explain.features.splice import Change, Metric, batches, clusters, counted, loss_of, place, run, splice, values
from knowhow.maths.running import Moments
from knowhow.maths.statistics import bootstrap, ratio
from knowhow.model.loaded import Loaded, device_of
from knowhow.protocols import Progress
from knowhow.types import Interval

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What one way of keeping few numbers keeps. `active`: numbers per vector; `cost`: rise of the loss per unit (nats per token or row);
    `lead`: the dictionary's cost minus this one's on the same rows (below 0: the dictionary is better; None for itself)."""

    name: str
    active: float
    unexplained: Interval
    recovered: Interval
    cost: Interval
    lead: Interval | None = None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """A dictionary on rows it has not seen. `baselines`: neurons (the strongest coordinates, the others 0), neurons-mean (those farthest from their mean,
    the others at it), pca (the same among principal components; mean and components of these very rows, which favours them).

    A transcoder of one layer's mlp.in and mlp.out has the neurons between them. `dead`: share of features never active on the `tokens` vectors;
    `clean`, `zero`: the model's loss per unit untouched and with zeros."""

    site: str
    dictionary: Kept
    baselines: tuple[Kept, ...]
    dead: float
    tokens: int
    clean: float
    zero: float


@dataclass(frozen=True, slots=True)
class _Way:
    """A site to read and one to write, with what goes from the one to the other."""

    name: str
    reads: str
    writes: str
    change: Change


@dataclass(slots=True)
class _Sums:
    """Per row: the metric, squared error."""

    loss_R: np.ndarray
    error_R: np.ndarray = field(default_factory=lambda: np.zeros(0))


@torch.no_grad()
def fidelity(
    loaded: Loaded,
    dictionary: Dictionary,
    rows: Rows,
    *,
    loss: Metric | None = None,
    batch_tokens: int = 8192,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fidelity:
    """Measure a dictionary and its baselines on held-out rows; intervals are cluster bootstraps over rows (a group of rows is one unit).

    `loss`: of each row, the model's own unless given. Raises UsageError for a model without a loss, no rows, and sites of other widths."""
    metric, form = loss or loss_of(loaded), dictionary.form
    check_width(loaded, dictionary, rows)
    moments, active, fired_F = _first_look(loaded, dictionary, rows, batch_tokens)
    k = max(1, round(active))
    ways = _ways(dictionary, moments, k, device_of(loaded.model))
    clean, sums = _Sums(np.zeros(len(rows))), {way.name: _Sums(np.zeros(len(rows)), np.zeros(len(rows))) for way in ways}
    units_R, spread_R, done = np.zeros(len(rows)), np.zeros(len(rows)), 0
    mean_E = moments[form.writes].mean.float().to(device_of(loaded.model))
    for chosen, batch in batches(loaded, rows, batch_tokens):
        real_BT = counted(batch, form.skip)
        logits, target_BTE = run(loaded, batch, (), form.writes)
        assert target_BTE is not None
        lost_B, units_B = metric(logits, batch)
        clean.loss_R[chosen], units_R[chosen] = _numbers(lost_B), _numbers(units_B)
        spread_R[chosen] = _squares(target_BTE, mean_E, real_BT)
        for way in ways:
            logits, made_BTE = run(loaded, batch, splice(way.reads, way.writes, way.change, real_BT), form.writes)
            assert made_BTE is not None
            sums[way.name].loss_R[chosen] = _numbers(metric(logits, batch)[0])
            sums[way.name].error_R[chosen] = _squares(made_BTE, target_BTE, real_BT)
        done += len(chosen)
        if progress is not None:
            progress(f"fidelity {form.name}", done, len(rows))
    told = _Told(clean.loss_R, sums, units_R, spread_R, clusters(rows), draws, seed)
    per_unit = units_R.sum()
    return Fidelity(
        form.name,
        told.kept("dictionary", active),
        tuple(told.kept(name, float(k)) for name in ("neurons", "neurons-mean", "pca")),
        float((~fired_F).float().mean()),
        moments[form.writes].count,
        float(clean.loss_R.sum() / per_unit),
        float(sums["zero"].loss_R.sum() / per_unit),
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """Sums per row, made into intervals."""

    clean_R: np.ndarray
    sums: dict[str, _Sums]
    units_R: np.ndarray
    spread_R: np.ndarray
    clusters_R: np.ndarray
    draws: int
    seed: int

    def kept(self, name: str, active: float) -> Kept:
        own, zero_R, other = self.sums[name], self.sums["zero"].loss_R, self.sums["dictionary"]
        return Kept(
            name,
            active,
            self._ratio(own.error_R, self.spread_R),
            self._ratio(zero_R - own.loss_R, zero_R - self.clean_R),
            self._ratio(own.loss_R - self.clean_R, self.units_R),
            None if name == "dictionary" else self._ratio(other.loss_R - own.loss_R, self.units_R),
        )

    def _ratio(self, above_R: np.ndarray, below_R: np.ndarray) -> Interval:
        statistic: Callable[[np.ndarray], np.ndarray] = lambda weights_DR: ratio(weights_DR @ above_R, weights_DR @ below_R)  # noqa: E731
        return bootstrap(statistic, self.clusters_R, draws=self.draws, seed=self.seed, vectorised=True)


def _ways(dictionary: Dictionary, moments: dict[str, Moments], k: int, device: torch.device) -> list[_Way]:
    form, between = dictionary.form, neurons_between(dictionary)
    mean = moments[between].mean.float().to(device)
    return [
        _Way("zero", form.writes, form.writes, torch.zeros_like),
        _Way("dictionary", form.reads, form.writes, dictionary),
        _Way("neurons", between, between, partial(strongest, k=k)),
        _Way("neurons-mean", between, between, partial(strongest, k=k, centre_D=mean)),
        _Way("pca", form.writes, form.writes, _components(moments[form.writes], k)),
    ]


def neurons_between(dictionary: Dictionary) -> str:
    """Where a dictionary's neurons are kept: between the sites of a transcoder of one MLP, else at the site that is written."""
    form = dictionary.form
    layer = form.writes.removesuffix("mlp.out")
    return f"{layer}mlp.act" if layer != form.writes and form.reads == f"{layer}mlp.in" else form.writes


def check_width(loaded: Loaded, dictionary: Dictionary, rows: Rows) -> None:
    """Raises UsageError where the dictionary's sites have another width in this model."""
    form = dictionary.form
    for name in (form.reads, form.writes):
        place(loaded, name)
    _, batch = next(batches(loaded, rows, 1))
    seen = values(loaded, list(dict.fromkeys((form.reads, form.writes))), batch)
    widths = seen[form.reads].shape[-1], seen[form.writes].shape[-1]
    if widths != (form.inputs, form.outputs):
        raise UsageError(f"a dictionary of {form.inputs} inputs and {form.outputs} outputs", allowed=f"{widths[0]} and {widths[1]}, as the model has them")


def _first_look(loaded: Loaded, dictionary: Dictionary, rows: Rows, batch_tokens: int) -> tuple[dict[str, Moments], float, Tensor]:
    """Moments of what is written and of the neurons, features per vector, and which features were ever active."""
    form, between = dictionary.form, neurons_between(dictionary)
    names = list(dict.fromkeys((form.reads, form.writes, between)))
    moments = {name: Moments(covariance=name == form.writes) for name in (form.writes, between)}
    fired_F, active = torch.zeros(form.features, dtype=torch.bool), 0
    dictionary.eval()
    for _, batch in batches(loaded, rows, batch_tokens):
        seen, real_BT = values(loaded, names, batch), counted(batch, form.skip)
        for name, keeper in moments.items():
            keeper.update(seen[name][real_BT])
        code = dictionary.code(dictionary.pre(seen[form.reads][real_BT]))
        fired_F[code.feature_M.cpu()] = True
        active += len(code.feature_M)
    return moments, active / max(1, moments[form.writes].count), fired_F


def _components(moments: Moments, k: int) -> Change:
    mean_E, basis_EE = moments.mean.float(), torch.linalg.eigh(moments.covariance).eigenvectors.float()

    def change(values_NE: Tensor) -> Tensor:
        mean, basis = mean_E.to(values_NE.device), basis_EE.to(values_NE.device)
        return strongest((values_NE - mean) @ basis, k) @ basis.T + mean

    return change


def _squares(made_BTE: Tensor, target: Tensor, real_BT: Tensor) -> np.ndarray:
    """Squared distance of each row's counted positions, B."""
    return _numbers(torch.where(real_BT, (made_BTE.float() - target.float()).square().sum(-1), 0.0).double().sum(1))


def _numbers(values_B: Tensor) -> np.ndarray:
    return values_B.double().cpu().numpy()
