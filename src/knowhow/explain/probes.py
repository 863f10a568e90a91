"""Which layers hold a property in a form that a linear reader finds, and how much of that the reader could have learnt by heart.

A probe is a logistic regression on the values of one site (Alain & Bengio 2016, arXiv 1610.01644). Its control task (Hewitt & Liang 2019, arXiv
1909.03368) gives each token type, or each group of inputs, a label at random and for good: a probe that does well there too is memorising, so what
counts is the selectivity, accuracy minus control accuracy. A probe shows that a property can be read, not that the model reads it: that takes patching.
Shape letters: L layers, N rows (inputs or tokens), D features, C classes (one row of weights for two), B inputs, T positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from knowhow.errors import UsageError
from knowhow.explain.inputs import real_tokens
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.model.sites import find
from knowhow.model.taps import tap
from knowhow.protocols import Progress
from knowhow.types import Interval

Pool = Literal["last", "first", "mean", "all"]
POOLS: tuple[Pool, ...] = ("last", "first", "mean", "all")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse weights of the L2 penalty on standardised features, from which validation chooses."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """`values_LND`: one site kind of every layer. `inputs_N`: which input a row came from; `tokens_N`: the token id at its position (−1: a mean)."""

    values_LND: np.ndarray
    inputs_N: np.ndarray
    tokens_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Rows:
    """One split. `labels_N`: classes; `types_N`: what the control labels hang on (token type or group of inputs); `clusters_N`: independent units."""

    values_LND: np.ndarray
    labels_N: np.ndarray
    types_N: np.ndarray
    clusters_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Probe:
    """One layer's probe on the test rows. `selectivity`: accuracy minus control accuracy, rows paired; `majority`: what the commonest training class gets.

    `seen`: share of test rows whose type the control probe met in training: the control can only be right by chance on the others.
    `strength`, `control_strength`: as chosen on validation; `weights_CD`: the probe's directions in units of the site."""

    layer: int
    accuracy: Interval
    control: Interval
    selectivity: Interval
    majority: float
    seen: float
    strength: float
    control_strength: float
    weights_CD: np.ndarray


@torch.no_grad()
def gather(model: torch.nn.Module, batches: Iterable[Mapping[str, Any]], *, kind: str = "resid_post", pool: Pool = "last") -> Gathered:
    """Values of `kind` at every layer, heads side by side: of the last or first real token, their mean, or every real token as a row of its own.

    `batches`: the model's keyword arguments with input_ids BT (attention_mask BT says which tokens are real). Raises UsageError for an unknown pool,
    a site without one value per position (attn.pattern), no batches and inputs without a real token."""
    if pool not in POOLS:
        raise UsageError(f"pool {pool!r}", allowed=", ".join(POOLS))
    places = find(model, f"layers.*.{kind}")
    if places[0].axes[1] != "positions":
        raise UsageError(f"a probe of {kind}", allowed="sites with one value for each position")
    values, inputs, tokens, count = [], [], [], 0
    for batch in batches:
        with tap(model, f"layers.*.{kind}") as seen:
            model(**batch)
        ids_BT = batch["input_ids"]
        real_BT = real_tokens(batch)
        if not bool(real_BT.any(1).all()):
            raise UsageError(f"input {count + int((~real_BT.any(1)).nonzero()[0])} without a real token", allowed="attention_mask with a 1 in each row")
        row_N, at_N = _places(real_BT, pool)
        pooled = [_pooled(seen[site.name].flatten(2).float(), real_BT, row_N, at_N) for site in places]
        values.append(torch.stack(pooled).cpu().numpy())
        inputs.append((row_N + count).cpu().numpy())
        tokens.append((ids_BT[row_N, at_N] if at_N is not None else torch.full_like(row_N, -1)).cpu().numpy())
        count += len(ids_BT)
    if not values:
        raise UsageError("no batches", allowed="at least one")
    return Gathered(np.concatenate(values, 1), np.concatenate(inputs), np.concatenate(tokens))


def control_labels(types_N: np.ndarray, labels_N: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """A label for each row, the same for all rows of a type, drawn with the frequencies of `labels_N` (Hewitt & Liang 2019, sec. 2).

    `labels_N` may be of other rows than `types_N`, such as those of training alone. Give the types of all splits at once: then a type keeps its label."""
    names, inverse_N = np.unique(types_N, return_inverse=True)
    return np.random.Generator(np.random.PCG64(seed)).choice(labels_N, size=len(names))[inverse_N]


def probe(
    train: Rows, valid: Rows, test: Rows, *,
    strengths: Sequence[float] = STRENGTHS, seed: int = 0, draws: int = 1000, confidence: float = 0.95, progress: Progress | None = None,
) -> tuple[Probe, ...]:  # fmt: skip
    """A probe and its control on every layer; intervals are cluster bootstraps over the test rows.

    Features are standardised by the training rows. For either task the strength with the best validation accuracy is taken (the strongest penalty among
    equals); test rows are looked at once. Raises UsageError for splits that do not fit together, a single class, values that are not finite, strengths
    that are not positive, and types none of which is in training and test (then a control can only guess, and selectivity would say nothing)."""
    _check(train, valid, test, strengths)
    splits = (train, valid, test)
    ends = np.cumsum([len(split.labels_N) for split in splits])[:-1]
    controls = np.split(control_labels(np.concatenate([split.types_N for split in splits]), train.labels_N, seed=seed), ends)
    classes, counts = np.unique(train.labels_N, return_counts=True)
    found = []
    for layer in range(len(train.values_LND)):
        if progress is not None:
            progress("probe", layer, len(train.values_LND))
        values = [split.values_LND[layer] for split in splits]
        task = _fitted(values, [split.labels_N for split in splits], strengths)
        control = _fitted(values, controls, strengths)
        accuracy, by_heart, selective = (
            bootstrap(weighted_mean(right_N), test.clusters_N, draws=draws, seed=seed, confidence=confidence, vectorised=True)
            for right_N in (task.right_N, control.right_N, task.right_N - control.right_N)
        )
        majority = float((test.labels_N == classes[counts.argmax()]).mean())
        seen = float(np.isin(test.types_N, train.types_N).mean())
        found.append(Probe(layer, accuracy, by_heart, selective, majority, seen, task.strength, control.strength, task.weights_CD))
    return tuple(found)


def separation(values_LND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Share L of the variance that lies between the classes' means (η², 0 to 1): how far apart the classes are without any fit of directions.

    Raises UsageError for labels that are not one per row."""
    if values_LND.ndim != 3 or labels_N.shape != values_LND.shape[1:2]:
        raise UsageError(f"values {values_LND.shape} and labels {labels_N.shape}", allowed="LND and N")
    centred_LND = values_LND.astype(np.float64) - values_LND.mean(1, keepdims=True, dtype=np.float64)
    between_L = np.zeros(len(values_LND))
    for label in np.unique(labels_N):
        here_N = labels_N == label
        between_L += here_N.sum() * (centred_LND[:, here_N].mean(1) ** 2).sum(-1)
    total_L = (centred_LND**2).sum((1, 2))
    return np.divide(between_L, total_L, out=np.full(len(total_L), np.nan), where=total_L > 0)


@dataclass(frozen=True, slots=True)
class _Fit:
    right_N: np.ndarray
    strength: float
    weights_CD: np.ndarray


def _fitted(values: Sequence[np.ndarray], labels: Sequence[np.ndarray], strengths: Sequence[float]) -> _Fit:
    """Fit on the first split, choose on the second, answer the third."""
    mean_D, deviation_D = values[0].mean(0, dtype=np.float64), values[0].std(0, dtype=np.float64)
    scale_D = np.where(deviation_D > 0, deviation_D, 1.0)
    train_ND, valid_ND, test_ND = ((part - mean_D) / scale_D for part in values)
    if len(np.unique(labels[0])) == 1:  # a control over few types may draw one label for all
        return _Fit((labels[2] == labels[0][0]).astype(np.float64), min(strengths), np.zeros((1, len(mean_D))))
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in sorted(strengths):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty on separable classes has no optimum to reach
            model = LogisticRegression(C=strength, max_iter=300).fit(train_ND, labels[0])
        score = float((model.predict(valid_ND) == labels[1]).mean())
        if best is None or score > best[0]:
            best = (score, strength, model)
    assert best is not None
    return _Fit((best[2].predict(test_ND) == labels[2]).astype(np.float64), best[1], best[2].coef_ / scale_D)


def _places(real_BT: torch.Tensor, pool: Pool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(input, position) of each row; no position for a mean."""
    rows_B = torch.arange(len(real_BT), device=real_BT.device)
    if pool == "all":
        row_N, at_N = real_BT.nonzero(as_tuple=True)
        return row_N, at_N
    if pool == "mean":
        return rows_B, None
    first_B = real_BT.int().argmax(1)
    return rows_B, first_B if pool == "first" else real_BT.shape[1] - 1 - real_BT.flip(1).int().argmax(1)


def _pooled(values_BTD: torch.Tensor, real_BT: torch.Tensor, row_N: torch.Tensor, at_N: torch.Tensor | None) -> torch.Tensor:
    if at_N is not None:
        return values_BTD[row_N, at_N]
    # where, not a product: what stands at padding need not be finite
    return torch.where(real_BT[..., None], values_BTD, 0.0).sum(1) / real_BT.sum(1, keepdim=True)


def _check(train: Rows, valid: Rows, test: Rows, strengths: Sequence[float]) -> None:
    shape = train.values_LND.shape
    for name, split in (("train", train), ("valid", valid), ("test", test)):
        rows = {"values_LND": split.values_LND.shape[1:2], "types_N": split.types_N.shape, "clusters_N": split.clusters_N.shape}
        odd = [f"{which} {found}" for which, found in rows.items() if found != split.labels_N.shape]
        if odd or split.values_LND.ndim != 3 or (split.values_LND.shape[0], split.values_LND.shape[2]) != (shape[0], shape[2]):
            got = odd[0] if odd else f"values of shape {split.values_LND.shape}"
            raise UsageError(f"{got} in {name}", allowed=f"{len(split.labels_N)} rows, {shape[0]} layers and {shape[-1]} features as in train")
        if not len(split.labels_N):
            raise UsageError(f"no rows in {name}", allowed="at least one")
        if not np.isfinite(split.values_LND).all():
            raise UsageError(f"values in {name} that are not finite", fix="look where they first appear: tap(model, …) says at which site")
    if len(np.unique(train.labels_N)) < 2:
        raise UsageError("a single class in train", allowed="at least two")
    if not strengths or min(strengths) <= 0:
        raise UsageError(f"strengths {tuple(strengths)}", allowed="one or more positive numbers")
    if not np.isin(test.types_N, train.types_N).any():
        fix = "let types be what repeats between splits: token ids, or groups of inputs"
        raise UsageError("no type of the test rows in train", allowed="types that occur in both", fix=fix)
