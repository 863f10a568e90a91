"""One intervention at a time: each gives what the same change by hand gives, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.patching import HOWS, ablate, contrast, patch, steer
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]

BASE, SOURCE = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 3, 11, 12]])}, {"input_ids": torch.tensor([[5, 6, 13, 8], [9, 14, 11, 12]])}


def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_patching_the_whole_stream_gives_the_other_run(lively: Lively, family: str) -> None:
    model = lively(family)
    before = logits(model, BASE)
    assert torch.allclose(patch(model, BASE, SOURCE, "layers.1.resid_post"), logits(model, SOURCE))
    assert torch.equal(patch(model, BASE, BASE, "layers.*.attn.z", at=At(heads=[0])), before)
    assert not torch.allclose(patch(model, BASE, SOURCE, "layers.0.attn.z", at=At(heads=[1])), before)
    assert torch.equal(logits(model, BASE), before)


def test_patching_one_position_leaves_those_before_it(lively: Lively) -> None:
    model = lively("llama")
    patched = patch(model, BASE, SOURCE, "layers.0.resid_post", at=At(positions=[2]))
    before = logits(model, BASE)
    assert torch.allclose(patched[:, :2], before[:, :2])
    assert not torch.allclose(patched[0, 2:], before[0, 2:])


def test_each_way_of_taking_out_is_the_one_by_hand(lively: Lively) -> None:
    model = lively("llama")
    with torch.no_grad(), tap(model, "layers.1.mlp.out") as seen:
        model(**BASE)
    value = seen["layers.1.mlp.out"]
    found = {how: ablate(model, BASE, "layers.1.mlp.out", how=how) for how in HOWS}
    by_hand = {"zero": torch.zeros_like(value), "mean": value.mean((0, 1)).expand_as(value), "resample": value.flip(0)}
    for how, instead in by_hand.items():
        with torch.no_grad(), tap(model, edits=[Edit("layers.1.mlp.out", lambda _, instead=instead: instead)]):
            assert torch.equal(model(**BASE).logits, found[how]), how
    assert torch.equal(found["noise"], ablate(model, BASE, "layers.1.mlp.out", how="noise")), "one seed, one noise"
    assert not torch.equal(found["noise"], ablate(model, BASE, "layers.1.mlp.out", how="noise", seed=1))


def test_the_mean_may_come_from_other_rows_and_is_each_heads_own(lively: Lively) -> None:
    model = lively("gpt2")
    with torch.no_grad(), tap(model, "layers.0.attn.z") as seen:
        model(**SOURCE)
    mean_HK = seen["layers.0.attn.z"].mean((0, 1))
    with torch.no_grad(), tap(model, edits=[Edit("layers.0.attn.z", lambda value: mean_HK.expand_as(value))]):
        wanted = model(**BASE).logits
    assert torch.allclose(ablate(model, BASE, "layers.0.attn.z", how="mean", known=SOURCE), wanted)


def test_steering_works_while_it_generates_and_stops_afterwards(lively: Lively) -> None:
    model = lively("llama", dtype=torch.float32)
    push = model.get_output_embeddings().weight[17].detach()
    plain = model.generate(**BASE, max_new_tokens=4, do_sample=False, pad_token_id=0)
    with steer(model, "layers.1.resid_post", push, 1e4):
        steered = model.generate(**BASE, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert not torch.equal(plain, steered)
    assert torch.equal(plain, model.generate(**BASE, max_new_tokens=4, do_sample=False, pad_token_id=0))
    assert contrast(model, BASE, SOURCE, "layers.1.resid_post", position=2).shape == push.shape


def test_what_cannot_be_done_is_said(lively: Lively) -> None:
    model = lively("llama")
    before = logits(model, BASE)
    longer = {"input_ids": torch.tensor([[5, 6, 7], [1, 2, 3]])}
    for call, says in (
        (lambda: patch(model, BASE, longer, "layers.0.resid_post"), "same shape"),
        (lambda: patch(model, BASE, SOURCE), "no site"),
        (lambda: ablate(model, BASE, "layers.0.resid_post", how="vanish"), "zero, mean, resample, noise"),
        (lambda: ablate(model, {"input_ids": BASE["input_ids"][:1]}, "layers.0.mlp.out", how="resample"), "at least two rows"),
        (lambda: ablate(model, BASE, "layers.9.mlp.out"), "layers.9.mlp.out"),
        (lambda: patch(model, BASE, SOURCE, "layers.0.mlp.out", at=At(heads=[0])), "heads"),
    ):
        with pytest.raises(UsageError, match=says):
            call()
    with pytest.raises(UsageError, match="width of"), steer(model, "layers.0.resid_post", torch.ones(3)):
        logits(model, BASE)
    assert torch.equal(logits(model, BASE), before)
