"""Parts of every family, swaps that leave no trace, and what changed by weights, against whole decompositions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from knowhow.errors import UsageError
from knowhow.explain.diff.parts import Part, Piece, components, heads, matrices, tensors
from knowhow.explain.diff.swap import grafted, pair, signed, swapped, weights
from knowhow.explain.diff.weights import by_layer, changes, shape
from knowhow.model import toys
from knowhow.model.quiet import quiet
from knowhow.model.taps import tap

Twins = Callable[..., tuple[torch.nn.Module, torch.nn.Module]]
TOKENS = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def twins() -> Twins:
    """A language model of a family and a classifier whose trunk moved away from it, both in eval mode."""

    def make(family: str, rows: int = 96, **options: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        settings = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, **toys.FAMILIES[family], **options}
        maker = AutoModelForMaskedLM if family in toys.ENCODERS else AutoModelForCausalLM
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            base = maker.from_config(AutoConfig.for_model(family, vocab_size=96, **settings)).eval()
            specialist = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, vocab_size=rows, num_labels=3, **settings)).eval()
            for parameter in base.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            known, own = weights(base), weights(specialist)
            for name, value in own.items():
                value.copy_(torch.randn_like(value) * 0.1)
                if name in known:
                    value[: len(known[name])] += known[name]
        return base, specialist

    return make


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_parts_of_every_family_are_the_whole(family: str, twins: Twins) -> None:
    base, specialist = twins(family)
    known, parts = pair(base, specialist), components(specialist)
    held = [piece.tensor for part in parts for piece in part.pieces]
    assert sorted(held) == sorted(tensors(specialist)) == sorted(weights(specialist))
    assert {part.name for part in parts} >= {"embed", "layers.0.attn", "layers.1.mlp"}
    attention = [part for part in matrices(specialist) if part.kind.startswith("attn") and part.head is None and part.layer == 1]
    assert [part.kind for part in attention] == ["attn.q", "attn.k", "attn.v", "attn.out"]
    sliced = grafted(known.specialist, known.base, [part for part in heads(specialist) if part.layer == 1])
    whole = grafted(known.specialist, known.base, attention)
    for name, value in whole.items():
        if name in sliced:
            torch.testing.assert_close(sliced[name], value, atol=0, rtol=0)
        else:
            assert name.endswith("bias"), "the bias of out belongs to no head"
    assert len(sliced) >= 2
    one = grafted(known.specialist, known.base, [part for part in heads(specialist) if part.name == "layers.1.head.1"])
    assert all(not torch.equal(value, known.base[name]) and not torch.equal(value, known.specialist[name]) for name, value in one.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_the_slice_of_a_head_changes_that_head_alone(family: str, twins: Twins) -> None:
    base, specialist = twins(family)
    known = pair(base, specialist)
    with torch.no_grad(), tap(specialist, "layers.0.attn.q", "layers.0.attn.v") as before:
        specialist(input_ids=TOKENS)
    wanted = [part for part in heads(specialist) if part.layer == 0 and part.head == 1]
    with swapped(specialist, grafted(known.specialist, known.base, wanted)), torch.no_grad(), tap(specialist, "layers.0.attn.q", "layers.0.attn.v") as after:
        specialist(input_ids=TOKENS)
    for site in ("layers.0.attn.q", "layers.0.attn.v"):
        moved = (after[site] - before[site]).abs().amax((0, 1, 3))
        assert [bool(value > 1e-3) for value in moved] == [head == 1 for head in range(len(moved))]


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_everything_transplanted_gives_the_other_model(family: str, twins: Twins) -> None:
    base, specialist = twins(family)
    with quiet():
        other = type(specialist)(specialist.config).eval()
    other.load_state_dict(specialist.state_dict())
    with torch.no_grad():
        for name, value in weights(base).items():
            if name in (own := weights(other)):
                own[name].copy_(value)
        want, before = other(input_ids=TOKENS).logits, specialist(input_ids=TOKENS).logits
        known = pair(base, specialist)
        with swapped(specialist, grafted(known.specialist, known.base, components(specialist))):
            torch.testing.assert_close(specialist(input_ids=TOKENS).logits, want, atol=1e-5, rtol=1e-5)
        assert torch.equal(specialist(input_ids=TOKENS).logits, before)
    assert float((want - before).abs().max()) > 1e-3


def test_nothing_stays_after_an_exception_and_swaps_nest(twins: Twins) -> None:
    base, specialist = twins("llama")
    known = pair(base, specialist)
    before = {name: (parameter.data_ptr(), parameter.detach().clone()) for name, parameter in specialist.named_parameters()}
    first, second = components(specialist)[1:3]
    tensors_of = [part.pieces[0].tensor for part in (first, second)]
    outer, inner = (grafted(known.specialist, known.base, parts) for parts in ([first], [first, second]))

    def is_base() -> list[bool]:
        return [torch.equal(weights(specialist)[name], known.base[name]) for name in tensors_of]

    def fails() -> None:
        with swapped(specialist, outer):
            with swapped(specialist, inner):
                assert is_base() == [True, True]
            assert is_base() == [True, False]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    for name, parameter in specialist.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    with pytest.raises(UsageError, match="weights of this model"), swapped(specialist, {"norm.weight": torch.zeros(3)}):
        pass


def lora(twins: Twins, **options: object) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """A base, a classifier with an adapter over the same weights, and the adapter merged."""
    base, specialist = twins("llama")
    merged = twins("llama")[1]
    with torch.no_grad():
        for one in (specialist, merged):
            for name, value in weights(one).items():
                value.copy_(weights(base)[name])
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False, **options)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(specialist, config).eval()
        torch.manual_seed(1)
        plain = get_peft_model(merged, config).eval()
    with torch.no_grad():
        for model in (adapted, plain):
            for name, parameter in model.named_parameters():
                if "trainable_tokens_delta" in name:
                    parameter.add_(0.5)
    return base, adapted, plain.merge_and_unload()


@pytest.mark.parametrize("options", [{}, {"trainable_token_indices": {"embed_tokens": [7, 9]}}])
def test_an_adapter_counts_as_its_merged_weights(options: dict[str, object], twins: Twins) -> None:
    base, adapted, merged = lora(twins, **options)
    own, want = weights(adapted), weights(merged)
    assert list(own) == list(want)
    for name, value in own.items():
        torch.testing.assert_close(value, want[name], atol=1e-6, rtol=1e-6)
    moved = {change.name: change for change in changes(base, adapted)}
    for name, change in moved.items():
        rank = 2 if change.kind in ("attn.q", "attn.out", "mlp.down") else len(options) * 2 if name == "embed" else 0
        assert (change.size.norm > 0) == (rank > 0), name
        if change.shape is not None and rank:
            assert 1 <= change.shape.stable_rank <= rank + 1e-3
            assert change.shape.top == pytest.approx(1.0, abs=1e-6)
    known = pair(base, adapted)
    with torch.no_grad():
        before = adapted(input_ids=TOKENS).logits
        with swapped(adapted, grafted(known.specialist, known.base, components(adapted))):
            got = adapted(input_ids=TOKENS).logits
        assert torch.equal(adapted(input_ids=TOKENS).logits, before)
        with swapped(merged, grafted(want, known.base, components(merged))):
            torch.testing.assert_close(got, merged(input_ids=TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, before, atol=1e-3)


def test_new_words_are_the_specialist_s_own(twins: Twins) -> None:
    base, specialist = twins("llama", rows=100)
    known = pair(base, specialist)
    assert known.fresh == 4
    assert torch.equal(known.base["embed_tokens.weight"][96:], known.specialist["embed_tokens.weight"][96:])
    assert torch.equal(known.base["embed_tokens.weight"][:96], weights(base)["embed_tokens.weight"])
    change = next(one for one in changes(base, specialist) if one.name == "embed")
    moved = weights(specialist)["embed_tokens.weight"][:96] - weights(base)["embed_tokens.weight"]
    assert change.size.norm == pytest.approx(float(moved.norm()), rel=1e-5)
    with pytest.raises(UsageError, match="new rows at its end"):
        pair(specialist, base)


def test_other_architectures_are_refused(twins: Twins) -> None:
    base, specialist = twins("llama")
    for family, options in (("qwen2", {}), ("llama", {"num_hidden_layers": 3}), ("llama", {"num_key_value_heads": 4}), ("llama", {"intermediate_size": 40})):
        with pytest.raises(UsageError, match="two checkpoints of one architecture"):
            pair(twins(family, **options)[0], specialist)
    with pytest.raises(UsageError, match="at least 1"):
        changes(base, specialist, top=0)


def test_shapes_are_those_of_whole_decompositions() -> None:
    draw = torch.Generator().manual_seed(0)
    for O, I in ((40, 24), (24, 40)):  # noqa: E741
        before, moved = torch.randn(O, I, generator=draw), torch.randn(O, I, generator=draw) @ torch.diag(torch.rand(I, generator=draw) ** 4)
        found = shape(before, before + moved, top=5, seed=1)
        mine, theirs = torch.linalg.svd(before.double()), torch.linalg.svd((before + moved).double() - before.double())
        values = theirs.S
        assert found.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-5)
        shares = values / values.sum()
        assert found.effective_rank == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-4)
        assert found.top == pytest.approx(float(values[:5].square().sum() / values.square().sum()), rel=1e-5)
        assert found.left == pytest.approx(float((mine.U[:, :5].T @ theirs.U[:, :5]).square().sum()) / 5, rel=1e-4)
        assert found.right == pytest.approx(float((mine.Vh[:5] @ theirs.Vh[:5].T).square().sum()) / 5, rel=1e-4)
        assert (found.left_random, found.right_random) == (5 / O, 5 / I)


def test_noise_levels_are_what_structureless_changes_give() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 48, 32, generator=draw) for _ in range(30)]
    found = [asdict(shape(before, before + moved, seed=seed)) for seed, (before, moved) in enumerate(pairs)]
    for name in ("stable_rank", "effective_rank", "top", "left", "right"):
        got, chance = (sum(one[key] for one in found) / len(found) for key in (name, f"{name}_random"))
        assert got == pytest.approx(chance, rel=0.15 if name in ("left", "right") else 0.05)
    column, row = torch.randn(48, 1, generator=draw), torch.randn(1, 32, generator=draw)
    start = torch.randn(48, 32, generator=draw)
    flat = shape(start, start + column @ row)
    assert flat.stable_rank == pytest.approx(1.0, abs=1e-4)
    assert flat.stable_rank_random > 3
    same = shape(column @ row, 1.5 * column @ row)
    assert (same.left, same.right) == (pytest.approx(1.0, abs=1e-6), pytest.approx(1.0, abs=1e-6))
    nothing = shape(start, start)
    assert nothing.stable_rank == 0
    assert math.isnan(nothing.left)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_planted_change_is_found_by_weights(family: str, twins: Twins) -> None:
    base, specialist = twins(family)
    known = pair(base, specialist)
    only = [part for part in components(specialist) if part.name != "layers.1.mlp"]
    with swapped(specialist, grafted(known.specialist, known.base, only)):
        found = changes(base, specialist)
    moved = {change.name for change in found if change.size.norm}
    assert moved >= {"layers.1.mlp.up", "layers.1.mlp.down"}
    assert all(change.layer == 1 for change in found if change.size.norm)
    assert not any(change.size.norm for change in found if change.kind.startswith(("attn", "embed")))
    shares = by_layer(found)
    assert shares["1"][0] == pytest.approx(1.0)
    assert shares["0"][0] == 0
    assert sum(share for _, share in shares.values()) == pytest.approx(1.0)
    assert sum(change.size.share for change in found if change.head is None) == pytest.approx(1.0)


def test_slices_add_up_and_rows_are_plain(twins: Twins) -> None:
    base, specialist = twins("llama")
    found = changes(base, specialist)
    for kind, count in (("attn.q", 4), ("attn.k", 2), ("attn.out", 4)):
        whole = next(one for one in found if one.name == f"layers.0.{kind}")
        slices = [one for one in found if one.name.startswith(f"layers.0.{kind}.")]
        assert len(slices) == count
        assert sum(one.size.norm**2 for one in slices) == pytest.approx(whole.size.norm**2, rel=1e-5)
    assert json.loads(json.dumps([one.row() for one in found], allow_nan=False))[0]["name"] == "layers.0.attn.q"
    assert changes(base, specialist, seed=3) == changes(base, specialist, seed=3)


def test_the_control_moves_as_far_in_no_direction(twins: Twins) -> None:
    base, specialist = twins("llama")
    known = pair(base, specialist)
    part = next(part for part in components(specialist) if part.name == "layers.0.attn")
    drawn = signed(known, part, 0)
    for name, value in drawn.items():
        far, real = value - known.specialist[name], known.base[name] - known.specialist[name]
        torch.testing.assert_close(far.abs(), real.abs(), atol=1e-6, rtol=1e-4)
        if far.ndim == 2:
            assert abs(float((far * real).sum() / real.square().sum())) < 0.2
    assert all(torch.equal(drawn[name], value) for name, value in signed(known, part, 0).items())
    assert not all(torch.equal(drawn[name], value) for name, value in signed(known, part, 1).items())


def test_pieces_join_and_cut() -> None:
    value, other = torch.arange(24.0).view(6, 4), torch.zeros(6, 4)
    piece = Piece("w", 0, ((0, 2), (4, 5)))
    assert torch.equal(piece.of(value), value[[0, 1, 4]])
    assert torch.equal(piece.grafted(value, other)[[0, 1, 4]], other[:3])
    assert torch.equal(piece.grafted(value, other)[[2, 3, 5]], value[[2, 3, 5]])
    assert float(value[0, 1]) == 1.0
    assert Part("x", "attn", 0, (piece,)).head is None
