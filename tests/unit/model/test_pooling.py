"""The mean over tokens as one more layer, in models whose head reads a single token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from knowhow.adapt.readout import Linear, set_head, states
from knowhow.errors import UsageError
from knowhow.model import infer
from knowhow.model.load import load, save
from knowhow.model.pooling import mean_pooled
from knowhow.model.taps import tap

TEXTS = ["open file", "set key close key open file read file"]


def test_the_head_of_bert_reads_the_mean_over_all_tokens(classifier) -> None:
    loaded = classifier("bert")
    tokens = infer.encode(loaded.tokenizer, TEXTS, context=32)
    with torch.no_grad():
        means = [loaded.model.bert(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in tokens]
    read_ND = states(mean_pooled(loaded), tokens)
    for mean_D, given_D in zip(means, read_ND, strict=True):
        assert np.corrcoef(mean_D.numpy(), given_D)[0, 1] > 0.9999


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "llama"])
def test_the_head_of_a_causal_model_reads_the_normed_mean(square, family) -> None:
    loaded = square(family)
    tokens = infer.encode(loaded.tokenizer, TEXTS, context=32)
    depth = loaded.model.config.num_hidden_layers
    means = []
    for row in tokens:
        with torch.no_grad(), tap(loaded.model, f"layers.{depth - 1}.resid_post") as seen:
            loaded.model(input_ids=torch.tensor([row]))
        states_TD = seen[f"layers.{depth - 1}.resid_post"][0]
        means.append(torch.nn.functional.normalize(states_TD, dim=-1).mean(0))
    for mean_D, given_D in zip(means, states(mean_pooled(loaded), tokens), strict=True):
        assert torch.cosine_similarity(mean_D, torch.from_numpy(given_D), dim=0) > 0.9999


@pytest.mark.parametrize("family", ["bert", "llama", "qwen3"])
def test_plain_transformers_runs_the_layer_and_the_head(square, tmp_path, family) -> None:
    loaded = mean_pooled(square(family))
    assert mean_pooled(loaded).model.config.num_hidden_layers == 3  # once is enough
    tokens = infer.encode(loaded.tokenizer, TEXTS, context=32)
    linear = Linear(np.random.default_rng(0).normal(size=(loaded.model.config.hidden_size, 3)), np.array([1.0, 2.0, 3.0]) * (family == "bert"))
    set_head(loaded, linear)
    save(loaded, tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = np.stack([plain(input_ids=torch.tensor([row])).logits[0].numpy() for row in tokens])
    assert np.allclose(logits, linear(states(loaded, tokens)), atol=1e-5)
    assert np.allclose(logits, infer.class_logits(loaded, tokens), atol=1e-5)
    assert not any(p.requires_grad for name, p in loaded.model.named_parameters() if ".2." in name)
    again = load(str(tmp_path / "model"), head="classifier", labels=loaded.labels)
    assert mean_pooled(again).model.config.num_hidden_layers == 3
    assert not any(p.requires_grad for name, p in again.model.named_parameters() if ".2." in name)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_where_there_is_no_such_layer_it_is_said(classifier, family) -> None:
    with pytest.raises(UsageError, match=r"mean over tokens|states of"):
        mean_pooled(classifier(family))  # this llama's heads share their values


@pytest.fixture
def square(classifier, tmp_path):
    """A classifier whose heads have values of their own."""

    def made(family: str):
        loaded = classifier(family)
        config = loaded.model.config
        if family == "bert" or config.num_key_value_heads == config.num_attention_heads:
            return loaded
        config.num_key_value_heads = config.num_attention_heads
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.load_state_dict({name: value for name, value in loaded.model.state_dict().items() if "k_proj" not in name and "v_proj" not in name}, strict=False)
        return type(loaded)(model, loaded.tokenizer, loaded.kind, loaded.head, loaded.ref, loaded.context, loaded.labels)

    return made
