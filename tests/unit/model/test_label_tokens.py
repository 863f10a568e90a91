"""A classifier's label-token form: the same logits from a language model, for families with tied and untied heads, with a bias, with capped logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.model.adapters import add_lora
from knowhow.model.infer import class_logits, encode
from knowhow.model.label_tokens import label_ids, label_token, to_label_tokens
from knowhow.model.load import Loaded, load, save

Make = Callable[..., Loaded]
TEXTS = ("open file read", "the label is", "0 1 2")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "phi"])
def test_the_labels_tokens_have_the_labels_logits(family: str, classifier: Make, tmp_path: Path) -> None:
    loaded = classifier(family)
    with torch.no_grad():
        loaded.model.score.weight.mul_(200)  # logits that a cap would bend
    rows = encode(loaded.tokenizer, TEXTS, context=loaded.context)
    want = class_logits(loaded, rows)
    speaking = to_label_tokens(loaded)
    save(speaking, tmp_path / "speaking")
    for model in (speaking, load(str(tmp_path / "speaking"))):
        assert model.model.config.tie_word_embeddings is False
        assert encode(model.tokenizer, TEXTS, context=model.context) == rows
        with torch.inference_mode():
            got = np.stack([model.model(input_ids=torch.tensor([row])).logits[0, -1, label_ids(model)].numpy() for row in rows])
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    assert np.abs(want).max() > 3


def test_label_tokens_are_control_tokens(classifier: Make) -> None:
    speaking = to_label_tokens(classifier("llama"))
    names = [label_token(label) for label in speaking.labels]
    assert names == ["<|label:benign|>", "<|label:rat|>", "<|label:ransomware|>"]
    assert speaking.tokenizer.convert_ids_to_tokens(label_ids(speaking)) == names
    assert not set(encode(speaking.tokenizer, ["".join(names)], context=99)[0]) & set(label_ids(speaking))


def test_a_tied_base_still_writes_as_it_did(twin: Callable[[str], Path], classifier: Make) -> None:
    base, speaking = load(str(twin("llama"))), to_label_tokens(classifier("llama"))
    row = torch.tensor([[0, 5, 260]])
    with torch.inference_mode():
        torch.testing.assert_close(speaking.model(input_ids=row).logits[..., :294], base.model(input_ids=row).logits[..., :294])


def test_what_has_no_label_tokens(lm: Make, classifier: Make, twin: Callable[[str], Path]) -> None:
    for loaded, reason in (
        (classifier("bert"), "encoder"),
        (lm("llama"), "lm model"),
        (load(str(twin("llama")), head="regressor"), "regressor"),
        (add_lora(classifier("llama"), rank=2, alpha=2), "adapted"),
        (load(str(twin("llama")), head="classifier", labels=("a b", "a_b")), "same"),
    ):
        with pytest.raises(UsageError) as caught:
            to_label_tokens(loaded)
        assert reason in caught.value.got
        assert caught.value.allowed
