"""The classification objective: one label, many, a number, soft labels, smoothing, class weights, encoders and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from knowhow.adapt.classify import Classify
from knowhow.model import adapters, toys
from knowhow.model.load import Loaded, load
from knowhow.types import Batch

LABELS = ("benign", "rat", "ransomware")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    folders = {family: toys.twin(family, tmp_path_factory.mktemp("twins") / family, seed=1) for family in ("llama", "bert")}
    return lambda family="llama", **given: load(str(folders[family]), **({"head": "classifier", "labels": LABELS} | given))


def batch(labels: torch.Tensor, weights: torch.Tensor | None = None, pad: int = 2) -> Batch:
    """Four rows of 9, 9, 6 and 3 tokens, padded with the tokenizer's own."""
    tokens = torch.randint(5, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 9, 6, 3])[:, None]
    return Batch(tokens.masked_fill(~mask, pad), mask, labels=labels, weight_B=weights)


def logits(loaded: Loaded, made: Batch) -> torch.Tensor:
    """Row by row without padding: what each row is worth alone."""
    rows = [tokens[mask][None] for tokens, mask in zip(made.tokens_BT, made.mask_BT)]
    return torch.cat([loaded.model(input_ids=row).logits for row in rows])


INDEX = torch.tensor([0, 2, 1, 2])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.25])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_one_label(model: Callable[..., Loaded], family: str) -> None:
    loaded = model(family)
    made = batch(INDEX, WEIGHTS, loaded.tokenizer.pad_token_id)
    loss, metrics = Classify(causal=loaded.kind == "causal")(loaded.model, made)
    expected = logits(loaded, made)
    assert loss.item() == pytest.approx((F.cross_entropy(expected, INDEX, reduction="none") * WEIGHTS).sum().item(), abs=1e-5)
    assert metrics["accuracy"].item() == pytest.approx(((expected.argmax(-1) == INDEX) * WEIGHTS).sum().item())
    assert Classify().units(made) == pytest.approx(3.75)


def test_gradients_reach_head_and_body(model: Callable[..., Loaded]) -> None:
    loaded = model()
    made = batch(INDEX, None, loaded.tokenizer.pad_token_id)
    ours = torch.autograd.grad(Classify()(loaded.model, made)[0], list(loaded.model.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(logits(loaded, made), INDEX, reduction="sum"), list(loaded.model.parameters()))
    assert all(grad.abs().sum().item() > 0 for grad in ours)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_distribution_over_labels_counts_each_by_its_share(model: Callable[..., Loaded]) -> None:
    loaded = model()
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    made = batch(soft, WEIGHTS, loaded.tokenizer.pad_token_id)
    loss, metrics = Classify()(loaded.model, made)
    expected = logits(loaded, made)
    assert loss.item() == pytest.approx((F.cross_entropy(expected, soft, reduction="none") * WEIGHTS).sum().item(), abs=1e-5)
    shares = soft.gather(1, expected.argmax(-1, keepdim=True)).squeeze(1)
    assert metrics["accuracy"].item() == pytest.approx((shares * WEIGHTS).sum().item())


def test_smoothing_is_torch_s(model: Callable[..., Loaded]) -> None:
    loaded = model()
    made = batch(INDEX, None, loaded.tokenizer.pad_token_id)
    expected = F.cross_entropy(logits(loaded, made), INDEX, reduction="sum", label_smoothing=0.2)
    assert Classify(smoothing=0.2)(loaded.model, made)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_class_weights_multiply_rows_and_leave_units_alone(model: Callable[..., Loaded]) -> None:
    loaded, weight_C = model(), torch.tensor([3.0, 1.0, 0.5])
    made = batch(INDEX, None, loaded.tokenizer.pad_token_id)
    objective = Classify(class_weights_C=weight_C)
    expected = F.cross_entropy(logits(loaded, made), INDEX, weight=weight_C, reduction="sum")
    assert objective(loaded.model, made)[0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert objective.units(made) == 4.0
    soft = replace(made, labels=F.one_hot(INDEX, 3).float())
    assert objective(loaded.model, soft)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_many_labels(model: Callable[..., Loaded]) -> None:
    loaded = model(many=True)
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    made = batch(wanted, WEIGHTS, loaded.tokenizer.pad_token_id)
    loss, metrics = Classify(kind="many")(loaded.model, made)
    expected = logits(loaded, made)
    each = F.binary_cross_entropy_with_logits(expected, wanted, reduction="none").mean(-1)
    assert loss.item() == pytest.approx((each * WEIGHTS).sum().item(), abs=1e-5)
    assert metrics["accuracy"].item() == pytest.approx((((expected > 0) == (wanted > 0)).float().mean(-1) * WEIGHTS).sum().item())


def test_a_number(model: Callable[..., Loaded]) -> None:
    loaded = model(head="regressor", labels=())
    wanted = torch.tensor([0.5, -1.0, 3.0, 0.0])
    made = batch(wanted, WEIGHTS, loaded.tokenizer.pad_token_id)
    loss, metrics = Classify(kind="number")(loaded.model, made)
    assert loss.item() == pytest.approx((((logits(loaded, made)[:, 0] - wanted) ** 2) * WEIGHTS).sum().item(), abs=1e-5)
    assert not metrics


def test_without_weights_every_row_counts_once(model: Callable[..., Loaded]) -> None:
    loaded = model()
    plain, ones = (batch(INDEX, weights, loaded.tokenizer.pad_token_id) for weights in (None, torch.ones(4)))
    assert Classify()(loaded.model, plain)[0].item() == Classify()(loaded.model, ones)[0].item()
    assert Classify().units(plain) == 4.0


def test_with_an_adapter_the_head_and_the_matrices_are_trained(model: Callable[..., Loaded]) -> None:
    adapted = adapters.add_lora(model(), rank=2, alpha=4.0, seed=0)
    made = batch(INDEX, None, adapted.tokenizer.pad_token_id)
    named = {name: parameter for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    Classify()(adapted.model, made)[0].backward()
    moved = {name for name, parameter in named.items() if parameter.grad is not None and parameter.grad.abs().sum().item() > 0}
    assert any("lora_B" in name for name in moved)
    assert any("score" in name for name in moved)
    assert all(parameter.grad is None for name, parameter in adapted.model.named_parameters() if name not in named)
