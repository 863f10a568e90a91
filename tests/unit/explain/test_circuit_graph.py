"""Rankings, nested circuits and what lies on a way from the embedding to the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.graph import LOGITS, Graph, circuit_of, connected, firsts, graph, mask_of, permuted, ranked
from knowhow.explain.edge_attribution import edge_attribution
from knowhow.model.sites import body

Lively = Callable[..., torch.nn.Module]


@pytest.fixture(params=["llama", "gpt2", "gpt_neox"])
def whole(lively: Lively, request: pytest.FixtureRequest) -> Graph:
    return graph(body(lively(request.param)))


def ways(edges: set[tuple[str, str]], whole: Graph) -> set[tuple[str, str]]:
    """Edges on some way from embed to logits, by walking."""
    owners = {reader: {s for at, s in enumerate(whole.senders) if whole.serves[at, r]} for r, reader in enumerate(whole.readers)}

    def walk(start: str, step: Callable[[str], set[str]]) -> set[str]:
        seen, left = {start}, [start]
        while left:
            for other in step(left.pop()) - seen:
                seen.add(other)
                left.append(other)
        return seen

    def after(node: str) -> set[str]:
        return {owner for s, r in edges if s == node for owner in ({LOGITS} if r == LOGITS else owners[r])}

    def before(node: str) -> set[str]:
        return {s for s, r in edges if (r == LOGITS if node == LOGITS else node in owners[r])}

    fed, used = walk("embed", after), walk(LOGITS, before)
    return {(s, r) for s, r in edges if s in fed and (r == LOGITS or owners[r] & used)}


def test_edges_are_those_of_edge_attribution(lively: Lively) -> None:
    for family in ("llama", "gpt2", "gpt_neox"):
        model = lively(family)
        inputs = [{"input_ids": torch.tensor([[5, 6, first]])} for first in (7, 8)]
        found, own = edge_attribution(model, *inputs, lambda logits: logits[:, 3]), graph(body(model))
        assert (own.senders, own.readers) == (found.senders, found.readers)
        assert torch.equal(own.possible, found.possible)


def test_a_group_serves_its_queries(lively: Lively) -> None:
    own = graph(body(lively("llama")))
    served = {own.readers[r]: [s for at, s in enumerate(own.senders) if own.serves[at, r]] for r in range(len(own.readers))}
    assert served["a1.h0.k"] == served["a1.h0.v"] == ["a1.h0", "a1.h1"]
    assert served["a1.h1.k"] == ["a1.h2", "a1.h3"]
    assert (served["a0.h3.q"], served["m1"], served[LOGITS]) == (["a0.h3"], ["m1"], [])
    assert [own.readers[own.ports(1)[kind]] for kind in ("k", "mlp")] == [("a1.h0.k", "a1.h1.k"), ("m1",)]


def test_what_lies_on_no_way_goes(whole: Graph) -> None:
    random = torch.Generator().manual_seed(0)
    left = 0
    for share in (0.03, 0.08, 0.2, 0.5):
        masks = (torch.rand(20, *whole.possible.shape, generator=random) < share) & whole.possible
        for mask, kept in zip(masks, connected(masks, whole), strict=True):
            edges = set(circuit_of(mask, whole).edges)
            assert set(circuit_of(kept, whole).edges) == ways(edges, whole)
            left += len(edges) > int(kept.sum()) > 0
    assert left > 10


def greedily(scores: torch.Tensor, whole: Graph, count: int) -> list[tuple[str, str]]:
    inside, found = {LOGITS}, list[tuple[str, str]]()
    for _ in range(count):
        open_ = [(s, r) for s, r in circuit_of(whole.possible, whole).edges if r in inside and (s, r) not in found]
        best = max(open_, key=lambda edge: float(scores[whole.senders.index(edge[0]), whole.readers.index(edge[1])]))
        found.append(best)
        inside |= {name for r, name in enumerate(whole.readers) if whole.serves[whole.senders.index(best[0]), r]}
    return found


def test_rankings_hold_every_edge_once_and_greedy_ones_reach_the_logits(whole: Graph) -> None:
    scores = torch.rand(whole.possible.shape, generator=torch.Generator().manual_seed(1))
    R = len(whole.readers)
    for greedy in (True, False):
        order = ranked(scores, whole, greedy=greedy)
        assert sorted(order.tolist()) == sorted(s * R + r for s, r in whole.possible.nonzero().tolist())
    assert [(whole.senders[at // R], whole.readers[at % R]) for at in ranked(scores, whole)[:25].tolist()] == greedily(scores, whole, 25)
    plain = scores.flatten()[ranked(scores, whole, greedy=False)]
    assert bool((plain[1:] <= plain[:-1]).all())
    masks = firsts(ranked(scores, whole), [5, 40, whole.size], whole)
    assert bool((masks[0] <= masks[1]).all())
    assert torch.equal(masks[2], whole.possible)


def test_dealt_out_scores_are_the_same_scores_elsewhere(whole: Graph) -> None:
    scores = torch.rand(whole.possible.shape, generator=torch.Generator().manual_seed(1)) * whole.possible
    first, second = permuted(scores, whole, draws=2, seed=0)
    assert torch.equal(first.flatten().sort().values, scores.flatten().sort().values)
    assert not torch.equal(first, second)
    assert not first[~whole.possible].any()


def test_circuits_and_masks_are_the_same_thing(whole: Graph) -> None:
    mask = (torch.rand(whole.possible.shape, generator=torch.Generator().manual_seed(2)) < 0.3) & whole.possible
    circuit = circuit_of(mask, whole)
    assert torch.equal(mask_of(circuit.edges, whole), mask)
    assert circuit.share == len(circuit.edges) / whole.size
    assert circuit.row()["edges"][0] == list(circuit.edges[0])
    with pytest.raises(UsageError, match="m1 → a0"):
        mask_of([("m1", "a0.h0.q")], whole)
