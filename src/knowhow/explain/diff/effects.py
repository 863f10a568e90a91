"""What the change between a base and its specialist does: one part put back or taken over, the metric asked again, beside a change of equal size.

Weights are exchanged by part (swap), activations by site; both are exact interventions, nothing is estimated.
Shape letters: N rows, B rows of a batch, T tokens, H heads, K head size, D stream, P parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.diff.parts import Part
from knowhow.explain.diff.setting import Pass, Patch, Setting
from knowhow.explain.diff.swap import grafted, signed, swapped
from knowhow.explain.diff.weights import plain
from knowhow.maths.statistics import bootstrap, ratio
from knowhow.types import Interval

Tensor = torch.Tensor
ENOUGH = 0.9
"""The share of the specialist's gain that counts as keeping it."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One part (`name`, `kind`, `layer`, `head` as in parts; a site's name for activations) and what it does to the metric, means over rows.

    `drop`: the specialist's metric less that with the base's part; `control`: less that with the specialist's part moved as far in random directions;
    `beyond`: drop less control, row by row; `gain`: the metric of the base with the specialist's part less the base's own. None: not asked."""

    name: str
    kind: str
    layer: int | None
    head: int | None
    drop: Interval
    control: Interval | None
    beyond: Interval | None
    gain: Interval | None

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


@torch.no_grad()
def transplant(known: Setting, part: Part, *, few: Setting | None = None, control: bool = True, gain: bool = True) -> Effect:
    """A part's weights: the base's in the specialist, the specialist's moved at random, the specialist's in the base.

    `few`: a setting of the first rows of `known`, on which control and gain are asked instead."""
    few, own, other = few or known, known.known.specialist, known.known.base
    back = grafted(own, other, [part])
    drop_N = known.score(known.specialist) - _asked(known, back, known.specialist, part)
    control_N = few.score(few.specialist) - _asked(few, signed(known.known, part, known.seed), few.specialist, part) if control else None
    gain_N = None
    if gain:
        with few.as_base():
            gain_N = _asked(few, grafted(other, own, [part]), few.base, part) - few.score(few.base)
    return _effect(known, few, (part.name, part.kind, part.layer, part.head), drop_N, control_N, gain_N)


def _asked(known: Setting, new: Mapping[str, Tensor], before: Pass, part: Part) -> np.ndarray:
    """The metric N with weights swapped in the pass `before`; its own where none is another."""
    if not new:
        return known.score(before)
    with swapped(known.bench.model, new):
        return known.score(known.bench.onward(before, _first(known, part)))


@torch.no_grad()
def activation(known: Setting, kind: str, layer: int, head: int | None = None, *, few: Setting | None = None, control: bool = True) -> Effect:
    """The base's activations at a site in the specialist's pass: what all that changed up to there brought to it. `kind`: resid_post or a site of the
    setting (attn.z, of one head with `head`; attn.out, mlp.out).

    The control (on `few`, see `transplant`) is the specialist's activations moved as far with random signs by feature, the same at every position: equal
    norms, no direction.
    Raises UsageError for a site that the setting does not hold."""
    held = [*dict.fromkeys(site.split(".", 2)[2] for values in known.sites for site in values), "resid_post"]
    beyond = head is not None and (kind != "attn.z" or not 0 <= head < known.bench.parts.heads)
    if kind not in held or not 0 <= layer < known.bench.parts.depth or beyond:
        got = f"activations at layers.{layer}.{kind}{'' if head is None else f', head {head}'}"
        raise UsageError(got, allowed=f"{', '.join(held)} of {known.bench.parts.depth} layers; heads of attn.z", fix="name the site in setting(sites=…)")
    name, few = f"layers.{layer}.{kind}" if head is None else f"layers.{layer}.head.{head}", few or known
    drop_N = known.score(known.specialist) - known.score(_patched(known, kind, layer, head, None))
    seed = zlib.crc32(f"{known.seed} {name}".encode())
    control_N = few.score(few.specialist) - few.score(_patched(few, kind, layer, head, seed)) if control else None
    return _effect(known, few, (name, kind if head is None else "head", layer, head), drop_N, control_N, None)


@dataclass(frozen=True, slots=True)
class Curve:
    """The base with more and more of the specialist's parts. `order`: what they are ordered by; `counts` of parts; `kept`: share of the specialist's gain
    over the base at each (0 the base, 1 the specialist), with its interval over rows; `needed`: the smallest count asked that keeps `ENOUGH`.

    An order by effects that were measured on the same rows flatters itself; the random orders do not."""

    order: str
    names: tuple[str, ...]
    counts: tuple[int, ...]
    kept: tuple[Interval, ...]
    needed: int | None

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null."""
        return plain(asdict(self))


@torch.no_grad()
def curve(known: Setting, ordered: Sequence[Part], order: str, *, points: int = 6) -> Curve:
    """Parts (that together are all, see `components`) given to the base in this order, the metric asked at about `points` counts between none and all.

    Raises UsageError for fewer than one point or no parts."""
    if points < 1 or not ordered:
        raise UsageError(f"{points} points of {len(ordered)} parts", allowed="at least one of each")
    inner = np.unique(np.geomspace(1, max(1, len(ordered) - 1), points).round().astype(int)).tolist()
    base_N, whole_N = known.score(known.base), known.score(known.specialist)
    gain_N, before, done, found = whole_N - base_N, known.base, 0, [np.zeros(len(base_N))]
    with known.as_base():
        for count in inner:
            first = min(_first(known, part) for part in ordered[done:count])
            with swapped(known.bench.model, grafted(known.known.base, known.known.specialist, ordered[:count])):
                before, done = known.bench.onward(before, first), count
            found.append(known.score(before) - base_N)
    counts = [0, *inner, *([len(ordered)] if inner[-1] < len(ordered) else [])]
    found += [gain_N] * (len(counts) - len(found))
    kept = [bootstrap(partial(_kept, some_N, gain_N), known.clusters, draws=known.draws, seed=known.seed, vectorised=True) for some_N in found]
    enough = [count for count, share in zip(counts, kept, strict=True) if share.value >= ENOUGH]
    return Curve(order, tuple(part.name for part in ordered), tuple(counts), tuple(kept), enough[0] if enough and gain_N.mean() > 0 else None)


def _kept(some_N: np.ndarray, gain_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    return ratio(weights_DN @ some_N, weights_DN @ gain_N)


def _first(known: Setting, part: Part) -> int:
    """The first block that a change of the part reaches."""
    return part.layer if part.layer is not None else known.bench.parts.depth if part.kind == "final" else -1


def _patched(known: Setting, kind: str, layer: int, head: int | None, seed: int | None) -> Pass:
    """The specialist's pass with the base's activations at a site; with `seed` moved as far at random instead."""
    mine = known.specialist
    if kind == "resid_post":
        pairs = zip(mine.streams, known.base.streams, strict=True)
        blended = [(*own[: layer + 1], _blended(None, seed, other[layer + 1], own[layer + 1])) for own, other in pairs]
        return known.bench.onward(replace(mine, streams=tuple(blended)), layer + 1)
    values = tuple(held[f"layers.{layer}.{kind}"] for held in known.sites)
    return known.bench.onward(mine, layer, Patch(kind, values, partial(_blended, head, seed)))


def _blended(head: int | None, seed: int | None, theirs: Tensor, mine: Tensor) -> Tensor:
    at = (slice(None), slice(None)) if head is None else (slice(None), slice(None), head)
    new, other = mine.clone(), theirs[at]
    if seed is not None:
        signs = torch.randint(0, 2, other.shape[2:], generator=torch.Generator().manual_seed(seed)).to(other) * 2 - 1
        other = mine[at] + signs * (other - mine[at])
    new[at] = other
    return new


def _effect(
    known: Setting, few: Setting, label: tuple[str, str, int | None, int | None], drop_N: np.ndarray, control_N: np.ndarray | None, gain_N: np.ndarray | None
) -> Effect:
    beyond_N = None if control_N is None else drop_N[: len(control_N)] - control_N
    return Effect(*label, known.sure(drop_N), *(None if value_N is None else few.sure(value_N) for value_N in (control_N, beyond_N, gain_N)))
