"""Single interventions as a person says them: swap a value in from another run, take it out, push it somewhere.

    patch(model, base, source, "layers.2.attn.z", at=At(heads=[1]))      # logits of `base` with one head's output taken from `source`
    ablate(model, inputs, "layers.*.mlp.out", how="mean", known=rows)    # … with parts of the model saying the same everywhere
    with steer(model, "layers.3.resid_post", direction, 4.0):            # also while it generates
        model.generate(**inputs)

Each is an `Edit` of a tap (model/taps.py), so what holds there holds here: any family, adapters, a cache, bit-equal afterwards. Many places at once
and exactly: explain/sweep.py. Shape letters: B rows, T positions, D what a site holds, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from knowhow.errors import UsageError
from knowhow.explain.inputs import Inputs
from knowhow.model.sites import find
from knowhow.model.taps import At, Edit, tap

How = Literal["zero", "mean", "resample", "noise"]
EVERYWHERE = At()
HOWS: tuple[How, ...] = ("zero", "mean", "resample", "noise")


@torch.no_grad()
def patch(model: torch.nn.Module, base: Inputs, source: Inputs, *sites: str, at: At = EVERYWHERE) -> torch.Tensor:
    """Logits of `base` where the part `at` of each site has the value that `source` gives it (Vig et al. 2020, arXiv 2004.12265).

    Sites may be patterns. Raises UsageError for no sites, where a tap does, and where the two runs have parts of different shapes."""
    names = _named(model, sites)
    with tap(model, *names, at=at) as seen:
        model(**source)
    with tap(model, edits=[Edit(name, _instead(name, seen[name]), at) for name in names]):
        return model(**base).logits


@torch.no_grad()
def ablate(
    model: torch.nn.Module, inputs: Inputs, *sites: str, how: How = "zero", known: Inputs | None = None, at: At = EVERYWHERE, seed: int = 0
) -> torch.Tensor:  # fmt: skip
    """Logits of `inputs` with the part `at` of each site taken out.

    zero: set to 0. mean: to its mean over rows and positions (Wang et al. 2022, arXiv 2211.00593). resample: rows exchanged among themselves, each for
    another (Chan et al. 2022, causal scrubbing). noise: normal noise of the part's own standard deviation added (Meng et al. 2022, arXiv 2202.05262 take
    three times that of the embedding). `known`: rows that mean and deviation are taken from, those of `inputs` unless given.
    Raises UsageError for an unknown `how`, a resample of fewer than two rows, no sites and where a tap does."""
    if how not in HOWS:
        raise UsageError(f"ablation by {how}", allowed=", ".join(HOWS))
    names = _named(model, sites)
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = dict.fromkeys(names, torch.zeros_like)
    if how == "resample":
        changes = dict.fromkeys(names, _exchanged(seed))
    elif how != "zero":
        source = inputs if known is None else known
        if (mask := source.get("attention_mask")) is not None and not bool(mask.all()):
            fix = "give rows of one length as known=…, or take explain/places.py, whose means leave padding out"
            raise UsageError(f"a {how} over padded rows", allowed="rows without padding", fix=fix)
        with tap(model, *names, at=at) as seen:
            model(**source)
        changes = {name: _to_mean(seen[name]) if how == "mean" else _noisy(seen[name], seed) for name in names}
    with tap(model, edits=[Edit(name, changes[name], at) for name in names]):
        return model(**inputs).logits


def steer(model: torch.nn.Module, site: str, direction_D: torch.Tensor, scale: float = 1.0, *, at: At = EVERYWHERE) -> tap:
    """A context in which `scale` times a direction is added at a site, at every position or those of `at` (activation addition, Turner et al. 2023,
    arXiv 2308.10248). Raises UsageError where a tap does, and inside it for a direction of another width."""
    return tap(model, edits=[Edit(name, _pushed(name, direction_D, scale), at) for name in _named(model, [site])])


def contrast(model: torch.nn.Module, towards: Inputs, away: Inputs, site: str, *, position: int = -1) -> torch.Tensor:
    """Difference D of the means of a site at one position over two sets of rows: the direction that steering adds (Rimsky et al. 2024, arXiv 2312.06681)."""
    name = _named(model, [site])[0]
    found = []
    for inputs in (towards, away):
        if (mask := inputs.get("attention_mask")) is not None and not bool(mask[:, position].all()):
            raise UsageError(f"position {position}, which is padding in some rows", allowed="a position that all rows have", fix="pad on the left")
        with torch.no_grad(), tap(model, name, at=At(positions=[position])) as seen:
            model(**inputs)
        found.append(seen[name].flatten(0, -2).mean(0))
    return found[0] - found[1]


def _named(model: torch.nn.Module, sites: Sequence[str]) -> list[str]:
    if not sites:
        raise UsageError("no site", allowed="at least one name or pattern, such as layers.*.attn.out")
    return [site.name for site in find(model, *sites)]


def _instead(name: str, given: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(value: torch.Tensor) -> torch.Tensor:
        if value.shape != given.shape:
            fix = "pair texts of equal length, or name the positions with at=At(positions=…)"
            raise UsageError(f"values of shapes {tuple(value.shape)} and {tuple(given.shape)} at {name}", allowed="parts of the same shape", fix=fix)
        return given

    return change


def _to_mean(given: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Each head keeps a mean of its own: heads stand before the last axis where a site has them (patterns have no mean of use)."""
    mean = given.mean((0, 1))
    return lambda value: mean.expand_as(value)


def _noisy(given: torch.Tensor, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    deviation = given.float().std()

    def change(value: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
        return value + drawn * deviation.to(value)

    return change


def _exchanged(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(value: torch.Tensor) -> torch.Tensor:
        rows = len(value)
        if rows < 2:
            raise UsageError("a resample of one row", allowed="at least two rows", fix="give more rows, or take how='mean'")
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        after = torch.empty_like(order)
        after[order] = order.roll(1)
        return value[after.to(value.device)]

    return change


def _pushed(name: str, direction_D: torch.Tensor, scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(value: torch.Tensor) -> torch.Tensor:
        if direction_D.shape != value.shape[-1:]:
            raise UsageError(f"a direction of shape {tuple(direction_D.shape)}", allowed=f"({value.shape[-1]},), the width of {name}")
        return value + scale * direction_D.to(value)

    return change
