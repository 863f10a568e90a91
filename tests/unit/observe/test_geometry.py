"""The geometry of class means: against brute force, on simplices, on Hugging Face classifiers, and without a trace of having looked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from knowhow.adapt.classify import Classify
from knowhow.experiments.clusters import clusters
from knowhow.observe.geometry import Geometry, classes_of, duality, geometry, head_map, read_by, shrinking
from knowhow.types import Batch, Rate, StepInfo

LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}


def info(model: torch.nn.Module, batches: list[Batch], objective: Any = None, rates: Any = None) -> StepInfo:
    return StepInfo(7, 0, 0.1, {}, 0.1, 1.0, model, batches, objective, rates=rates or {})


def simplex(classes: int, copies: int, spread: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.eye(classes, dtype=torch.float64)
    features = corners.repeat_interleave(copies, 0)
    noise = spread * torch.randn(features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return features + noise + 3.0, torch.arange(classes).repeat_interleave(copies)


def test_a_collapsed_simplex() -> None:
    features, classes = simplex(4, 6)
    found = geometry(features, classes)
    assert found["cosine_mean"] == pytest.approx(-1 / 3)
    assert found["cosine_std"] == pytest.approx(0, abs=1e-9)
    assert found["norm_cv"] == pytest.approx(0, abs=1e-9)
    assert found["nc1"] == pytest.approx(0, abs=1e-12)
    centred = torch.eye(4, dtype=torch.float64) - 0.25
    assert duality(centred * 5, features, classes) == pytest.approx(0, abs=1e-9)
    assert duality(-centred, features, classes) == pytest.approx(2)


def test_nc1_is_the_published_trace() -> None:
    features, classes = simplex(3, 20, spread=0.3)
    features = torch.cat([features, torch.randn(60, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)], 1)
    means = torch.stack([features[classes == c].mean(0) for c in range(3)])
    centred, within = means - means.mean(0), features - means[classes]
    expected = torch.trace(within.T @ within / 60 @ torch.linalg.pinv(centred.T @ centred / 3, rtol=1e-9)) / 3
    assert geometry(features, classes)["nc1"] == pytest.approx(float(expected), rel=1e-6)


def test_one_class_has_no_angles() -> None:
    found = geometry(torch.randn(5, 3).double(), torch.zeros(5, dtype=torch.long))
    assert found == {"classes": 1.0, "width": 3.0, "least": 5.0, "balance": 1.0}


def test_labels_that_are_a_class_and_labels_that_are_not() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long)

    def of(labels: torch.Tensor | None) -> torch.Tensor | None:
        return classes_of(Batch(tokens, torch.ones_like(tokens), labels=labels))

    assert of(torch.tensor([2, 0])).tolist() == [2, 0]  # type: ignore[union-attr]
    assert of(torch.tensor([[0.0, 1.0], [0.9, 0.1]])).tolist() == [1, 0]  # type: ignore[union-attr]
    for none in (None, torch.tensor([0.3, 2.0]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.ones(2, 1)):
        assert of(none) is None


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_features_are_what_a_hugging_face_head_reads(family: str) -> None:
    torch.manual_seed(0)
    made = (
        LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=3))
        if family == "llama"
        else BertForSequenceClassification(BertConfig(**LLAMA, num_labels=3))
    )
    model = made.eval()
    tokens = torch.randint(1, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    tokens[1, 4:], mask[1, 4:] = 0, 0
    batch = Batch(tokens, mask, labels=torch.tensor([0, 1, 2, 0]))
    head = head_map(model)
    assert head is not None
    with torch.no_grad():
        features, logits = read_by(model, head, batch)
        assert torch.allclose(logits, model(input_ids=tokens, attention_mask=mask).logits, atol=1e-6)
        assert torch.allclose(head(features), logits, atol=1e-6)
    look = Geometry(lambda step: True)
    look.after(info(model, [batch], Classify(causal=family == "llama")))
    (row,) = look.rows()
    assert (row["geometry.classes"], row["geometry.width"], row["geometry.balance"]) == (3.0, 16.0, 0.5)
    assert row["geometry.accuracy"] == pytest.approx(float((logits.argmax(-1) == batch.labels).float().mean()))


def test_nothing_is_kept_where_there_is_no_class_to_see() -> None:
    language = LlamaForCausalLM(LlamaConfig(**LLAMA))
    assert head_map(language) is None
    tokens = torch.ones(2, 3, dtype=torch.long)
    look = Geometry(lambda step: True)
    look.after(info(language, [Batch(tokens, torch.ones_like(tokens), labels=torch.tensor([0, 1]))]))
    at = clusters(0)
    (batch,) = next(iter(at.batches))
    batch.labels = None
    look.after(info(at.model, [batch]))
    assert look.rows() == []


def test_looking_leaves_no_trace() -> None:
    at = clusters(0, classes=3, per_class=5, width=8, normalised=True)
    model = torch.nn.Sequential(*list(at.model), torch.nn.Dropout(0.5), torch.nn.Linear(3, 3)).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    look = Geometry(lambda step: True)
    look.after(info(model, list(next(iter(at.batches)))))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_decay_through_momentum() -> None:
    assert shrinking(Rate(0.1, 0.01, "sgd", 0.9)) == pytest.approx(0.01)
    assert shrinking(Rate(0.1, 0.01, "adamw", 0.9)) == pytest.approx(0.001)
