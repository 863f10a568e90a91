"""The mean over tokens as one more layer of BERT."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from knowhow.adapt.readout import Linear, set_head, states
from knowhow.model import infer
from knowhow.model.load import save
from knowhow.model.pooling import mean_pooled

TEXTS = ["open file", "set key close key open file read file"]


def test_the_head_reads_the_mean_over_all_tokens(classifier) -> None:
    loaded = classifier("bert")
    tokens = infer.encode(loaded.tokenizer, TEXTS, context=32)
    with torch.no_grad():
        means = [loaded.model.bert(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in tokens]
    read_ND = states(mean_pooled(loaded), tokens)
    for mean_D, given_D in zip(means, read_ND, strict=True):
        wanted_D = (mean_D - mean_D.mean()) / mean_D.std(unbiased=False)
        assert np.corrcoef(wanted_D.numpy(), given_D)[0, 1] > 0.9999


def test_plain_transformers_runs_the_layer_and_the_head(classifier, tmp_path) -> None:
    loaded = mean_pooled(classifier("bert"))
    tokens = infer.encode(loaded.tokenizer, TEXTS, context=32)
    width = loaded.model.config.hidden_size
    linear = Linear(np.random.default_rng(0).normal(size=(width, 3)), np.array([1.0, 2.0, 3.0]))
    set_head(loaded, linear)
    save(loaded, tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = np.stack([plain(input_ids=torch.tensor([row])).logits[0].numpy() for row in tokens])
    assert np.allclose(logits, linear(states(loaded, tokens)), atol=1e-5)
    assert np.allclose(logits, infer.class_logits(loaded, tokens), atol=1e-5)


def test_other_families_stay_as_they_are(classifier) -> None:
    loaded = classifier("llama")
    assert mean_pooled(loaded) is loaded
