"""What changed between a base and its specialist, in one call: by weights, by effect, in the heads' roles.

Two checkpoints of one architecture; the second may have a longer vocabulary, a classification head, LoRA matrices. The pieces are in weights (how the
weights moved), effects (what the moves do), roles (what heads do now), and can be called alone on a `setting.setting`.
Shape letters: N rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.diff.effects import Curve, Effect, activation, curve, transplant
from knowhow.explain.diff.parts import Part, components, heads
from knowhow.explain.diff.roles import Outliers, Roles, outliers, roles
from knowhow.explain.diff.setting import Setting, setting
from knowhow.explain.diff.weights import Change, Size, by_layer, of_pair, plain, size, totals
from knowhow.explain.sweep import Metric
from knowhow.protocols import Progress
from knowhow.types import Interval

__all__ = ["Budget", "Component", "Difference", "diff"]


@dataclass(frozen=True, slots=True)
class Budget:
    """`rows`: the most that parts are asked about (the first ones given); `fewer`: the most for controls, gains and curves; `points` and
    `random_orders` of the curves; `seconds`: after so long what is left is left out and named. What is there is what more time would give."""

    rows: int = 24
    fewer: int = 8
    points: int = 5
    random_orders: int = 2
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """One cell of a map layers × parts: how far the weights moved, what that does. Heads: `size` of their slices, `effect` of their activations."""

    name: str
    kind: str
    layer: int | None
    head: int | None
    size: Size
    effect: Effect | None


@dataclass(frozen=True, slots=True)
class Difference:
    """`specialist`, `base` (with the specialist's head): the metric, means over rows; `gap`: their difference, row by row. `weights`: every matrix;
    `components`: embed, attn, mlp, final, heads; `depth`: the base's stream up to each layer, the specialist's blocks after it; `fresh`: embedding rows
    that only the specialist has; `left_out`: what the budget of seconds did not reach."""

    specialist: Interval
    base: Interval
    gap: Interval
    fresh: int
    weights: tuple[Change, ...]
    components: tuple[Component, ...]
    depth: tuple[Effect, ...]
    curves: tuple[Curve, ...]
    roles: Roles | None
    outliers: Outliers | None
    left_out: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """Plain JSON; NaN as null. `layers`: by layer its share of the squared change and of the parameters."""
        return plain(asdict(self)) | {"layers": plain(by_layer(self.weights))}


@torch.no_grad()
def diff(
    base: torch.nn.Module, specialist: torch.nn.Module, rows: Sequence[Sequence[int]], metric: Metric, *,
    clusters: Sequence[Any] | None = None, budget: Budget = Budget(), seed: int = 0, progress: Progress | None = None,
) -> Difference:  # fmt: skip
    """What changed, on rows of token ids of the specialist's vocabulary.

    `metric`: logits of all rows (a classifier's NC, a language model's at the last token NV) → one number per row, higher is better, no row's depending on
    another's: rows that a question is not asked about come as zeros. `clusters`: rows of one cluster are drawn together.
    Raises UsageError where `setting.setting` does and for a budget of no rows."""
    if budget.rows < 1 or budget.fewer < 1:
        raise UsageError(f"{budget.rows} rows, {budget.fewer} for controls", allowed="at least 1 of each")
    if clusters is not None and len(clusters) != len(rows):
        raise UsageError(f"{len(clusters)} clusters for {len(rows)} rows", allowed="one cluster per row")
    clock = _Clock(None if budget.seconds is None else time.monotonic() + budget.seconds, [])
    counts = [min(len(rows), count) for count in (budget.rows, min(budget.rows, budget.fewer))]
    made = [setting(base, specialist, rows[:n], _first_of(metric, n, len(rows)), clusters=clusters and clusters[:n], seed=seed) for n in dict.fromkeys(counts)]
    asked, parts, total = _Asked(made[0], made[-1], clock, progress), components(specialist), totals(specialist, made[0].known)
    changes = () if clock.late("weights") else of_pair(specialist, made[0].known, seed=seed, progress=progress)
    effects = asked.parts(parts) | asked.heads()
    slices = [*parts, *(part for part in heads(specialist) if part.kind == "head")]
    cells = [Component(part.name, part.kind, part.layer, part.head, size(part, made[0].known, total), effects.get(part.name)) for part in slices]
    depth = [activation(made[0], "resid_post", layer, control=False) for layer in range(made[0].bench.parts.depth) if not clock.late(f"depth {layer}")]
    curves = asked.curves(parts, cells[: len(parts)], budget)
    moved, tails = (None if clock.late(name) else call(made[0]) for name, call in (("roles", roles), ("outliers", outliers)))
    scores = [made[0].score(passed) for passed in (made[0].specialist, made[0].base)]
    sure = [made[0].sure(value_N) for value_N in (*scores, scores[0] - scores[1])]
    return Difference(*sure, made[0].known.fresh, changes, tuple(cells), tuple(depth), curves, moved, tails, tuple(clock.left_out))


def _first_of(metric: Metric, n: int, rows: int) -> Metric:
    """The metric of the first n rows alone."""
    return lambda logits_NV: metric(torch.cat([logits_NV, logits_NV.new_zeros(rows - n, logits_NV.shape[1])]))[:n]


@dataclass(frozen=True, slots=True)
class _Clock:
    until: float | None
    left_out: list[str]

    def late(self, what: str) -> bool:
        """Whether there is no time for this; it is noted then."""
        over = self.until is not None and time.monotonic() >= self.until
        self.left_out.extend([what] if over else [])
        return over


@dataclass(frozen=True, slots=True)
class _Asked:
    known: Setting
    few: Setting
    clock: _Clock
    progress: Progress | None

    def parts(self, parts: Sequence[Part]) -> dict[str, Effect]:
        return self._each("parts", {part.name: partial(transplant, self.known, part, few=self.few) for part in parts})

    def heads(self) -> dict[str, Effect]:
        body = self.known.bench.parts
        places = {f"layers.{layer}.head.{head}": (layer, head) for layer in range(body.depth) for head in range(body.heads)}
        return self._each("heads", {name: partial(activation, self.known, "attn.z", *place, few=self.few) for name, place in places.items()})

    def curves(self, parts: Sequence[Part], cells: Sequence[Component], budget: Budget) -> tuple[Curve, ...]:
        """Parts by what they do, by how far they moved, and at random."""
        orders = {"weights": np.argsort([-cell.size.relative for cell in cells], kind="stable")}
        if all(cell.effect is not None for cell in cells):
            orders["effect"] = np.argsort([-cell.effect.drop.value for cell in cells if cell.effect is not None], kind="stable")
        random = np.random.Generator(np.random.PCG64(self.known.seed))
        orders |= {f"random {draw}": random.permutation(len(parts)) for draw in range(budget.random_orders)}
        wanted = {name: [parts[at] for at in order] for name, order in orders.items()}
        return tuple(curve(self.few, order, name, points=budget.points) for name, order in wanted.items() if not self.clock.late(f"curve {name}"))

    def _each(self, what: str, calls: Mapping[str, Callable[[], Effect]]) -> dict[str, Effect]:
        found = {}
        for done, (name, call) in enumerate(calls.items()):
            if self.progress is not None:
                self.progress(what, done, len(calls))
            if not self.clock.late(name):
                found[name] = call()
        return found
