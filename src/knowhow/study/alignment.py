"""Which data pushes a head's score up: the slope of the score along −∇loss of rows of each kind, at weights kept just before the head rose.

Under gradient flow on those rows alone, d score / d time = −∇L · ∇score; Adam and Muon turn the step, so this says what the data asks for, not how far a step
went. Controls: the same rows with their tokens shuffled, and the other heads of the layer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from knowhow.data.batch import IGNORE
from knowhow.loop.step import to_device
from knowhow.maths import hvp
from knowhow.model.loaded import device_of
from knowhow.observe.looking import trained, unnoticed
from knowhow.protocols import Objective
from knowhow.study.crossings import Row, highest, series, steepest
from knowhow.study.roles import ROLES, scores
from knowhow.study.story import head_columns
from knowhow.types import Batch

LEAST_RISE = 0.05
CHUNKS = 8
Gradient = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Rise:
    """The head of a role whose score rose most over the run, and the two looks around its steepest rise."""

    role: str
    layer: int
    head: int
    rise: float
    before: int
    step: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Push:
    """Of rows of one kind: `slope` of the score along −∇loss (mean over `n` chunks of rows, with its 95% interval), `cosine` of the two gradients, and
    the slope of the controls."""

    data: str
    slope: float
    low: float
    high: float
    n: int
    cosine: float
    shuffled: float
    shuffled_low: float
    shuffled_high: float
    others: float

    @property
    def pushes(self) -> bool:
        """Up, beyond its interval, and more than the shuffled rows do."""
        return self.low > 0 and self.slope > self.shuffled_high


def rises(rows: Sequence[Row]) -> list[Rise]:
    """For each role the head that rose most, where it rose by LEAST_RISE or more; the largest rise first."""
    found = []
    for role in ROLES:
        tops = [(highest(looks)[1] - looks[0][1], site, looks) for site, name in head_columns(rows, role).items() if len(looks := series(rows, name)) > 1]
        if not tops:
            continue
        rise, site, looks = max(tops, key=lambda top: top[0])
        change = steepest(looks, per_log=False)
        if rise >= LEAST_RISE and change is not None:
            values = dict(looks)
            layer, head = (int(part) for part in site.split(".")[1::2])
            found.append(Rise(role, layer, head, rise, change.before, change.step, values[change.before], values[change.step]))
    return sorted(found, key=lambda one: -one.rise)


def nearest(kept: Sequence[int], rise: Rise) -> int:
    """Of the steps at which weights were kept, the last one not behind the rise's first look, else the first one."""
    return max((step for step in kept if step <= rise.before), default=min(kept))


def pushes(model: torch.nn.Module, rise: Rise, data: Mapping[str, Sequence[Batch]], objective: Objective, length: int) -> list[Push]:
    """The push of each kind of rows on the head, the strongest first. The model is left as it was."""
    parameters = list(trained(model).values())
    with unnoticed(model), torch.enable_grad():
        each_H = scores(model, rise.layer, length)[rise.role]
        own = _gradient(each_H[rise.head], parameters, keep=True)
        rest = (each_H.sum() - each_H[rise.head]) / max(1, len(each_H) - 1)
        others = _gradient(rest, parameters) if len(each_H) > 1 else [torch.zeros_like(p) for p in parameters]
        size = math.sqrt(hvp.dot(own, own))
        found = [_push(name, batches, (own, others, size), lambda batch: _descent(model, objective, batch, parameters)) for name, batches in data.items()]
    return sorted(found, key=lambda one: -one.slope)


def record(rise: Rise, at: int, found: Sequence[Push]) -> dict[str, object]:
    """What story.json holds of a rise; `at`: the step of the weights."""
    return {**asdict(rise), "weights_at": at, "data": [{**asdict(one), "pushes": one.pushes} for one in found]}


def _push(name: str, batches: Sequence[Batch], head: tuple[Gradient, Gradient, float], descent: Callable[[Batch], Gradient]) -> Push:
    own, others, size = head
    slopes, cosines, shuffled, rest = [], [], [], []
    generator = torch.Generator().manual_seed(0)
    for batch in chunks(batches, CHUNKS):
        step = descent(batch)
        slopes.append(hvp.dot(step, own))
        rest.append(hvp.dot(step, others))
        cosines.append(slopes[-1] / max(1e-30, size * math.sqrt(hvp.dot(step, step))))
        shuffled.append(hvp.dot(descent(scrambled(batch, generator)), own))
    (slope, low, high), (other, other_low, other_high) = interval(slopes), interval(shuffled)
    return Push(name, slope, low, high, len(slopes), statistics.fmean(cosines), other, other_low, other_high, statistics.fmean(rest))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and ± 1.96 standard errors; without bounds for a single value."""
    mean = statistics.fmean(values)
    error = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean, mean - error, mean + error


def chunks(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The rows of the batches in about `count` smaller ones."""
    total = sum(len(batch.tokens_BT) for batch in batches)
    size = max(1, math.ceil(total / count))
    return [rows_of(batch, slice(start, start + size)) for batch in batches for start in range(0, len(batch.tokens_BT), size)]


def rows_of(batch: Batch, rows: slice) -> Batch:
    def part(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[rows]

    return replace(
        batch, tokens_BT=batch.tokens_BT[rows], mask_BT=batch.mask_BT[rows], targets_BT=part(batch.targets_BT), labels=part(batch.labels),
        onset_BK=part(batch.onset_BK), weight_B=part(batch.weight_B), groups=batch.groups[rows], ids=list(batch.ids)[rows],
        rewards=part(batch.rewards), teacher_logits=part(batch.teacher_logits),
    )  # fmt: skip


def scrambled(batch: Batch, generator: torch.Generator) -> Batch:
    """The rows with their real tokens in a random order each; next-token targets follow where they were supervised, labels stay."""
    tokens_BT = batch.tokens_BT.clone()
    for row, count in enumerate(batch.mask_BT.long().sum(1).tolist()):
        tokens_BT[row, :count] = tokens_BT[row, torch.randperm(count, generator=generator)]
    if batch.targets_BT is None:
        return replace(batch, tokens_BT=tokens_BT)
    next_BT = torch.cat([tokens_BT[:, 1:], batch.targets_BT[:, -1:]], 1)
    return replace(batch, tokens_BT=tokens_BT, targets_BT=torch.where(batch.targets_BT == IGNORE, batch.targets_BT, next_BT))


def _descent(model: torch.nn.Module, objective: Objective, batch: Batch, parameters: Sequence[torch.Tensor]) -> Gradient:
    batch = to_device(batch, device_of(model))
    found = hvp.gradient(lambda: objective(model, batch)[0] / max(1e-12, objective.units(batch)), parameters)
    return [-part for part in found]


def _gradient(value: torch.Tensor, parameters: Sequence[torch.Tensor], *, keep: bool = False) -> Gradient:
    parts = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(p) if part is None else part.detach() for p, part in zip(parameters, parts, strict=True)]
