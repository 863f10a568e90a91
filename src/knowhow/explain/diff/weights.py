"""What changed between two checkpoints, by their weights alone: how much, how concentrated, in which directions, in which layers.

Every number stands beside what it would be without structure: ranks and concentration beside those of the same change with its entries' signs drawn at
random, alignments beside their expectation for a subspace drawn at random, shares of the change beside shares of the parameters.
Shape letters: O outputs, I inputs, R singular values, Q directions that are compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.explain.diff.parts import Part, components, matrices
from knowhow.explain.diff.swap import Pair, pair
from knowhow.model.sites import body
from knowhow.protocols import Progress

TOP = 8
_ZERO = 1e-5
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True, slots=True)
class Size:
    """How far a part moved: ‖ΔW‖ and ‖ΔW‖/‖W‖ (Frobenius, all its tensors together), its share of the whole change's square and of the parameters."""

    norm: float
    relative: float
    share: float
    parameters: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What a change ΔW looks like. `stable_rank`: ‖ΔW‖²/σ₁²; `effective_rank`: exp of the entropy of σ/Σσ (Roy & Vetterli 2007); `top`: share of ‖ΔW‖² in
    the first Q directions; `left`, `right`: ‖Uᵀ U_Δ‖²/Q of the first Q left and right directions of W and of ΔW (Hu et al. 2021, arXiv 2106.09685, §7.3:
    1 the same space); `…_random`: without structure (see the module). Ranks are 0 and alignments NaN where nothing changed."""

    stable_rank: float
    stable_rank_random: float
    effective_rank: float
    effective_rank_random: float
    top: float
    top_random: float
    left: float
    left_random: float
    right: float
    right_random: float


@dataclass(frozen=True, slots=True)
class Change:
    """One matrix, or a head's slice of one (`head`; of k and v its group); without `shape` for what is no matrix."""

    name: str
    kind: str
    layer: int | None
    head: int | None
    size: Size
    shape: Shape | None

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


def changes(
    base: torch.nn.Module, specialist: torch.nn.Module, *, top: int = TOP, by_head: bool = True, seed: int = 0, progress: Progress | None = None
) -> tuple[Change, ...]:
    """Every matrix of every layer, attention's also by head and group, the token embedding, and what remains (norms, biases, positions) by its own name.

    Adapters count with the matrix that they add; nothing is merged. `top`: how many directions are compared (Q; fewer where the change has fewer).
    Raises UsageError where `swap.pair` does and for `top` below 1."""
    return of_pair(specialist, pair(base, specialist), top=top, by_head=by_head, seed=seed, progress=progress)


def of_pair(
    specialist: torch.nn.Module, known: Pair, *, top: int = TOP, by_head: bool = True, seed: int = 0, progress: Progress | None = None
) -> tuple[Change, ...]:
    """See `changes`."""
    if top < 1:
        raise UsageError(f"{top} directions", allowed="at least 1")
    wanted = [part for part in matrices(specialist) if by_head or part.head is None]
    wanted += remaining(specialist, wanted)
    found, total = [], totals(specialist, known)
    for done, part in enumerate(wanted):
        if progress is not None:
            progress("weights", done, len(wanted))
        before, after = (part.pieces[0].of(source[part.pieces[0].tensor]).float() for source in (known.base, known.specialist))
        is_matrix = before.ndim == 2 and min(before.shape) > 1
        if part.kind == "embed" and known.fresh:
            before, after = before[: -known.fresh], after[: -known.fresh]
        pair_OI = (before.T, after.T) if part.transposed else (before, after)
        form = shape(*pair_OI, top=top, seed=zlib.crc32(f"{seed} {part.name}".encode())) if is_matrix else None
        found.append(Change(part.name, part.kind, part.layer, part.head, size(part, known, total), form))
    return tuple(found)


def remaining(model: torch.nn.Module, known: Sequence[Part]) -> list[Part]:
    """What no matrix of `known` holds: the embedding, positions, norms, biases, each under its own name."""
    held, first = {piece.tensor for part in known for piece in part.pieces}, f"{body(model).anatomy.embed}.weight"
    rest = [(piece, part.layer) for part in components(model) for piece in part.pieces if piece.tensor not in held]
    kinds = [("embed", "embed") if piece.tensor == first else (piece.tensor, "other") for piece, _ in rest]
    return [Part(name, kind, layer, (piece,)) for (name, kind), (piece, layer) in zip(kinds, rest, strict=True)]


def totals(model: torch.nn.Module, known: Pair) -> tuple[float, int]:
    """(squared change, number of parameters) of the whole model without its head."""
    pieces = [piece for part in components(model) for piece in part.pieces]
    moved = sum(float((known.specialist[piece.tensor] - known.base[piece.tensor]).double().square().sum()) for piece in pieces)
    return moved, sum(known.base[piece.tensor].numel() for piece in pieces)


def size(part: Part, known: Pair, total: tuple[float, int]) -> Size:
    """How far a part moved, of what moved in `total`."""
    moved = weight = count = 0.0
    for piece in part.pieces:
        before, after = (piece.of(source[piece.tensor]) for source in (known.base, known.specialist))
        moved, weight, count = moved + float((after - before).double().square().sum()), weight + float(before.double().square().sum()), count + before.numel()
    nothing = float("nan") if moved else 0.0
    relative = (moved / weight) ** 0.5 if weight else nothing
    return Size(moved**0.5, relative, moved / total[0] if total[0] else 0.0, count / total[1])


def shape(before_OI: torch.Tensor, after_OI: torch.Tensor, *, top: int = TOP, seed: int = 0) -> Shape:
    """See `Shape`. Spectra are computed in float64 from products with the smaller side, so that a matrix costs one small eigenproblem."""
    moved_OI = (after_OI - before_OI).double()
    values_R, left_OQ, right_IQ = _spectrum(moved_OI, top)
    Q, nan = left_OQ.shape[1], float("nan")
    if not Q:
        return Shape(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, nan, nan, nan, nan)
    signs_OI = torch.randint(0, 2, moved_OI.shape, generator=torch.Generator().manual_seed(seed)).to(moved_OI) * 2 - 1
    random_R, _, _ = _spectrum(moved_OI * signs_OI, 0)
    _, mine_OP, mine_IP = _spectrum(before_OI.double(), Q)
    aligned = [float((own.T @ new).square().sum()) / Q for own, new in ((mine_OP, left_OQ), (mine_IP, right_IQ))]
    by_chance = [mine_OP.shape[1] / side for side in moved_OI.shape]
    ranks = [(_stable(values), _effective(values), float(values[:Q].square().sum() / values.square().sum())) for values in (values_R, random_R)]
    (stable, effective, share), (stable_random, effective_random, share_random) = ranks
    return Shape(stable, stable_random, effective, effective_random, share, share_random, aligned[0], by_chance[0], aligned[1], by_chance[1])


def by_layer(found: Sequence[Change]) -> dict[str, tuple[float, float]]:
    """Layer ("0", "1" …; "outside" for embeddings and the last norm) → (share of the squared change, share of the parameters)."""
    sums: dict[str, tuple[float, float]] = {}
    for change in found:
        name = "outside" if change.layer is None else str(change.layer)
        share, parameters = sums.get(name, (0.0, 0.0))
        if change.head is None:
            sums[name] = share + change.size.share, parameters + change.size.parameters
    return sums


def plain(value: Any) -> Any:
    """What JSON holds: NaN becomes None, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def _spectrum(matrix_OI: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular values R, largest first, and the first `top` left (OQ) and right (IQ) directions whose values are not rounding."""
    tall = matrix_OI.shape[0] >= matrix_OI.shape[1]
    small_RR = matrix_OI.T @ matrix_OI if tall else matrix_OI @ matrix_OI.T
    if top:
        squares_R, vectors_RR = torch.linalg.eigh(small_RR)
        near_RQ = vectors_RR.flip(1)[:, :top]
    else:
        squares_R, near_RQ = torch.linalg.eigvalsh(small_RR), small_RR[:, :0]
    values_R = squares_R.flip(0).clamp_min(0).sqrt()
    near_RQ = near_RQ[:, (values_R[: near_RQ.shape[1]] > _ZERO * values_R[0])]
    far_OQ = (matrix_OI if tall else matrix_OI.T) @ near_RQ / values_R[: near_RQ.shape[1]]
    return (values_R, far_OQ, near_RQ) if tall else (values_R, near_RQ, far_OQ)


def _stable(values_R: torch.Tensor) -> float:
    return float(values_R.square().sum() / values_R[0].square())


def _effective(values_R: torch.Tensor) -> float:
    shares_R = values_R / values_R.sum()
    return float(torch.special.entr(shares_R).sum().exp())
