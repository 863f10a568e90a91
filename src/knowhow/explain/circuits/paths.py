"""Path patching: what a head tells one other head's queries, keys or values, or the logits, with all other ways between them shut.

The receiver alone gets its own value computed from the base run's stream with the sender's share taken from the source run; nothing in between sees the
change. Everything behind the receiver is computed anew, exactly (Goldowsky-Dill et al. 2023, arXiv 2304.05969; Wang et al. 2023, arXiv 2211.00593,
who let the MLPs in between pass it on: `through_mlps`). Cost: for each sender and receiver the blocks from the receiver's on, at positions from the
first that differs; rows of all pairs of parts travel together and join at their receiver's layer.
Shape letters: B pairs, T tokens, t tokens from the first that differs, S senders, P receivers (or sets of them), R rows, D stream, H heads, K head size,
V vocabulary (a classifier's labels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.explain.attribution import answered
from knowhow.explain.circuits.graph import LOGITS, Graph, graph
from knowhow.explain.circuits.ports import KINDS, Ports, Sent, Swap, before_attention, check_adds, mlp_says, ports, sent, swapped
from knowhow.explain.circuits.run import check_pairs
from knowhow.explain.edges import Reader, readers
from knowhow.explain.inputs import Inputs
from knowhow.explain.sweep import ROWS, Metric
from knowhow.model.replay import Recording, record
from knowhow.protocols import Progress

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Paths:
    """`effects` SPB: change of the metric when the way from a sender to a receiver carries the source run's value; 0 where the sender comes after it.

    `senders` (a0.h1 …), `receivers` (a1.h2.q, a1.h0.k, m1, logits; one name joined by + for a set); `base` and `source`: the metric of both runs, B."""

    effects: Tensor
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    base: Tensor
    source: Tensor

    @property
    def shares(self) -> Tensor:
        """Effects as shares of the whole change from base to source, over the mean of the pairs, SP. NaN where the runs do not differ."""
        whole = (self.source - self.base).mean()
        return torch.where(whole != 0, self.effects.mean(2) / whole, torch.nan)

    def row(self) -> dict[str, Any]:
        """A record that JSON can hold: mean effects."""
        return {
            "senders": list(self.senders),
            "receivers": list(self.receivers),
            "effects": self.effects.mean(2).tolist(),
            "base": float(self.base.mean()),
            "source": float(self.source.mean()),
        }


@torch.no_grad()
def path_effects(
    model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, receivers: Sequence[str | Sequence[str]] = (LOGITS,), *,
    through_mlps: bool = False, answer: int | None = -1, progress: Progress | None = None,
) -> Paths:  # fmt: skip
    """Effects of all senders (embedding, heads, MLPs) on each receiver, or set of receivers that are patched at once, each with its value by the direct way.

    `metric`: logits BV at the answer → one number per pair; `receivers`: names of ports as in EdgeScores (k and v: of a key-value group).
    `through_mlps`: MLPs between sender and receiver answer to the change, heads do not.
    Raises UsageError where `prepare` does, for receivers that the model does not have and for a metric that is not one number per pair."""
    here = _setting(model, base, source)
    sets = [(one,) if isinstance(one, str) else tuple(one) for one in receivers]
    every = list(dict.fromkeys(name for names in sets for name in names))
    unknown = [name for name in every if name not in here.whole.readers]
    if unknown or not every:
        raise UsageError(f"the receiver {(unknown or ['none'])[0]}", allowed=f"{', '.join(here.whole.readers[:4])} … {LOGITS}")
    ports_of = {port.name: port for port in readers(here.recorded.parts)}
    gets = _direct(here, [ports_of[name] for name in every if name != LOGITS], through=through_mlps)
    jobs = []
    for at, names in enumerate(sets):
        for s in range(len(here.whole.senders)):
            reached = tuple(name for name in names if s < len(gets[name]))
            if reached:
                jobs.append(_Job(s, at, tuple(ports_of[name] for name in reached if name != LOGITS), LOGITS in reached, here.recorded.parts.depth))
    base_B = _measured(metric, answered(here.recorded.logits_all, answer), len(here.base.stream[0]))
    source_B = _measured(metric, answered(model(**source).logits, answer), len(base_B))
    effects = torch.zeros(len(here.whole.senders), len(sets), len(base_B), dtype=base_B.dtype, device=base_B.device)
    # a chunk of jobs that join late begins late
    jobs.sort(key=lambda job: -job.joins)
    size = max(1, ROWS // len(base_B))
    for low in range(0, len(jobs), size):
        if progress is not None:
            progress("paths", low, len(jobs))
        part = jobs[low : low + size][::-1]
        for job, logits in zip(part, _logits(here, gets, part, answer), strict=True):
            effects[job.sender, job.at] = _measured(metric, logits, len(base_B)) - base_B
    return Paths(effects, here.whole.senders, tuple("+".join(names) for names in sets), base_B, source_B)


@dataclass(frozen=True, slots=True)
class _Setting:
    """Both runs from position `start` on."""

    recorded: Recording
    layers: tuple[Ports, ...]
    base: Sent
    source: Sent
    whole: Graph
    start: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One sender patched into a set of receivers (those that come after it): its row in the wave."""

    sender: int
    at: int
    receivers: tuple[Reader, ...]
    logits: bool
    depth: int

    @property
    def joins(self) -> int:
        return min((port.layer for port in self.receivers), default=self.depth)


def _setting(model: torch.nn.Module, base: Inputs, source: Inputs) -> _Setting:
    check_pairs(base, source)
    recorded = record(model, base)
    check_adds(recorded.parts)
    layers = tuple(ports(recorded.parts, layer) for layer in range(recorded.parts.depth))
    first, second = sent(model, base), sent(model, source)
    differ_T = (first.stream[0] != second.stream[0]).any(2).any(0)
    start = int(differ_T.nonzero()[0]) if recorded.causal and differ_T.any() else 0
    return _Setting(recorded, layers, first.behind(start), second.behind(start), graph(recorded.parts), start)


def _measured(metric: Metric, logits: Tensor, B: int) -> Tensor:
    value_B = metric(logits)
    if value_B.shape != (B,):
        raise UsageError(f"a metric of shape {tuple(value_B.shape)}", allowed=f"one number per pair, ({B},)")
    return value_B


def _direct(here: _Setting, wanted: Sequence[Reader], *, through: bool) -> dict[str, Tensor]:
    """Receiver → what it gets with each sender before it patched alone, in their order: the head's value SBtK before rotation, what the MLP adds SBtD;
    of the logits by how much the last stream moves."""
    parts, whole, start, end = here.recorded.parts, here.whole, here.base, here.source
    moved, found = start.stream[0].new_zeros(len(whole.senders), *start.stream[0].shape), dict[str, Tensor]()
    moved[0] = end.stream[0] - start.stream[0]
    for layer, own in enumerate(here.layers):
        heads, mlp = whole.sends(layer)
        here_wanted = [port for port in wanted if port.layer == layer]
        if any(port.port != "mlp" for port in here_wanted):
            read = before_attention(parts, layer, (moved[: heads.start] + start.stream[layer]).flatten(0, 1))
            normed_S1ND = read.view(heads.start, 1, -1, read.shape[-1])
            for port in here_wanted:
                if port.port != "mlp":
                    found[port.name] = own.project(port.port, normed_S1ND, [port.head])[:, 0].unflatten(1, moved.shape[1:3])
        moved[heads] = ((end.z[layer] - start.z[layer]).permute(2, 0, 1, 3).flatten(1, 2) @ own.out).unflatten(1, moved.shape[1:3])
        before = heads.start if parts.anatomy.mid is None else mlp
        if through or any(port.port == "mlp" for port in here_wanted):
            found[f"m{layer}"] = mlp_says(parts, layer, (moved[:before] + start.middle[layer]).flatten(0, 1)).unflatten(0, (before, -1))
        if through:
            moved[:before] += found[f"m{layer}"] - start.mlp[layer]
        moved[mlp] = end.mlp[layer] - start.mlp[layer]
    return found | {LOGITS: moved}


def _logits(here: _Setting, gets: Mapping[str, Tensor], jobs: Sequence[_Job], answer: int | None) -> Tensor:
    """Logits (jobs)BV of jobs in the order in which they join."""
    recorded, B, start = here.recorded, len(here.base.stream[0]), here.start
    hidden = here.base.stream[0][:0]
    for layer in range(jobs[0].joins, len(here.layers)):
        hidden = torch.cat([hidden, here.base.stream[layer].repeat(sum(job.joins == layer for job in jobs), 1, 1)])
        rows = [(slice(at * B, (at + 1) * B), job.sender, port) for at, job in enumerate(jobs) for port in job.receivers if port.layer == layer]
        swaps = [Swap(port.port, port.head, where, gets[port.name][s]) for where, s, port in rows if port.port in KINDS]
        added = [(where, gets[port.name][s]) for where, s, port in rows if port.port == "mlp"]

        def instead(value: Tensor, added: Sequence[tuple[slice, Tensor]] = added) -> Tensor:
            new = value.clone()
            for where, says in added:
                new[where] = says
            return new

        with swapped(recorded.parts.attention(layer), here.layers[layer], swaps):
            hidden = recorded.block(layer, hidden, start=start, changes={"mlp.out": instead} if added else {})
    hidden = torch.cat([hidden, here.base.stream[-1].repeat(sum(job.joins == len(here.layers) for job in jobs), 1, 1)])
    for at, job in enumerate(jobs):
        if job.logits:
            hidden[at * B : (at + 1) * B] += gets[LOGITS][job.sender]
    return recorded.logits(hidden, start=start, position=answer).unflatten(0, (-1, B))
