"""The circuit behind an answer: the fewest edges that keep it while all the others carry another input's values.

    found = find_circuit(model, base, source, lambda logits: logits[:, yes] - logits[:, no])
    found.circuit.edges, found.faithfulness, found.complement, found.control.p

Scores rank the edges (explain/edge_attribution.py, or `edge_ablation` here), circuits of growing size are run exactly (explain/circuits/run.py), and the
smallest that is faithful enough is reported with an interval, what the rest does without it, and random circuits beside it.
Shape letters: S senders, R readers, B pairs, C circuits, E edges, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.curves import SHARES, Control, Curve, Measured, control, curve, measure
from knowhow.explain.circuits.graph import Circuit, circuit_of, firsts, permuted, ranked
from knowhow.explain.circuits.run import Instead, Runs, prepare
from knowhow.explain.edge_attribution import EdgeScores, edge_attribution
from knowhow.explain.inputs import Inputs
from knowhow.explain.sweep import Metric
from knowhow.protocols import Progress
from knowhow.types import Interval

Prefer = Literal["size", "sign"]
PREFER: tuple[Prefer, ...] = ("size", "sign")
_ROUNDING, _EDGES = 1e-6, 256


@dataclass(frozen=True, slots=True)
class Pairs:
    """Base and source inputs of one shape and the metric of their answers (rows in the order of the inputs); `clusters`: pairs that belong together."""

    base: Inputs
    source: Inputs
    metric: Metric
    clusters: Sequence[str | int] | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """How a circuit is looked for.

    `level`: the faithfulness it must reach, and overshoot by no more than it may fall short; `shares`: the sizes tried, growing, of all edges; `steps`:
    points of EAP-IG; `greedy`: from the logits backwards, else the top n; `prefer`: edges of the largest scores by size, or (sign) those that hold the
    answer up, as MIB takes for CPR; `draws`: random circuits of the chosen size, p being at least 1 / (draws + 1), of which `curves` are run at all sizes;
    `refine`: how often the step between the last size that is not faithful enough and the first that is gets halved; `instead`, `answer`: see `prepare`."""

    level: float = 0.9
    shares: tuple[float, ...] = SHARES
    steps: int = 5
    greedy: bool = True
    prefer: Prefer = "size"
    draws: int = 20
    curves: int = 4
    refine: int = 5
    instead: Instead = "source"
    answer: int | None = -1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted(set(self.shares)) or not 0 < self.shares[0] <= self.shares[-1] <= 1:
            raise UsageError(f"shares {self.shares}", allowed="growing shares above 0 and up to 1")
        if not 1 <= self.curves <= self.draws or self.prefer not in PREFER:
            got = f"{self.draws} draws, {self.curves} curves, prefer {self.prefer!r}"
            raise UsageError(got, allowed=f"at least 1, no more curves than draws; {', '.join(PREFER)}")


@dataclass(frozen=True, slots=True)
class Found:
    """`circuit`: of the smallest size tried whose faithfulness reaches the level (`reached`; else the largest size), `share` the size asked for.

    `faithfulness` with its interval over pairs, and of the `complement` (all other edges: near 0 where the circuit is complete, Wang et al. 2023, arXiv
    2211.00593); `curve` over all sizes; `control`: random circuits. The size is chosen on the pairs that it is measured on."""

    circuit: Circuit
    share: float
    reached: bool
    faithfulness: Interval
    complement: Interval
    curve: Curve
    control: Control

    def row(self) -> dict[str, Any]:
        """A record that JSON can hold."""
        both = {
            name: {"value": one.value, "low": one.low, "high": one.high, "n": one.n}
            for name, one in (("faithfulness", self.faithfulness), ("complement", self.complement))
        }
        head = {"circuit": self.circuit.row(), "share": self.share, "reached": self.reached}
        return {**head, **both, "curve": self.curve.row(), "control": self.control.row()}


def find_circuit(
    model: torch.nn.Module, base: Inputs, source: Inputs, metric: Metric, *,
    search: Search = Search(), scores: EdgeScores | None = None, held: Pairs | None = None, progress: Progress | None = None,
) -> Found:  # fmt: skip
    """The smallest circuit that keeps the answers to `base` when `source` flows along all its other edges.

    `metric`: logits BV at the answer → one number per pair, which base and source should differ in; `scores`: of all edges (EAP-IG between the pairs unless
    given); `held`: pairs to measure on instead of those that the edges were scored on, which makes curve, choice and control honest about new inputs.
    Cost: 2 · steps + 3 passes for the scores, then about (curves + 1) · sizes + draws + refine circuits of 1.5 to 3 passes each.
    Raises UsageError where `edge_attribution` and `prepare` do, and where base and source have the same metric on average."""
    pairs = held or Pairs(base, source, metric)
    runs = prepare(model, pairs.base, pairs.source, instead=search.instead, answer=search.answer)
    if scores is None:
        scores = edge_attribution(model, base, source, metric, answer=search.answer, steps=search.steps, progress=progress)
    if scores.senders != runs.graph.senders or scores.readers != runs.graph.readers:
        raise UsageError(f"scores of {len(scores.senders)} senders and {len(scores.readers)} readers", allowed="scores of this model's edges")
    return pick(runs, scores, pairs, search, progress=progress)


def pick(runs: Runs, scores: EdgeScores, pairs: Pairs, search: Search = Search(), *, progress: Progress | None = None) -> Found:
    """`find_circuit` with scores and runs at hand."""
    whole, values_SR = runs.graph, _preferred(scores, search.prefer)
    counts = [max(1, round(share * whole.size)) for share in search.shares]
    ranking_E = ranked(values_SR, whole, greedy=search.greedy)
    masks = firsts(ranking_E, counts, whole)
    measured = measure(runs, masks, pairs.metric, pairs.clusters, progress)
    ends = np.stack([measured.model, measured.nothing])
    if abs(np.diff(ends.mean(1))) <= _ROUNDING * np.abs(ends).max():
        fix = "check that source changes the answer"
        raise UsageError("pairs whose metric is the same without any edge", allowed="a metric that base and source differ in", fix=fix)
    enough = np.flatnonzero(_near(measured, search))
    count = counts[enough[0]] if len(enough) else counts[-1]
    if len(enough) and enough[0] > 0:
        count = _between(runs, ranking_E, pairs, search, (counts[enough[0] - 1], count), measured)
    circuit_1SR = firsts(ranking_E, [count], whole)
    dealt = [ranked(one, whole, greedy=search.greedy) for one in permuted(values_SR, whole, draws=search.draws, seed=search.seed)]
    beside = [firsts(one, [count, *(counts if at < search.curves else ())], whole) for at, one in enumerate(dealt)]
    rest = measure(runs, torch.cat([circuit_1SR, whole.possible & ~circuit_1SR, *beside]), pairs.metric, pairs.clusters, progress)
    drawn = np.split(rest.faithfulness[2:], np.cumsum([len(one) for one in beside])[:-1])
    faithful, complement = rest.part(slice(0, 2)).intervals(rest.part(slice(0, 2)).statistic(), seed=search.seed)
    random = control(search.shares, np.stack([one[1:] for one in drawn[: search.curves]]), faithful.value, np.array([one[0] for one in drawn]))
    found = curve(search.shares, masks.flatten(1).sum(1).tolist(), measured, seed=search.seed)
    return Found(circuit_of(circuit_1SR[0], whole), count / whole.size, len(enough) > 0, faithful, complement, found, random)


def _near(measured: Measured, search: Search) -> np.ndarray:
    """Which circuits C are faithful enough."""
    return np.abs(1 - measured.faithfulness) <= 1 - search.level


def _between(runs: Runs, ranking_E: torch.Tensor, pairs: Pairs, search: Search, ends: tuple[int, int], measured: Measured) -> int:
    """The size halved towards the largest that is not faithful enough, `refine` times: the smallest found that is. `ends`: one that is not, one that is."""
    low, high = ends
    for _ in range(search.refine):
        if high - low < 2:
            break
        middle = (low + high) // 2
        values = runs.values(firsts(ranking_E, [middle], runs.graph), pairs.metric).numpy()
        near = bool(_near(Measured(values, measured.model, measured.nothing, measured.clusters), search)[0])
        low, high = (low, middle) if near else (middle, high)
    return high


def _preferred(scores: EdgeScores, prefer: Prefer) -> torch.Tensor:
    """SR: the more, the sooner an edge is kept. A score is what happens when the edge is lost, so edges that hold the answer up have negative ones."""
    mean_SR = scores.scores.mean(2)
    return mean_SR.abs() if prefer == "size" else -mean_SR


def edge_ablation(runs: Runs, metric: Metric, progress: Progress | None = None) -> EdgeScores:
    """What edge attribution estimates, exactly: the metric with each edge alone carrying what goes `instead` along it, less the metric of all edges.

    Cost: one circuit per edge, from the reader's layer on. Where one edge stands in for another, neither shows (see `edge_effects`)."""
    whole, (full_B,) = runs.graph, runs.values(runs.graph.possible[None], metric)
    scores = torch.zeros(*whole.possible.shape, len(full_B))
    # by reader, so that those that run together are the same as long as they can be
    edges_E2 = whole.possible.T.nonzero().flip(1)
    for done, part in enumerate(edges_E2.split(_EDGES)):
        if progress is not None:
            progress("edge ablation", done * _EDGES, len(edges_E2))
        masks = whole.possible.repeat(len(part), 1, 1)
        masks[torch.arange(len(part)), part[:, 0], part[:, 1]] = False
        scores[part[:, 0], part[:, 1]] = (runs.values(masks, metric) - full_B).float()
    return EdgeScores(scores, whole.senders, whole.readers, whole.possible)
