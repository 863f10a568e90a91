"""Circuits as sets of edges: which edges a model has, which a ranking keeps, and which of those lie on a way from the embedding to the logits.

Shape letters: S senders, R readers, C circuits, E possible edges, H heads, J key-value heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.explain.edges import order, readers
from knowhow.model.sites import Body

LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Graph:
    """`senders` and `readers` named and ordered as in EdgeScores; `possible` SR; `serves` SR: the reader is a port of that sender's own component.

    `stages`: senders that do not read each other, in the order in which they send; `heads` and `groups` of a layer."""

    senders: tuple[str, ...]
    readers: tuple[str, ...]
    possible: torch.Tensor
    serves: torch.Tensor
    stages: tuple[slice, ...]
    heads: int
    groups: int

    @property
    def size(self) -> int:
        return int(self.possible.sum())

    def ports(self, layer: int) -> dict[str, slice]:
        """Columns of a layer's readers by kind."""
        first, H, J = layer * (self.heads + 2 * self.groups + 1), self.heads, self.groups
        ends = [first, first + H, first + H + J, first + H + 2 * J, first + H + 2 * J + 1]
        return {kind: slice(low, high) for kind, low, high in zip(("q", "k", "v", "mlp"), ends, ends[1:])}

    def sends(self, layer: int) -> tuple[slice, int]:
        """Rows of a layer's heads, and of its MLP."""
        first = 1 + layer * (self.heads + 1)
        return slice(first, first + self.heads), first + self.heads


def graph(parts: Body) -> Graph:
    """All edges of a model."""
    H, J = parts.heads, parts.groups
    senders, stages = ["embed"], [slice(0, 1)]
    for layer in range(parts.depth):
        stages += [slice(len(senders), len(senders) + H), slice(len(senders) + H, len(senders) + H + 1)]
        senders += [*(f"a{layer}.h{head}" for head in range(H)), f"m{layer}"]
    ports, beside = [*(reader.name for reader in readers(parts)), LOGITS], parts.anatomy.mid is None
    possible = [[port == LOGITS or order(sender, beside=beside) < order(port, beside=beside) for port in ports] for sender in senders]
    own = [{name, f"{name}.q", *(f"{name.split('.')[0]}.h{int(name.split('h')[1]) * J // H}.{kind}" for kind in "kv" if "h" in name)} for name in senders]
    serves = [[port in names for port in ports] for names in own]
    return Graph(tuple(senders), tuple(ports), torch.tensor(possible), torch.tensor(serves), tuple(stages), H, J)


@dataclass(frozen=True, slots=True)
class Circuit:
    """Edges (sender, reader) that lie on a way from the embedding to the logits; `possible`: how many edges the model has."""

    edges: tuple[tuple[str, str], ...]
    possible: int

    @property
    def share(self) -> float:
        return len(self.edges) / self.possible

    def row(self) -> dict[str, Any]:
        return {"edges": [list(edge) for edge in self.edges], "possible": self.possible}


def circuit_of(mask_SR: torch.Tensor, whole: Graph) -> Circuit:
    """The circuit of a mask."""
    return Circuit(tuple((whole.senders[s], whole.readers[r]) for r, s in mask_SR.T.nonzero().tolist()), whole.size)


def mask_of(edges: Sequence[tuple[str, str]], whole: Graph) -> torch.Tensor:
    """Mask SR of edges. Raises UsageError for an edge that the model does not have."""
    rows, columns = ({name: at for at, name in enumerate(names)} for names in (whole.senders, whole.readers))
    mask_SR = torch.zeros_like(whole.possible)
    for sender, reader in edges:
        if sender not in rows or reader not in columns or not whole.possible[rows[sender], columns[reader]]:
            raise UsageError(
                f"the edge {sender} → {reader}", allowed=f"from {', '.join(whole.senders[:3])} … to a later one of {', '.join(whole.readers[:3])} …"
            )
        mask_SR[rows[sender], columns[reader]] = True
    return mask_SR


def ranked(scores_SR: torch.Tensor, whole: Graph, *, greedy: bool = True) -> torch.Tensor:
    """All possible edges by score, best first, as s · R + r: E. The first n are the circuit of n edges, so circuits of one ranking are nested.

    greedy: from the logits backwards, always the best edge into a component that is in already (Hanna et al. 2024, arXiv 2403.17806), so that every
    edge reaches the logits; else the best of all. Equal scores: the earlier reader's, then the earlier sender's."""
    R, value = len(whole.readers), scores_SR.double().tolist()
    rows = [whole.possible[:, r].nonzero()[:, 0].tolist() for r in range(R)]
    if not greedy:
        return torch.tensor([s * R + r for r, s in sorted(((r, s) for r in range(R) for s in rows[r]), key=lambda at: -value[at[1]][at[0]])])
    ports = [whole.serves[s].nonzero()[:, 0].tolist() for s in range(len(whole.senders))]
    heap, inside, found = [(-value[s][R - 1], R - 1, s) for s in rows[R - 1]], {R - 1}, list[int]()
    heapq.heapify(heap)
    while heap:
        _, reader, sender = heapq.heappop(heap)
        found.append(sender * R + reader)
        for r in ports[sender]:
            if r not in inside:
                inside.add(r)
                for s in rows[r]:
                    heapq.heappush(heap, (-value[s][r], r, s))
    return torch.tensor(found)


def firsts(ranking_E: torch.Tensor, counts: Sequence[int], whole: Graph) -> torch.Tensor:
    """Masks CSR of the first n edges of a ranking for each n, without those that lie on no way."""
    masks = torch.zeros(len(counts), whole.possible.numel(), dtype=torch.bool)
    for mask, count in zip(masks, counts, strict=True):
        mask[ranking_E[:count]] = True
    return connected(masks.view(len(counts), *whole.possible.shape), whole)


def connected(masks_CSR: torch.Tensor, whole: Graph) -> torch.Tensor:
    """The masks without edges that lie on no way from the embedding to the logits: a run of the circuit gives the same without them."""
    masks_CSR = masks_CSR & whole.possible
    fed_CS, used_CR = alive(masks_CSR, whole)
    return masks_CSR & fed_CS[:, :, None] & used_CR[:, None]


def alive(masks_CSR: torch.Tensor, whole: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """(senders CS that the embedding reaches, readers CR from which the logits are reached) through the edges of each mask."""
    C, S, R = masks_CSR.shape
    fed_CS, used_CR = torch.zeros(C, S, dtype=torch.bool), torch.zeros(C, R, dtype=torch.bool)
    fed_CS[:, 0], used_CR[:, -1] = True, True
    for stage in whole.stages[1:]:
        columns = whole.serves[stage].any(0).nonzero()[:, 0]
        fed_Cr = (masks_CSR[:, : stage.start, columns] & fed_CS[:, : stage.start, None]).any(1)
        fed_CS[:, stage] = (fed_Cr[:, None] & whole.serves[stage][:, columns]).any(2)
    for stage in reversed(whole.stages[1:]):
        sends_Cs = (masks_CSR[:, stage] & used_CR[:, None]).any(2)
        used_CR |= (sends_Cs[:, :, None] & whole.serves[stage]).any(1)
    return fed_CS, used_CR


def permuted(scores_SR: torch.Tensor, whole: Graph, *, draws: int, seed: int) -> list[torch.Tensor]:
    """The same scores dealt out at random among the possible edges, `draws` times."""
    random, kept = torch.Generator().manual_seed(seed), scores_SR[whole.possible]
    found = []
    for _ in range(draws):
        dealt_SR = torch.zeros_like(scores_SR)
        dealt_SR[whole.possible] = kept[torch.randperm(len(kept), generator=random)]
        found.append(dealt_SR)
    return found
