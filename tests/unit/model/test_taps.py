"""Reading and writing at sites: the same names and meanings over all families, the same bits when only reading, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.maths.running import Moments, TopK
from knowhow.model import toys
from knowhow.model.loaded import Loaded
from knowhow.model.quiet import quiet
from knowhow.model.sites import find, sites
from knowhow.model.taps import At, Edit, tap

Lm = Callable[..., Loaded]
TOKENS = torch.tensor([[7, 90, 41, 260, 41, 90, 7, 33], [12, 12, 200, 9, 77, 300, 8, 8]])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])


def untouched(model: torch.nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def disturbed(value: torch.Tensor) -> torch.Tensor:
    return value + torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


@torch.no_grad()
def logits(model: torch.nn.Module, **more: object) -> torch.Tensor:
    return model(input_ids=TOKENS, attention_mask=MASK, **more).logits


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_reading_everywhere_changes_no_bit_and_values_are_what_they_say(lm: Lm, family: str) -> None:
    model = lm(family).model
    before, implementation = logits(model), model.config._attn_implementation
    with tap(model, "*") as seen:
        after = logits(model)
    assert torch.equal(before, after)
    assert untouched(model)
    assert model.config._attn_implementation == implementation
    value = seen.all()
    assert set(value) == set(sites(model))
    assert torch.equal(value["logits"], after)
    assert torch.equal(value["layers.0.resid_post"], value["layers.1.resid_pre"])
    pattern, v = value["layers.1.attn.pattern"], value["layers.1.attn.v"]
    real = MASK.bool()
    torch.testing.assert_close(pattern.sum(-1).transpose(1, 2)[real], torch.ones(int(real.sum()), pattern.shape[1]))
    mixed = torch.einsum("bhts,bshk->bthk", pattern, v.repeat_interleave(pattern.shape[1] // v.shape[2], 2))
    torch.testing.assert_close(mixed[real], value["layers.1.attn.z"][real], atol=1e-6, rtol=1e-5)
    if "layers.1.resid_mid" in value and family not in ("bert", "roberta"):
        torch.testing.assert_close(value["layers.1.resid_pre"] + value["layers.1.attn.out"], value["layers.1.resid_mid"])
        torch.testing.assert_close(value["layers.1.resid_mid"] + value["layers.1.mlp.out"], value["layers.1.resid_post"])


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_writing_back_what_was_there_changes_nothing_and_writing_anything_else_does(lm: Lm, family: str) -> None:
    model = lm(family).model
    before = logits(model)
    for name in sites(model):
        with tap(model, edits=[Edit(name, torch.clone)]):
            same = logits(model)
        with tap(model, edits=[Edit(name, disturbed)]):
            other = logits(model)
        torch.testing.assert_close(same[MASK.bool()], before[MASK.bool()], atol=1e-5, rtol=1e-4)
        assert (other - before)[MASK.bool()].abs().max() > 1e-6, name
    assert torch.equal(logits(model), before)


def test_an_edit_reaches_its_own_part_alone(lm: Lm) -> None:
    model = lm().model
    at = At(rows=[1], positions=[2, -4], heads=3)
    with tap(model, "layers.0.attn.z", edits=[Edit("layers.0.attn.z", torch.zeros_like, at)]) as seen:
        logits(model)
    with tap(model, "layers.0.attn.z") as plain:
        logits(model)
    expected = plain["layers.0.attn.z"].clone()
    expected[1, [2, 4], 3] = 0.0
    assert torch.equal(seen["layers.0.attn.z"], expected)
    with tap(model, "layers.0.attn.z", "layers.1.resid_pre", at=At(rows=0, positions=slice(2, 5))) as part:
        logits(model)
    assert torch.equal(part["layers.0.attn.z"], plain["layers.0.attn.z"][:1, 2:5])


def test_a_write_between_attention_and_mlp_reaches_the_stream(lm: Lm) -> None:
    model = lm().model
    with tap(model, "layers.0.resid_mid", "layers.0.resid_post", "layers.0.mlp.out", edits=[Edit("layers.0.resid_mid", lambda value: value * 2)]) as seen:
        logits(model)
    with tap(model, "layers.0.resid_mid") as plain:
        logits(model)
    torch.testing.assert_close(seen["layers.0.resid_mid"], 2 * plain["layers.0.resid_mid"])
    torch.testing.assert_close(seen["layers.0.resid_post"], seen["layers.0.resid_mid"] + seen["layers.0.mlp.out"])


def test_bad_use_is_told_and_leaves_no_hook(lm: Lm) -> None:
    model = lm().model
    with pytest.raises(UsageError, match=r"layers\.\*\.attn\.pattern") as unknown:
        tap(model, "layers.0.atn.pattern")
    assert "did you mean layers.0.attn.pattern" in unknown.value.fix
    with pytest.raises(UsageError, match="tap inside a tap"), tap(model, "embed"), tap(model, "final"):
        pass
    assert untouched(model)
    with pytest.raises(UsageError, match="no value at embed"), tap(model, "embed"):
        pass
    for at, words in ((At(positions=8), "-8 to 7"), (At(heads=1), "leave heads out")):
        with pytest.raises(UsageError, match=words), tap(model, "layers.0.resid_post", at=at):
            logits(model)
    with pytest.raises(UsageError, match="shape"), tap(model, edits=[Edit("embed", lambda value: value[:, :2])]):
        logits(model)
    with pytest.raises(ZeroDivisionError), tap(model, "layers.*.attn.q", edits=[Edit("layers.1.mlp.act", lambda value: value / (1 // 0))]):
        logits(model)
    with pytest.raises(UsageError, match="NaN at layers"), tap(model, "layers.1.resid_post", edits=[Edit("layers.0.mlp.out", lambda v: v * torch.nan)]):
        logits(model)
    assert untouched(model)
    assert not model.config._attn_implementation.startswith("knowhow")
    with tap(model, "embed") as seen:
        logits(model)
        logits(model)
    with pytest.raises(UsageError, match="2 values"):
        seen["embed"]
    with pytest.raises(UsageError, match="does not read"):
        seen["final"]


def test_a_family_without_the_site_says_so(lm: Lm) -> None:
    with pytest.raises(UsageError, match=r"resid_mid"):
        find(lm("phi").model, "layers.*.resid_mid")


def test_low_rank_adapters_bf16_and_classifiers(lm: Lm, classifier: Lm) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False)
    with quiet():
        adapted = peft.get_peft_model(lm().model, config).eval()
    for model in (adapted, lm().model.to(torch.bfloat16), classifier().model):
        before = logits(model)
        with tap(model, "*") as seen:
            after = logits(model)
        assert torch.equal(before, after)
        assert torch.equal(seen["logits"], after)
        with tap(model, edits=[Edit("layers.1.attn.z", torch.zeros_like)]):
            assert not torch.equal(logits(model), before)
        assert untouched(model)
    with quiet():
        merged = adapted.merge_and_unload()
    with tap(merged, "layers.1.attn.out") as seen:
        logits(merged)
    assert seen["layers.1.attn.out"].shape == (2, 8, 32)


def test_generating_with_a_cache(lm: Lm) -> None:
    model = lm().model
    plain = model.generate(input_ids=TOKENS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    with tap(model, "layers.1.attn.k", "layers.1.attn.pattern") as seen:
        tapped = model.generate(input_ids=TOKENS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(plain, tapped)
    assert [value.shape[1] for value in seen.calls("layers.1.attn.k")] == [8, 9, 10, 11]
    assert [tuple(value.shape[2:]) for value in seen.calls("layers.1.attn.pattern")] == [(8, 8), (1, 9), (1, 10), (1, 11)]
    with tap(model, edits=[Edit("layers.0.mlp.out", lambda value: value + 3)]):
        steered = model.generate(input_ids=TOKENS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert not torch.equal(steered, plain)


def test_in_training_gradients_keep_their_bits_and_flow_through_what_was_read(lm: Lm) -> None:
    model = lm().model.train()

    def gradient(**options: object) -> torch.Tensor:
        model.zero_grad()
        with tap(model, "layers.*.resid_post", "layers.*.attn.z", **options) as seen:
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        assert seen["layers.0.attn.z"].requires_grad == bool(options)
        return model.get_input_embeddings().weight.grad.clone()

    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    bare = model.get_input_embeddings().weight.grad.clone()
    assert torch.equal(gradient(), bare)
    assert torch.equal(gradient(grad=True), bare)


def test_a_compiled_model_runs_uncompiled_while_tapped(lm: Lm) -> None:
    model = lm().model
    compiled = torch.compile(model, backend="eager")
    before = logits(compiled)
    with tap(compiled, "layers.0.attn.z", "logits") as seen:
        after = logits(compiled)
    torch.testing.assert_close(after, before)
    assert torch.equal(seen["logits"], after)
    torch.testing.assert_close(logits(compiled), before)


def test_statistics_instead_of_values_leave_padding_out(lm: Lm) -> None:
    model = lm().model
    with tap(model, "layers.0.resid_post", "layers.0.attn.z", keep=lambda: Moments(covariance=True)) as kept:
        logits(model)
        logits(model)
    with tap(model, "layers.0.resid_post", "layers.0.attn.z") as seen:
        logits(model)
    vectors = seen["layers.0.resid_post"][MASK.bool()].double()
    found = kept.kept("layers.0.resid_post")
    assert found.count == 2 * len(vectors)
    torch.testing.assert_close(found.mean, vectors.mean(0))
    torch.testing.assert_close(found.covariance, torch.cat([vectors, vectors]).T.cov())
    assert kept.kept("layers.0.attn.z").count == 2 * len(vectors) * 4
    with tap(model, "layers.0.mlp.act", keep=lambda: TopK(2)) as top:
        logits(model)
    assert top.kept("layers.0.mlp.act").values.shape == (2, 48)
