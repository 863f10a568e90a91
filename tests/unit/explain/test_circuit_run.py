"""Circuits run exactly: all edges are the base run, none the other one, and any set of them equals one reader at a time by taps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from knowhow.errors import UsageError
from knowhow.explain.circuits.graph import LOGITS, Graph
from knowhow.explain.circuits.ports import sent
from knowhow.explain.circuits.run import INSTEAD, Runs, prepare
from knowhow.explain.edge_attribution import contributions
from knowhow.explain.edges import Reader, edge_effects
from knowhow.model import compiled, toys
from knowhow.model.load import load
from knowhow.model.quiet import quiet
from knowhow.model.replay import record
from knowhow.model.sites import body
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]
MASK = torch.ones(3, 6, dtype=torch.long)
BASE = {"input_ids": torch.tensor([[7, 9, 90, 41, 260, 33], [12, 5, 200, 9, 77, 8], [3, 4, 50, 61, 70, 8]]), "attention_mask": MASK}
SOURCE = {**BASE, "input_ids": torch.tensor([[7, 9, 90, 140, 26, 34], [12, 5, 21, 9, 7, 80], [3, 4, 51, 61, 71, 9]])}
ADDING = [family for family in toys.FAMILIES if family not in ("gemma2", "gemma3_text", "olmo2", "bert", "roberta")]
TRACR = Path(__file__).parents[2] / "data" / "tracr"


def drawn(whole: Graph, count: int, share: float = 0.5) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return (torch.rand(count, *whole.possible.shape, generator=random) < share) & whole.possible


def logits(runs: Runs, masks: torch.Tensor) -> torch.Tensor:
    found = dict(runs.logits(masks))
    return torch.stack([found[at] for at in range(len(masks))])


@torch.no_grad()
def reader_by_reader(model: torch.nn.Module, mask_SR: torch.Tensor, whole: Graph) -> torch.Tensor:
    """The circuit's logits at the last position, one tapped pass of the whole model for every single reader and head."""
    parts, other, outside = body(model), sent(model, SOURCE), contributions(model, SOURCE)
    says = {"embed": sent(model, BASE).stream[0]}

    def stream(reader: str, other_BTD: torch.Tensor) -> torch.Tensor:
        column = mask_SR[:, whole.readers.index(reader)]
        return other_BTD + sum(says[name] - outside[name] for at, name in enumerate(whole.senders) if column[at])

    def read(site: str, edits: list[Edit]) -> torch.Tensor:
        with tap(model, site, edits=edits) as seen:
            model(**BASE)
        return seen[site]

    for layer in range(parts.depth):
        name, edits = f"layers.{layer}", []
        for kind, count in (("q", parts.heads), ("k", parts.groups), ("v", parts.groups)):
            for head in range(count):
                seen = stream(Reader(layer, kind, head).name, other.stream[layer])
                value = read(f"{name}.attn.{kind}", [Edit(f"{name}.resid_pre", lambda _, seen=seen: seen)])[:, :, head : head + 1]
                edits.append(Edit(f"{name}.attn.{kind}", lambda _, value=value: value, At(heads=[head])))
        z_BTHK = read(f"{name}.attn.z", edits)
        matrix = parts.block(layer).get_submodule(parts.anatomy.head_out)
        for head in range(parts.heads):
            alone = torch.zeros_like(z_BTHK)
            alone[:, :, head] = z_BTHK[:, :, head]
            says[f"a{layer}.h{head}"] = matrix(alone.flatten(2)) - matrix(torch.zeros_like(alone).flatten(2))
        seen, site = stream(f"m{layer}", other.middle[layer]), "resid_pre" if parts.anatomy.mid is None else "resid_mid"
        says[f"m{layer}"] = read(f"{name}.mlp.out", [Edit(f"{name}.{site}", lambda _, seen=seen: seen)])
    last = stream(LOGITS, other.stream[-1])
    with tap(model, edits=[Edit(f"layers.{parts.depth - 1}.resid_post", lambda _: last)]):
        return model(**BASE).logits[:, -1]


@pytest.mark.parametrize("family", ADDING)
def test_any_circuit_equals_its_readers_one_by_one(lively: Lively, family: str) -> None:
    model = lively(family)
    runs = prepare(model, BASE, SOURCE)
    assert runs.chunks[0].start == (2 if family != "modernbert" else 0)
    masks = torch.cat([drawn(runs.graph, 2), drawn(runs.graph, 1, 0.8)])
    found = logits(runs, masks)
    for mask, got in zip(masks, found, strict=True):
        torch.testing.assert_close(got, reader_by_reader(model, mask, runs.graph), atol=1e-9, rtol=1e-8)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ADDING)
def test_all_edges_are_the_base_run_and_none_the_source_run(lively: Lively, family: str) -> None:
    model = lively(family, dtype=torch.float32)
    for answer in (-1, None):
        runs = prepare(model, BASE, SOURCE, answer=answer)
        clean, corrupted = logits(runs, torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)]))
        with torch.no_grad():
            want = [model(**inputs).logits for inputs in (BASE, SOURCE)]
        want = want if answer is None else [one[:, answer] for one in want]
        torch.testing.assert_close(clean, want[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(corrupted, want[1], atol=1e-5, rtol=1e-5)
        assert (clean - corrupted).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_for_a_classifier_or_a_language_model(tmp_path: Path, side: str) -> None:
    for family in ("llama", "gpt2"):
        model = load(str(toys.twin(family, tmp_path / family)), head="classifier", labels=("a", "b", "c")).model.double()
        alone = [
            logits(runs, drawn(runs.graph, 3))
            for row in range(3)
            for runs in [prepare(model, *({k: v[row : row + 1] for k, v in x.items()} for x in (BASE, SOURCE)))]
        ]
        pads, padded = torch.full((3, 2), model.config.pad_token_id), []
        for inputs in (BASE, SOURCE):
            mask = [torch.zeros_like(pads), MASK]
            ids = [pads, inputs["input_ids"]]
            padded.append({name: torch.cat(two if side == "left" else two[::-1], 1) for name, two in (("input_ids", ids), ("attention_mask", mask))})
            if side == "left" or family == "gpt2":
                padded[-1]["position_ids"] = (padded[-1]["attention_mask"].cumsum(1) - 1).clamp(min=0)
        runs = prepare(model, *padded)
        torch.testing.assert_close(logits(runs, drawn(runs.graph, 3)), torch.cat(alone, 1), atol=1e-9, rtol=1e-8)


def test_a_single_edge_taken_out_is_the_exact_ablation_of_that_edge(lively: Lively) -> None:
    model = lively("llama")
    runs = prepare(model, BASE, SOURCE)
    whole, start, end = runs.graph, contributions(model, BASE), contributions(model, SOURCE)
    with torch.no_grad():
        recorded = record(model, BASE)
    senders = {name: (lambda layer, middle, name=name: end[name] - start[name]) for name in start}
    wanted = [Reader(1, "q", 2), Reader(1, "k", 1), Reader(1, "v", 0), Reader(0, "mlp"), Reader(1, "mlp")]
    effects = edge_effects(recorded, senders, wanted, lambda a, b: (a - b)[:, -1].abs().amax(1), backups=False)
    clean = recorded.logits_all[:, -1]
    for row, reader in enumerate(wanted):
        column = whole.readers.index(reader.name)
        for at in whole.possible[:, column].nonzero()[:, 0].tolist():
            mask = whole.possible.clone()
            mask[at, column] = False
            got = (logits(runs, mask[None])[0] - clean).abs().amax(1)
            torch.testing.assert_close(got, effects[row, at].to(got), atol=1e-6, rtol=1e-5)


def test_nothing_or_the_mean_may_go_along_the_other_edges(lively: Lively) -> None:
    for family in ("gpt2", "gpt_neox", "llama"):
        model = lively(family)
        start = contributions(model, SOURCE)
        with torch.no_grad(), tap(model, f"layers.{body(model).depth - 1}.resid_post") as seen:
            model(**SOURCE)
        biases_D = (seen[f"layers.{body(model).depth - 1}.resid_post"] - sum(start.values())).mean((0, 1))
        for instead in INSTEAD[1:]:
            runs = prepare(model, BASE, SOURCE, instead=instead)
            clean, empty = logits(runs, torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)]))
            last_D = biases_D + (sum(value.mean((0, 1)) for value in start.values()) if instead == "mean" else 0)
            with torch.no_grad():
                torch.testing.assert_close(clean, model(**BASE).logits[:, -1])
                with tap(model, edits=[Edit(f"layers.{body(model).depth - 1}.resid_post", lambda x, last_D=last_D: last_D.expand_as(x))]):
                    torch.testing.assert_close(empty, model(**BASE).logits[:, -1])


def test_pairs_in_chunks_and_circuits_in_groups_give_the_same(lively: Lively, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("gpt2")
    runs = prepare(model, BASE, SOURCE)
    masks = drawn(runs.graph, 4)
    want = logits(runs, torch.cat([masks, masks[:1]]))
    assert torch.equal(want[0], want[4])
    monkeypatch.setattr("knowhow.explain.circuits.run.ROOM", 1)
    for instead in INSTEAD:
        small = prepare(model, BASE, SOURCE, instead=instead)
        assert len(small.chunks) == 3
        if instead == "source":
            torch.testing.assert_close(logits(small, masks), want[:4])
            assert small.values(masks, lambda found: found[:, 17]).shape == (4, 3)


def test_adapters_are_part_of_the_heads(lively: Lively) -> None:
    torch.manual_seed(0)
    plain = lively("llama", dtype=torch.float32)
    with quiet():
        model = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)).eval()
    runs = prepare(model, BASE, SOURCE)
    clean, corrupted = logits(runs, torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)]))
    with torch.no_grad():
        torch.testing.assert_close(clean, model(**BASE).logits[:, -1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(corrupted, model(**SOURCE).logits[:, -1], atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            assert (clean - model(**BASE).logits[:, -1]).abs().max() > 0.1


def test_compiled_programs_add_one_by_one_although_they_are_encoders() -> None:
    program = compiled.read(TRACR, "hist")
    base, source = ({"input_ids": program.tokens([row])} for row in (["a", "b", "a", "c"], ["c", "b", "b", "a"]))
    runs = prepare(program.model, base, source, answer=None)
    clean, corrupted = logits(runs, torch.stack([runs.graph.possible, torch.zeros_like(runs.graph.possible)]))
    with torch.no_grad():
        torch.testing.assert_close(clean, program.model(**base).logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(corrupted, program.model(**source).logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_run_is_refused(lively: Lively) -> None:
    model = lively("llama")
    for family in ("gemma2", "bert"):
        with pytest.raises(UsageError, match="norms what they add"):
            prepare(lively(family), BASE, SOURCE)
    with pytest.raises(UsageError, match="of shapes"):
        prepare(model, BASE, {"input_ids": SOURCE["input_ids"][:, 1:]})
    with pytest.raises(UsageError, match="different attention_mask"):
        prepare(model, BASE, {**SOURCE, "attention_mask": MASK.clone().index_fill_(1, torch.tensor([0]), 0)})
    with pytest.raises(UsageError, match="instead 'noise'"):
        prepare(model, BASE, SOURCE, instead="noise")
    runs = prepare(model, BASE, SOURCE)
    with pytest.raises(UsageError, match="one finite number per pair"):
        runs.values(runs.graph.possible[None], lambda found: found)
    with pytest.raises(UsageError, match="in training"):
        prepare(lively("gpt2").train(), BASE, SOURCE)
    integers = type("Kernel", (torch.nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic"})
    model.model.layers[0].mlp.rounded = integers()
    with pytest.raises(UsageError, match="integer kernels"):
        prepare(model, BASE, SOURCE)
