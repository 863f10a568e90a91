"""Where in a model an answer is made: what is lost when one part says the same everywhere, beside the same part moved as far in a random direction.

A part is the attention or the MLP of a layer, or one head. Its output is replaced by its mean over rows and positions (mean ablation, Wang et al. 2022,
arXiv 2211.00593): what remains says nothing about this text. The control keeps each value's distance from the mean and draws its direction anew, so a
part that merely cannot be disturbed is told from one that carries the answer. Shape letters: P parts, N answers, B rows, T tokens, D what a part puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.maths.running import Moments
from knowhow.model.sites import body, sites
from knowhow.model.taps import At, Edit, tap
from knowhow.protocols import Progress

Ask = Callable[[], np.ndarray]
"""Runs the model as it stands and gives one number per answer, N: how far it speaks for the answer."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """`part`: attn, mlp or head (of `head`)."""

    layer: int
    part: str
    head: int = 0

    @property
    def name(self) -> str:
        return f"layers.{self.layer}.{self.part}" + (f"{self.head}" if self.part == "head" else "")

    @property
    def site(self) -> str:
        return f"layers.{self.layer}.{_SITES[self.part]}"

    @property
    def at(self) -> At:
        return At(heads=[self.head]) if self.part == "head" else At()


_SITES = {"attn": "attn.out", "mlp": "mlp.out", "head": "attn.z"}


@dataclass(frozen=True, slots=True)
class PlaceEffects:
    """`falls`: by how much each answer's number falls when the part is at its mean, PN; `control`: when it is moved as far in a random direction, PN;
    `start`: the numbers of the model as it is, N."""

    places: tuple[Place, ...]
    falls: np.ndarray
    control: np.ndarray
    start: np.ndarray


def places(model: torch.nn.Module, *, heads: bool = True) -> tuple[Place, ...]:
    """Attention and MLP of every layer, then every head (of families whose heads can be looked at)."""
    parts = body(model)
    whole = [Place(layer, part) for layer in range(parts.depth) for part in ("attn", "mlp")]
    single = [Place(layer, "head", head) for layer in range(parts.depth) for head in range(parts.heads)]
    known = sites(model)
    return tuple(place for place in [*whole, *(single if heads else [])] if place.site in known)


class _PerHead:
    """Keeps the mean of each head apart; a tap gives the heads of a position one after the other."""

    def __init__(self, heads: int) -> None:
        self.heads, self.moments = heads, Moments()

    def update(self, values_ND: torch.Tensor) -> None:
        self.moments.update(values_ND.reshape(-1, self.heads * values_ND.shape[-1]))


@torch.no_grad()
def means(model: torch.nn.Module, batches: Iterable[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Mean output of every part over real tokens: D of attn.out and mlp.out, HK of attn.z, by site. `batches`: the model's keyword arguments.

    Raises UsageError where a tap does, and for no batches."""
    heads, found, kept = body(model).heads, {}, list(batches)
    if not kept:
        raise UsageError("no rows to take means over", allowed="at least one batch")
    with tap(model, "layers.*.attn.out", "layers.*.mlp.out", keep=Moments) as whole:
        for batch in kept:
            model(**batch)
    with tap(model, "layers.*.attn.z", keep=lambda: _PerHead(heads)) as single:
        for batch in kept:
            model(**batch)
    for layer in range(body(model).depth):
        for site in (f"layers.{layer}.attn.out", f"layers.{layer}.mlp.out"):
            found[site] = whole.kept(site).mean.float()
        site = f"layers.{layer}.attn.z"
        found[site] = single.kept(site).moments.mean.float().reshape(heads, -1)
    return found


@torch.no_grad()
def place_effects(
    model: torch.nn.Module, ask: Ask, wanted: Sequence[Place], mean: Mapping[str, torch.Tensor], *, seed: int = 0, progress: Progress | None = None
) -> PlaceEffects:
    """Falls and control of each part. Heads of a layer have their control in common, one of them drawn at random. `ask` is called once, once for each
    part, and once for each control. Raises UsageError for no parts and where a tap does."""
    if not wanted:
        raise UsageError("no parts to take out", allowed="at least one place")
    start_N, drawn = np.asarray(ask(), np.float64), np.random.default_rng(seed)
    falls: list[np.ndarray] = []
    moved: dict[tuple[int, str], np.ndarray] = {}

    def fall(place: Place, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        with tap(model, edits=[Edit(place.site, change, place.at)]):
            return start_N - np.asarray(ask(), np.float64)

    for done, place in enumerate(wanted):
        if progress is not None:
            progress("parts", done, len(wanted))
        falls.append(fall(place, _to_mean(_mean_of(place, mean))))
        if (place.layer, place.part) not in moved:
            alike = [other for other in wanted if (other.layer, other.part) == (place.layer, place.part)]
            other = alike[int(drawn.integers(len(alike)))]
            moved[place.layer, place.part] = fall(other, _elsewhere(_mean_of(other, mean), seed))
    return PlaceEffects(tuple(wanted), np.stack(falls), np.stack([moved[place.layer, place.part] for place in wanted]), start_N)


def _mean_of(place: Place, mean: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return mean[place.site][place.head] if place.part == "head" else mean[place.site]


def _to_mean(mean_D: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: mean_D.to(value).expand_as(value)


def _elsewhere(mean_D: torch.Tensor, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Each vector as far from itself as the mean is, in a direction drawn anew."""

    def change(value: torch.Tensor) -> torch.Tensor:
        far = (value - mean_D.to(value)).norm(dim=-1, keepdim=True)
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
        return value + drawn * far / drawn.norm(dim=-1, keepdim=True)

    return change
