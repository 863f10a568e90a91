"""The next-token objective against the formula on full logits: families with and without biases and caps, prompts, weights, adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from knowhow.adapt import lm
from knowhow.adapt.lm import NextToken, decoder, scales_logits
from knowhow.data.batch import IGNORE
from knowhow.model import adapters, toys
from knowhow.model.load import Loaded, load
from knowhow.types import Batch

FAMILIES = ("llama", "gpt2", "gpt_neox", "phi", "gemma2", "qwen3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    made: dict[str, Path] = {}

    def loaded(family: str) -> Loaded:
        if family not in made:
            made[family] = toys.twin(family, tmp_path_factory.mktemp("twins") / family, seed=1)
        fresh = load(str(made[family]))
        # twins start near uniform: larger heads tell a bias or a cap that was left out from one that was not
        torch.manual_seed(0)
        head = fresh.model.get_output_embeddings()
        with torch.no_grad():
            head.weight.mul_(20.0)
            if head.bias is not None:
                head.bias.normal_()
        return fresh

    return loaded


def batch(weighted: bool = False) -> Batch:
    """Three rows of 12, 9 and 5 tokens, prompts of 4, 1 and 2."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 300, (3, 12), generator=random)
    targets = torch.full((3, 12), IGNORE)
    for row, (prompt, length) in enumerate(((4, 12), (1, 9), (2, 5))):
        targets[row, prompt - 1 : length - 1] = tokens[row, prompt:length]
    weights = torch.tensor([0.5, 2.0, 1.25]) if weighted else None
    return Batch(tokens, targets != IGNORE, targets_BT=targets, weight_B=weights)


def reference(model: torch.nn.Module, made: Batch) -> torch.Tensor:
    logits = model(input_ids=made.tokens_BT).logits.float()
    each = F.cross_entropy(logits.flatten(0, 1), made.targets_BT.flatten(), ignore_index=IGNORE, reduction="none").view_as(made.targets_BT)
    return (each.sum(1) * (made.weight_B if made.weight_B is not None else 1.0)).sum()


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    made = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, made) if grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_those_of_the_full_logits(model: Callable[[str], Loaded], family: str, weighted: bool) -> None:
    net, made = model(family).model, batch(weighted)
    ours, metrics = NextToken()(net, made)
    theirs = reference(net, made)
    assert not metrics
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    mine, other = gradients(ours, net), gradients(theirs, net)
    assert mine.keys() == other.keys()
    for name, grad in mine.items():
        torch.testing.assert_close(grad, other[name], atol=1e-4, rtol=1e-4, msg=name)


def test_families_whose_logits_change_after_the_head_take_the_whole_model(model: Callable[[str], Loaded]) -> None:
    assert {family for family in FAMILIES if scales_logits(model(family).model)} == {"phi", "gemma2"}


def test_only_supervised_positions_reach_the_vocabulary(model: Callable[[str], Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = lm.linear_cross_entropy
    monkeypatch.setattr(lm, "linear_cross_entropy", lambda hidden, *rest: (seen.append(len(hidden)), inner(hidden, *rest))[1])
    made = batch()
    NextToken()(model("llama").model, made)
    assert seen == [int((made.targets_BT != IGNORE).sum())]


def test_tokens_after_a_row_s_end_change_nothing(model: Callable[[str], Loaded]) -> None:
    net, made = model("llama").model, batch()
    before = NextToken()(net, made)[0].item()
    made.tokens_BT[1, 9:], made.tokens_BT[2, 5:] = 7, 9
    assert NextToken()(net, made)[0].item() == before


def test_units_are_supervised_tokens_times_their_row_s_weight() -> None:
    assert NextToken().units(batch()) == 8 + 8 + 3
    assert NextToken().units(batch(weighted=True)) == pytest.approx(8 * 0.5 + 8 * 2.0 + 3 * 1.25)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_an_adapter_is_part_of_the_loss_and_alone_is_trained(model: Callable[[str], Loaded], family: str) -> None:
    plain = model(family)
    before = NextToken()(plain.model, batch())[0].item()
    adapted = adapters.add_lora(plain, rank=2, alpha=4.0, seed=0).model
    assert NextToken()(adapted, batch())[0].item() == pytest.approx(before, rel=1e-5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    ours = NextToken()(adapted, batch())[0]
    assert abs(ours.item() - before) > 1e-3
    assert ours.item() == pytest.approx(reference(adapted, batch()).item(), rel=1e-5)
    grads = gradients(ours, adapted)
    assert grads
    assert all("lora_" in name for name in grads)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_decoder_of_an_adapted_model_is_the_stack_below_its_head(model: Callable[[str], Loaded], family: str) -> None:
    plain = model(family)
    stack = decoder(plain.model)
    adapted = adapters.add_lora(plain, rank=2, alpha=4.0, seed=0).model
    assert decoder(adapted) is stack
    assert any("lora_" in name for name, _ in decoder(adapted).named_parameters())


def test_a_stand_in_for_the_decoder_is_used(model: Callable[[str], Loaded]) -> None:
    net, calls = model("llama").model, []

    def stand_in(**given: object) -> object:
        calls.append(1)
        return decoder(net)(**given)

    assert NextToken(backbone=stand_in)(net, batch())[0].item() == NextToken()(net, batch())[0].item()
    assert calls
