"""Which training rows drove an answer: TracIn over checkpoints, EK-FAC influence, projected gradients, and the likenesses that they have to beat.

Every score says how far the training row lowers the test row's `measure` (its loss), to first order: above 0 the row helps (a proponent), below 0 it
hurts. It is the influence −∇fᵀH⁻¹g of Grosse et al. 2023 on the quantity f = −loss. A score is a claim about retraining and is checked by retraining:
influence/datamodel.py. Shape letters: N training rows, M test rows, R rows of a kernel, P parameters or projected numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from knowhow.errors import UsageError
from knowhow.explain.influence.kfac import Curvature
from knowhow.explain.influence.per_example import WHOLE, Keep, Loss, Projection, chosen, gradients, vectors
from knowhow.protocols import Progress


@dataclass(frozen=True, slots=True)
class Sides:
    """Who is asked about whom. `train`, `test`: batches of rows, as `loss` takes them; `loss`: what training lowers; `measure`: the loss of test rows that is
    asked about, where it is another (row_losses.of_margin)."""

    train: Sequence[Any]
    test: Sequence[Any]
    loss: Loss
    measure: Loss | None = None


@dataclass(frozen=True, slots=True)
class Influence:
    """`scores` NM: how much each training row helps each test row; `own` N: how much it helps itself, large for rows that nothing else supports."""

    scores: np.ndarray
    own: np.ndarray


def tracin(
    model: torch.nn.Module, sides: Sides, checkpoints: Iterable[tuple[Mapping[str, torch.Tensor], float]], *,
    project: Projection | None = None, progress: Progress | None = None,
) -> Influence:  # fmt: skip
    """Σ over checkpoints of lr × ⟨gradient of the training row, gradient of the test row⟩ (Pruthi et al. 2020, arXiv 2002.08484, "TracInCP").

    `checkpoints`: (weights of the trainable parameters, or of all, and the learning rate there); the model has its own weights again afterwards.
    Raises UsageError for no checkpoints and for weights that do not fit the model."""
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    total: Influence | None = None
    try:
        for weights, lr in checkpoints:
            _put(model, weights)
            found = inner_products(model, sides, Keep(project=project), progress=progress)
            total = _plus(total, Influence(lr * found.scores, lr * found.own))
    finally:
        _put(model, own)
    if total is None:
        raise UsageError("no checkpoints", allowed="at least one (weights, learning rate)")
    return total


def ekfac(
    model: torch.nn.Module, sides: Sides, curved: Curvature, *, project: Projection | None = None, progress: Progress | None = None
) -> Influence:  # fmt: skip
    """g_testᵀ (H + damping)⁻¹ g_train / N with the EK-FAC curvature of these weights (Grosse et al. 2023, arXiv 2308.03296): about how far
    the test loss would rise, in its unit, were the row left out. N: the rows behind the curvature.

    With a projection, whitened gradients are projected, which keeps the products right on average."""
    found = inner_products(model, sides, Keep(curved.whiten, project), progress=progress)
    return Influence(found.scores / curved.rows, found.own / curved.rows)


def inner_products(model: torch.nn.Module, sides: Sides, keep: Keep = WHOLE, *, progress: Progress | None = None) -> Influence:
    """⟨g_train, g_test⟩ of gradients as `keep` leaves them. Test gradients are held (M×P), training ones are made a batch at a time.

    Raises UsageError for no rows on a side, and where gradients are too many to hold without a projection."""
    test_MP = gradients(model, sides.measure or sides.loss, sides.test, keep, progress=progress, what="gradients of test rows")
    if not sides.train:
        raise UsageError("no training rows", allowed="at least one batch")
    parts = chosen(model, keep)
    scores, own = [], []
    for done, rows in enumerate(sides.train):
        if progress is not None:
            progress("gradients of training rows", done, len(sides.train))
        train_BP = vectors(model, sides.loss, rows, parts, keep)
        scores.append((train_BP @ test_MP.T).double().cpu().numpy())
        own.append(train_BP.square().sum(1).double().cpu().numpy())
    return Influence(np.concatenate(scores), np.concatenate(own))


def projected(train_NP: torch.Tensor, test_MP: torch.Tensor, kernel_RP: torch.Tensor | None = None, *, damping: float = 0.1) -> Influence:
    """test (ΦᵀΦ + λ)⁻¹ trainᵀ, Φ being the rows of `kernel` (the training gradients unless given): TRAK's estimator (Park et al. 2023, arXiv 2303.14186,
    sec. 3) where the kernel is of margins and `train` of losses; with Fisher gradients as the kernel and no projection, influence by the exact Fisher matrix.

    `damping`: λ as a share of the mean eigenvalue that is not 0 by size alone. Raises UsageError for widths that differ and negative damping."""
    kernel = train_NP if kernel_RP is None else kernel_RP
    if not train_NP.shape[1] == test_MP.shape[1] == kernel.shape[1] or damping < 0:
        widths = f"{train_NP.shape[1]}, {test_MP.shape[1]} and {kernel.shape[1]}"
        raise UsageError(f"gradients of {widths} numbers, damping {damping}", allowed="one width, damping from 0")
    train, test, kernel = train_NP.double(), test_MP.double(), kernel.double()
    _, sizes, right = torch.linalg.svd(kernel, full_matrices=False)
    values = sizes.square()
    extra = damping * float(values.mean())
    known = values > values.max() * 1e-12
    inside = torch.where(known, 1 / (values + extra), torch.zeros_like(values))
    within = [side @ right.T for side in (train, test)]
    scores = (within[0] * inside) @ within[1].T
    own = (within[0].square() * inside).sum(1)
    if extra > 0:  # what no kernel row reaches is held back by the damping alone
        rest = [side - part @ right for side, part in zip((train, test), within)]
        scores, own = scores + rest[0] @ rest[1].T / extra, own + rest[0].square().sum(1) / extra
    return Influence(scores.cpu().numpy(), own.cpu().numpy())


def cosine(train_NP: torch.Tensor, test_MP: torch.Tensor) -> np.ndarray:
    """Cosine of gradients, or of any vectors (embeddings): NM. The plain baseline of gradient methods."""
    sides = [torch.nn.functional.normalize(side.double(), dim=1) for side in (train_NP, test_MP)]
    scores: np.ndarray = (sides[0] @ sides[1].T).cpu().numpy()
    return scores


def tfidf(train: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Cosine of TF-IDF vectors of words, NM: what retrieval knows without the model."""
    reader = TfidfVectorizer(token_pattern=r"\S+", lowercase=False, sublinear_tf=True)
    train_NF = reader.fit_transform(train)
    scores: np.ndarray = (train_NF @ reader.transform(test).T).toarray()
    return scores


def by_label(likeness_NM: np.ndarray, train_N: Sequence[Any], test_M: Sequence[Any]) -> np.ndarray:
    """A likeness counted for rows of the test row's label and against it for others: retrieval that has seen the labels too."""
    same_NM = np.array([[a == b for b in test_M] for a in train_N])
    return np.where(same_NM, likeness_NM, -likeness_NM)


def mean(found: Sequence[Influence]) -> Influence:
    """The mean over models trained alike: a score of one model is partly chance (Park et al. 2023). Raises UsageError for none."""
    if not found:
        raise UsageError("no scores to average", allowed="at least one Influence")
    return Influence(np.mean([one.scores for one in found], 0), np.mean([one.own for one in found], 0))


def _plus(total: Influence | None, found: Influence) -> Influence:
    return found if total is None else replace(total, scores=total.scores + found.scores, own=total.own + found.own)


def _put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    named = dict(model.named_parameters())
    missing = [name for name, parameter in named.items() if parameter.requires_grad and name not in weights]
    misfit = [name for name, value in weights.items() if name in named and named[name].shape != value.shape]
    if missing or misfit:
        allowed = "every trainable parameter under the model's own name, as loop/checkpoint.py saves them"
        raise UsageError(f"a checkpoint with another {(missing or misfit)[0]}", allowed=allowed)
    with torch.no_grad():
        for name, value in weights.items():
            if name in named:
                named[name].copy_(value)
