"""Path patching equals a naive one by taps, and its parts add up."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.graph import LOGITS, Graph, graph, mask_of
from knowhow.explain.circuits.paths import path_effects
from knowhow.explain.circuits.ports import sent
from knowhow.explain.circuits.run import prepare
from knowhow.explain.edge_attribution import contributions
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.model.sites import Body, body
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]
MASK = torch.ones(2, 6, dtype=torch.long)
BASE = {"input_ids": torch.tensor([[7, 9, 90, 41, 260, 33], [12, 5, 200, 9, 77, 8]]), "attention_mask": MASK}
SOURCE = {**BASE, "input_ids": torch.tensor([[7, 9, 90, 140, 26, 34], [12, 5, 21, 9, 7, 80]])}


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


def of_layer(name: str) -> tuple[int, str, int]:
    """(layer, port, head) of a1.h2.q, m1."""
    if name[0] == "m":
        return int(name[1:]), "mlp", 0
    layer, head, port = name[1:].split(".")
    return int(layer), port, int(head[1:])


def value_of(model: torch.nn.Module, parts: Body, name: str, delta: torch.Tensor) -> torch.Tensor:
    """A receiver's value when its own input alone is moved."""
    layer, port, head = of_layer(name)
    read = "resid_mid" if port == "mlp" and parts.anatomy.mid is not None else "resid_pre"
    site = f"layers.{layer}.mlp.out" if port == "mlp" else f"layers.{layer}.attn.{port}"
    with tap(model, site, edits=[Edit(f"layers.{layer}.{read}", lambda x: x + delta)]) as seen:
        model(**BASE)
    return seen[site] if port == "mlp" else seen[site][:, :, head : head + 1]


@torch.no_grad()
def by_taps(model: torch.nn.Module, sender: str, delta: torch.Tensor, names: tuple[str, ...], whole: Graph) -> torch.Tensor:
    """Two passes for every receiver: its value with its input moved, then the metric with that value in its place."""
    parts = body(model)
    edits = []
    for name in names:
        if not whole.possible[whole.senders.index(sender), whole.readers.index(name)]:
            continue
        if name == LOGITS:
            edits.append(Edit(f"layers.{parts.depth - 1}.resid_post", lambda x: x + delta))
            continue
        layer, port, head = of_layer(name)
        value = value_of(model, parts, name, delta)
        site, at = (f"layers.{layer}.mlp.out", At()) if port == "mlp" else (f"layers.{layer}.attn.{port}", At(heads=[head]))
        edits.append(Edit(site, lambda _, value=value: value, at))
    with tap(model, edits=edits):
        return metric(model(**BASE).logits[:, -1])


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt_neox", "modernbert"])
def test_each_path_equals_two_tapped_passes(lively: Lively, family: str) -> None:
    model = lively(family)
    whole, start, end = graph(body(model)), contributions(model, BASE), contributions(model, SOURCE)
    names = ("a1.h1.q", "a1.h0.k", "a1.h1.v", "a0.h2.q", "m1", LOGITS)
    found = path_effects(model, BASE, SOURCE, metric, names)
    alone = path_effects(model, BASE, SOURCE, metric, [names])
    assert (found.senders, found.receivers, alone.receivers) == (whole.senders, names, ("+".join(names),))
    for sender in ("embed", "a0.h3", "m0", "a1.h2", "m1"):
        s, delta = whole.senders.index(sender), end[sender] - start[sender]
        for p, name in enumerate(names):
            torch.testing.assert_close(found.base + found.effects[s, p], by_taps(model, sender, delta, (name,), whole), atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(alone.base + alone.effects[s, 0], by_taps(model, sender, delta, names, whole), atol=1e-9, rtol=1e-7)
    assert torch.equal(found.effects.any(2), whole.possible[:, [whole.readers.index(name) for name in names]])


def test_a_path_is_the_circuit_without_that_edge(lively: Lively) -> None:
    model = lively("llama")
    runs = prepare(model, BASE, SOURCE)
    found = path_effects(model, BASE, SOURCE, metric, ("a1.h3.q", LOGITS))
    for edge in (("a0.h1", "a1.h3.q"), ("a1.h0", LOGITS), ("embed", LOGITS)):
        without = runs.values((runs.graph.possible & ~mask_of([edge], runs.graph))[None], metric)[0]
        s, p = found.senders.index(edge[0]), found.receivers.index(edge[1])
        torch.testing.assert_close(found.base + found.effects[s, p], without)


def test_mlps_in_between_may_pass_it_on(lively: Lively) -> None:
    for family in ("gpt2", "gpt_neox"):
        model, kept = lively(family), dict[str, torch.Tensor]()
        parts = body(model)
        delta = contributions(model, SOURCE)["a0.h1"] - contributions(model, BASE)["a0.h1"]
        frozen = [Edit(name, lambda _, name=name, kept=kept: kept[name]) for name in (f"layers.1.attn.{kind}" for kind in ("q", "k", "v"))]
        with torch.no_grad():
            with tap(model, "layers.1.attn.q", "layers.1.attn.k", "layers.1.attn.v") as seen:
                model(**BASE)
            kept |= seen.all()
            # the head's share added behind its layer's attention; every other head frozen, every MLP live
            site = "layers.0.resid_mid" if parts.anatomy.mid is not None else "layers.1.resid_pre"
            clean = metric(model(**BASE).logits[:, -1])
            with tap(model, edits=[Edit(site, lambda x, delta=delta: x + delta), *frozen]):
                want = metric(model(**BASE).logits[:, -1]) - clean
        found = path_effects(model, BASE, SOURCE, metric, through_mlps=True)
        torch.testing.assert_close(found.effects[found.senders.index("a0.h1"), 0], want)
        shut = path_effects(model, BASE, SOURCE, metric)
        assert (found.effects - shut.effects).abs().max() > 1e-3


def test_all_direct_ways_to_the_logits_are_the_whole_change_where_nothing_is_curved(lively: Lively) -> None:
    model = lively("gpt2")
    model.transformer.ln_f = torch.nn.Identity()
    found = path_effects(model, BASE, SOURCE, metric)
    torch.testing.assert_close(found.effects.sum(0)[0], found.source - found.base)
    torch.testing.assert_close(found.shares.sum(), torch.ones((), dtype=torch.float64))
    row = json.loads(json.dumps(found.row()))
    assert (len(row["effects"]), row["receivers"]) == (len(found.senders), [LOGITS])


def test_few_rows_at_a_time_give_the_same_and_classifiers_have_paths(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toys.twin("llama", tmp_path_factory.mktemp("paths"))
    model = load(str(folder), head="classifier", labels=("a", "b", "c")).model
    names = ("a1.h1.q", "m0", LOGITS)
    want = path_effects(model, BASE, SOURCE, lambda logits: logits[:, 1], names)
    monkeypatch.setattr("knowhow.explain.circuits.paths.ROWS", 6)
    found = path_effects(model, BASE, SOURCE, lambda logits: logits[:, 1], names)
    torch.testing.assert_close(found.effects, want.effects, atol=1e-6, rtol=1e-4)
    assert want.effects.any()
    assert sent(model, BASE).z[0].shape == (2, 6, 4, 8)


def test_what_has_no_path_is_refused(lively: Lively) -> None:
    model = lively("llama")
    for names in (("a1.h9.q",), ("a9.h0.q", LOGITS), ()):
        with pytest.raises(UsageError, match="the receiver"):
            path_effects(model, BASE, SOURCE, metric, names)
    with pytest.raises(UsageError, match="one number per pair"):
        path_effects(model, BASE, SOURCE, lambda logits: logits)
    with pytest.raises(UsageError, match="norms what they add"):
        path_effects(lively("bert"), BASE, SOURCE, metric)
    with pytest.raises(UsageError, match="of shapes"):
        path_effects(model, BASE, {"input_ids": SOURCE["input_ids"][:, 1:]}, metric)
