"""Circuits are found: of compiled programs by exact scores, of random models the curve's ends, and every control can say no."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.find import Pairs, Search, edge_ablation, find_circuit, pick
from knowhow.explain.circuits.graph import firsts, mask_of, ranked
from knowhow.explain.circuits.paths import path_effects
from knowhow.explain.circuits.run import prepare
from knowhow.explain.edge_attribution import EdgeScores, edge_attribution
from knowhow.model import compiled

Lively = Callable[..., torch.nn.Module]
BASE = {"input_ids": torch.tensor([[7, 9, 90, 41, 33], [12, 5, 200, 9, 8], [3, 4, 50, 61, 8], [8, 8, 8, 9, 1]])}
SOURCE = {"input_ids": torch.tensor([[7, 9, 90, 140, 34], [12, 5, 21, 9, 80], [3, 4, 51, 61, 9], [8, 5, 7, 9, 10]])}
TRACR = Path(__file__).parents[2] / "data" / "tracr"


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


@pytest.mark.parametrize("name", compiled.programs(TRACR))
def test_the_circuit_of_a_compiled_program_is_faithful_small_and_its_own(name: str) -> None:
    program, drawn = compiled.read(TRACR, name), random.Random(0)
    base, source = ({"input_ids": program.tokens([[drawn.choice(program.words) for _ in range(program.longest - 1)] for _ in range(12)])} for _ in range(2))
    runs, shown = prepare(program.model, base, source, answer=None), list(program.variables[program.output])
    with torch.no_grad():
        clean = program.model(**base).logits[:, :, shown]

    def near(logits_BTC: torch.Tensor) -> torch.Tensor:
        return -(logits_BTC[:, :, shown] - clean).square().sum((1, 2))

    scores = edge_ablation(runs, near)
    found = pick(runs, scores, Pairs(base, source, near), Search(shares=(0.05, 0.13, 0.25, 0.5, 0.75, 1.0), draws=30, curves=2))
    assert found.reached
    assert found.faithfulness.value >= 0.9
    assert abs(found.complement.value) < 0.1
    assert {sender for sender, _ in found.circuit.edges} == set(program.writes)
    assert not scores.scores[[s for s, part in enumerate(scores.senders) if part not in program.writes]].any()
    # what carries nothing of the program's is left out: of 8 edges 2, of more nearly all, and there the random circuits do nothing
    assert len(found.circuit.edges) <= max(6, 0.3 * runs.graph.size)
    assert found.control.p < 0.05 or runs.graph.size == 8


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_call_goes_from_pairs_to_a_circuit(lively: Lively, family: str) -> None:
    model, said = lively(family), list[str]()
    search = Search(level=0.8, draws=5, curves=2, steps=3)
    found = find_circuit(model, BASE, SOURCE, metric, search=search, progress=lambda what, *_: said.append(what))
    values = [point.value for point in found.curve.faithfulness]
    assert values[-1] == pytest.approx(1)
    assert found.curve.edges[-1] == found.circuit.possible
    assert list(found.curve.edges) == sorted(found.curve.edges)
    at = next(at for at, value in enumerate(values) if abs(1 - value) <= 0.2)
    assert found.curve.shares[max(at - 1, 0)] < found.share <= max(found.curve.shares[at], 1.5 / found.circuit.possible)
    assert found.reached
    assert abs(1 - found.faithfulness.value) <= 0.2
    assert (found.control.draws, found.control.curves, len(found.control.mean)) == (5, 2, len(values))
    assert {"edge attribution", "circuits"} <= set(said)
    assert json.loads(json.dumps(found.row()))["circuit"]["possible"] == found.circuit.possible
    runs = prepare(model, BASE, SOURCE)
    mask = mask_of(found.circuit.edges, runs.graph)
    clean, nothing, kept, rest = runs.values(torch.stack([runs.graph.possible, mask & False, mask, runs.graph.possible & ~mask]), metric).mean(1)
    assert found.faithfulness.value == pytest.approx(float((kept - nothing) / (clean - nothing)))
    assert found.complement.value == pytest.approx(float((rest - nothing) / (clean - nothing)))
    again = find_circuit(model, BASE, SOURCE, metric, search=search)
    assert again == found


def test_the_step_that_reaches_the_level_is_halved_down_to_one_edge(lively: Lively) -> None:
    model = lively("llama")
    runs, scores = prepare(model, BASE, SOURCE), edge_attribution(model, BASE, SOURCE, metric)
    pairs = Pairs(BASE, SOURCE, metric)
    coarse, fine = (pick(runs, scores, pairs, Search(shares=(0.02, 1.0), draws=1, curves=1, refine=refine)) for refine in (0, 20))
    assert coarse.share == 1
    assert fine.share < 1
    size = round(fine.share * runs.graph.size)
    ends = torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)])
    masks = firsts(ranked(scores.scores.mean(2).abs(), runs.graph), [size - 1, size], runs.graph)
    one_less, kept, clean, nothing = runs.values(torch.cat([masks, ends]), metric).mean(1)
    assert abs(1 - (kept - nothing) / (clean - nothing)) <= 0.1 < abs(1 - (one_less - nothing) / (clean - nothing))
    assert torch.equal(mask_of(fine.circuit.edges, runs.graph), masks[1])


def test_better_scores_make_smaller_circuits_and_random_ones_do_not_pass(lively: Lively) -> None:
    model = lively("gpt2")
    runs = prepare(model, BASE, SOURCE)
    pairs, search = Pairs(BASE, SOURCE, metric), Search(draws=20, curves=5)
    scores = edge_attribution(model, BASE, SOURCE, metric, steps=4)
    good = pick(runs, scores, pairs, search)
    dealt = EdgeScores(torch.rand(scores.scores.shape, generator=torch.Generator().manual_seed(0)), scores.senders, scores.readers, scores.possible)
    bad = pick(runs, dealt, pairs, search)
    assert good.curve.cmd.value < bad.curve.cmd.value - 0.05
    assert len(good.circuit.edges) < len(bad.circuit.edges)
    signed = pick(runs, scores, pairs, Search(draws=1, curves=1, prefer="sign", greedy=False))
    assert signed.curve.cpr.value > good.curve.cpr.value


def test_a_level_out_of_reach_is_said_and_pairs_may_be_held_back(lively: Lively) -> None:
    model = lively("gpt2")
    search = Search(shares=(0.01, 0.02), draws=2, curves=2, steps=1)
    found = find_circuit(model, BASE, SOURCE, metric, search=search)
    assert not found.reached
    assert found.share == pytest.approx(2 / found.circuit.possible)
    first, last = ({"input_ids": inputs["input_ids"][:2]} for inputs in (BASE, SOURCE)), ({"input_ids": inputs["input_ids"][2:]} for inputs in (BASE, SOURCE))
    held = find_circuit(model, *first, metric, held=Pairs(*last, metric, clusters=["a", "b"]), search=Search(draws=2, curves=1, steps=1))
    runs = prepare(model, {"input_ids": BASE["input_ids"][2:]}, {"input_ids": SOURCE["input_ids"][2:]})
    clean, nothing, kept = runs.values(
        torch.stack([m & runs.graph.possible for m in (runs.graph.possible, runs.graph.possible & False, mask_of(held.circuit.edges, runs.graph))]), metric
    ).mean(1)
    assert held.faithfulness.value == pytest.approx(float((kept - nothing) / (clean - nothing)))
    assert held.faithfulness.n == 2


def test_exact_scores_are_the_effects_of_single_paths(lively: Lively) -> None:
    for family in ("llama", "gpt_neox"):
        model = lively(family)
        scores = edge_ablation(prepare(model, BASE, SOURCE), metric)
        names = ("a1.h1.k", "a1.h2.q", "m1", "logits")
        paths = path_effects(model, BASE, SOURCE, metric, names)
        for p, name in enumerate(names):
            torch.testing.assert_close(scores.scores[:, scores.readers.index(name)].double(), paths.effects[:, p], atol=1e-6, rtol=1e-4)
        assert not scores.scores[~scores.possible].any()


def test_bad_searches_are_refused(lively: Lively) -> None:
    model = lively("gpt2")
    for shares in ((), (0.5, 0.1), (0.0, 1.0), (0.5, 1.5)):
        with pytest.raises(UsageError, match="shares"):
            Search(shares=shares)
    for options in ({"draws": 0}, {"draws": 3, "curves": 4}, {"prefer": "luck"}):
        with pytest.raises(UsageError, match="draws"):
            Search(**options)
    with pytest.raises(UsageError, match="same without any edge"):
        find_circuit(model, BASE, BASE, metric, search=Search(steps=1))
    other = edge_attribution(lively("llama"), BASE, SOURCE, metric)
    with pytest.raises(UsageError, match="this model's edges"):
        find_circuit(model, BASE, SOURCE, metric, scores=other)
