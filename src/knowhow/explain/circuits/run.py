"""Circuits run exactly: every reader gets the base run's values along the edges of the circuit and other ones along all the rest.

A reader's input is the other run's stream plus, for each edge of the circuit into it, what that edge's sender says inside the circuit less what it said
in the other run (edge patching of a whole set at once; Wang et al. 2023, arXiv 2211.00593; Conmy et al. 2023, arXiv 2304.14997). Nothing is linearised.
Circuits travel through the blocks together as rows; those that are the same so far are one row, and in a causal model positions before the first one
where both runs differ are not computed. One circuit costs one pass, plus heads × that for the outputs of attention alone, plus S · R · D
multiplications a token for the sums, plus one norm a reader: 1.5 to 3 passes in all, not one a reader.
Shape letters: C circuits, U circuits that differ so far, S senders, R readers, r readers of one kind in one layer, B pairs, b pairs of one chunk,
T tokens, t tokens from the first that differs, N = b · t vectors, D stream, H heads, K head size, V vocabulary (a classifier's labels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.graph import Graph, connected, graph
from knowhow.explain.circuits.ports import Ports, Sent, before_attention, check_adds, constant, given, ports, sent
from knowhow.explain.inputs import Inputs, rows_of
from knowhow.explain.sweep import Metric
from knowhow.model.replay import Recording, record
from knowhow.model.sites import body
from knowhow.protocols import Progress

Tensor = torch.Tensor
Instead = Literal["source", "zero", "mean"]
INSTEAD: tuple[Instead, ...] = ("source", "zero", "mean")
ROOM = 1 << 25
"""The most numbers that what all senders say may take at a time, and the most logits that are held."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some of the pairs: the base run recorded, what senders say outside of the circuit (from `start` on), the first position where both differ."""

    base: Recording
    other: Sent
    start: int

    @property
    def first(self) -> Tensor:
        """What the embedding sends in the base run, btD."""
        return self.base.stream[0][:, self.start :]


@dataclass(frozen=True, slots=True)
class Runs:
    """What runs of circuits need of a model and pairs, made once by `prepare`."""

    graph: Graph
    layers: tuple[Ports, ...]
    chunks: tuple[_Chunk, ...]
    answer: int | None

    def logits(self, masks_CSR: Tensor, progress: Progress | None = None) -> Iterator[tuple[int, Tensor]]:
        """(index of a circuit, its logits BV at the answer; BTV where that is None), in any order. Masks as of `Graph`; impossible edges are ignored."""
        masks_CSR = connected(masks_CSR, self.graph)
        flat, inverse_C = np.unique(masks_CSR.transpose(1, 2).flatten(1).numpy(), axis=0, return_inverse=True)
        C, pairs = len(flat), sum(len(chunk.first) for chunk in self.chunks)
        different = torch.from_numpy(flat).view(C, len(self.graph.readers), -1).transpose(1, 2)
        wide = max(chunk.first.numel() for chunk in self.chunks) * len(self.graph.senders)
        shown = self.chunks[0].base.logits_all
        held = pairs * shown.shape[-1] * (shown.shape[1] if self.answer is None and shown.ndim == 3 else 1)
        size = max(1, min(ROOM // wide, ROOM // held))
        for low in range(0, C, size):
            if progress is not None:
                progress("circuits", low, C)
            found = torch.cat([_run(self, chunk, different[low : low + size]) for chunk in self.chunks], 1)
            for at, logits in enumerate(found, low):
                yield from ((int(circuit), logits) for circuit in (inverse_C.reshape(-1) == at).nonzero()[0])

    def values(self, masks_CSR: Tensor, metric: Metric, progress: Progress | None = None) -> Tensor:
        """The metric of each circuit and pair, CB. Raises UsageError for a metric that does not give one finite number per pair."""
        pairs = sum(len(chunk.first) for chunk in self.chunks)
        found = torch.zeros(len(masks_CSR), pairs, dtype=torch.float64)
        for at, logits in self.logits(masks_CSR, progress):
            value_B = metric(logits)
            if value_B.shape != (pairs,) or not bool(value_B.isfinite().all()):
                raise UsageError(f"a metric of shape {tuple(value_B.shape)}", allowed=f"one finite number per pair, ({pairs},)")
            found[at] = value_B.double()
        return found


@torch.no_grad()
def prepare(model: torch.nn.Module, base: Inputs, source: Inputs, *, instead: Instead = "source", answer: int | None = -1) -> Runs:
    """Records pairs (`base` and `source`: keyword arguments of the model with input_ids BT of one shape and the same padding).

    `instead`: what goes along the edges outside of a circuit: what their senders say in the source run, nothing (zero), or what they say on average over the
    source run's tokens (mean). `answer`: the position whose logits a metric gets, None for all; no matter to a classifier.
    Raises UsageError where `contributions` does (but for encoders without norms), for a model in training and for pairs that do not fit."""
    if instead not in INSTEAD:
        raise UsageError(f"instead {instead!r}", allowed=", ".join(INSTEAD))
    if model.training:
        raise UsageError("a model in training", allowed="a model in eval mode", fix="call model.eval() first")
    parts = body(model)
    check_adds(parts)
    check_pairs(base, source)
    whole, layers = graph(parts), tuple(ports(parts, layer) for layer in range(parts.depth))
    B, T = base["input_ids"].shape
    size = max(1, ROOM // (len(whole.senders) * T * parts.root.config.get_text_config().hidden_size))
    splits = [slice(low, min(low + size, B)) for low in range(0, B, size)]
    steady = None if instead == "source" else _steady(model, source, splits, layers, zero=instead == "zero")
    chunks = []
    for rows in splits:
        recorded = record(model, rows_of(base, rows))
        other, start = steady, 0
        if other is None:
            other = sent(model, rows_of(source, rows))
            differ_T = (recorded.stream[0] != other.stream[0]).any(2).any(0)
            start = int(differ_T.nonzero()[0]) if recorded.causal and differ_T.any() else 0
            other = other.behind(start)
        # a run needs neither what lies between the blocks nor the logits of every position
        kept = replace(recorded, stream=(recorded.stream[0], recorded.stream[-1]), middle=(), logits_all=recorded.logits_all[:1].clone())
        chunks.append(_Chunk(kept, other, start))
    return Runs(whole, layers, tuple(chunks), answer)


def check_pairs(base: Inputs, source: Inputs) -> None:
    """Raises UsageError for inputs of different shapes or padding, and for none."""
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (base, source)]
    if shapes[0] != shapes[1] or not shapes[0][0]:
        raise UsageError(f"inputs of shapes {shapes[0]} and {shapes[1]}", allowed="a base and a source of the same shape", fix="pair texts of equal length")
    for name in ("attention_mask", "position_ids"):
        first, second = base.get(name), source.get(name)
        if (first is None) != (second is None) or (first is not None and not torch.equal(first, second)):
            raise UsageError(f"a base and a source of different {name}", allowed="the same padding", fix="pair texts of equal length")


def _steady(model: torch.nn.Module, source: Inputs, splits: list[slice], layers: tuple[Ports, ...], *, zero: bool) -> Sent:
    """What senders say on average over the source run's tokens that are no padding, or nothing at all."""
    parts, count = body(model), 0.0
    totals: list[Tensor] | None = None
    for rows in splits[:1] if zero else splits:
        part = rows_of(source, rows)
        one = sent(model, part)
        real_BT = part["attention_mask"] if "attention_mask" in part else torch.ones_like(part["input_ids"])
        sums = [torch.einsum("bt,bt...->...", real_BT.to(value), value) for value in (one.stream[0], *one.z, *one.mlp)]
        totals = sums if totals is None else [total + more for total, more in zip(totals, sums, strict=True)]
        count += float(real_BT.sum())
    assert totals is not None
    embed, *rest = [torch.zeros_like(total) if zero else total / count for total in totals]
    return constant(parts, layers, embed, rest[: parts.depth], rest[parts.depth :])


@dataclass(frozen=True, slots=True)
class _State:
    """`moved` USbtD: what each sender says inside a circuit less what it says outside (those that have spoken); `which` C: the row of each circuit."""

    moved: Tensor
    which: Tensor

    def branched(self, masks_CSr: Tensor) -> tuple[_State, Tensor]:
        """(rows apart where the next edges differ, those edges USr)."""
        keys = torch.cat([self.which[:, None], masks_CSr.flatten(1)], 1).numpy()
        _, first_U, which_C = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        parents_U = self.which[torch.from_numpy(first_U)]
        same = torch.equal(parents_U, torch.arange(len(self.moved)))
        moved = self.moved if same else self.moved[parents_U.to(self.moved.device)]
        return _State(moved, torch.from_numpy(which_C.reshape(-1))), masks_CSr[torch.from_numpy(first_U)]

    def stream(self, other_btD: Tensor, masks_USr: Tensor) -> Tensor:
        """What readers see, UrbtD: `other` and what the circuit's edges carry on top."""
        speaks_S = masks_USr.any(2).any(0).nonzero()
        spoken = int(speaks_S.max()) + 1 if len(speaks_S) else 1
        sums = masks_USr[:, :spoken].mT.to(self.moved) @ self.moved[:, :spoken].flatten(2)
        return sums.unflatten(2, self.moved.shape[2:]) + other_btD


@torch.no_grad()
def _run(runs: Runs, chunk: _Chunk, masks_CSR: Tensor) -> Tensor:
    """Logits CbV of circuits on a chunk of pairs."""
    whole, first = runs.graph, chunk.first
    moved = first.new_zeros(1, len(whole.senders), *first.shape)
    moved[0, 0] = first - chunk.other.stream[0]
    state = _State(moved, torch.zeros(len(masks_CSR), dtype=torch.long))
    for layer in range(len(runs.layers)):
        columns = whole.ports(layer)
        low = columns["q"].start
        state, masks_USr = state.branched(masks_CSR[:, :, low : columns["mlp"].stop])
        _block(runs, chunk, layer, state, {kind: masks_USr[:, :, where.start - low : where.stop - low] for kind, where in columns.items()})
    state, masks_US1 = state.branched(masks_CSR[:, :, -1:])
    last = state.stream(chunk.other.stream[-1], masks_US1).reshape(-1, *first.shape[1:])
    logits = chunk.base.logits(last, start=chunk.start, position=runs.answer)
    return logits.unflatten(0, (-1, len(first)))[state.which.to(logits.device)]


def _block(runs: Runs, chunk: _Chunk, layer: int, state: _State, masks: Mapping[str, Tensor]) -> None:
    """One block of the model, in which every port has its own stream; what its heads and its MLP say is written into the state."""
    parts, own, other = chunk.base.parts, runs.layers[layer], chunk.other
    (U, _, b, t, D), (heads, mlp) = state.moved.shape, runs.graph.sends(layer)
    values = {}
    for kind in ("q", "k", "v"):
        read = state.stream(other.stream[layer], masks[kind])
        normed = before_attention(parts, layer, read.flatten(0, 2)).view(U, -1, b * t, D)
        values[kind] = own.project(kind, normed).unflatten(2, (b, t)).permute(0, 2, 3, 1, 4).flatten(0, 1)

    def heads_said(z_RtHK: Tensor) -> Tensor:
        moved_UHNK = (z_RtHK.unflatten(0, (U, b)) - other.z[layer]).permute(0, 3, 1, 2, 4).flatten(2, 3)
        state.moved[:, heads] = (moved_UHNK @ own.out).unflatten(2, (b, t))
        return z_RtHK

    def mlp_said(out_RtD: Tensor) -> Tensor:
        state.moved[:, mlp] = out_RtD.unflatten(0, (U, b)) - other.mlp[layer]
        return out_RtD

    def mlp_reads(*_: Tensor) -> Tensor:
        return state.stream(other.middle[layer], masks["mlp"]).flatten(0, 2)

    changes = {"attn.z": heads_said, "mlp.out": mlp_said}
    if parts.anatomy.mid is None:
        enters = mlp_reads()
    else:
        enters, changes["resid_mid"] = chunk.first.repeat(U, 1, 1), mlp_reads
    with given(parts.attention(layer), own.laid_out(values)):
        chunk.base.block(layer, enters, start=chunk.start, changes=changes)
