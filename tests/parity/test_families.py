"""Every family against plain transformers: the same logits after saving, the same greedy text (float32, 1e-5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from knowhow.model import toys
from knowhow.model.generate import generate
from knowhow.model.infer import class_logits, encode
from knowhow.model.load import load, save

LABELS = ("benign", "rat", "ransomware")
HEADS = {"lm": {}, "classifier": {"labels": LABELS}, "many": {"labels": LABELS, "many": True}, "regressor": {}}
TEXTS = ("open file, read file", "What is the label? The label is one of benign, rat or ransomware.", "x")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("twins")
    return {family: toys.twin(family, root / family, seed=1) for family in toys.FAMILIES}


@pytest.fixture(autouse=True)
def plain_library_is_quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_saved_folder_gives_plain_transformers_the_same_logits(family: str, head: str, twins: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(str(twins[family]), head="classifier" if head == "many" else head, seed=5, **HEADS[head])
    save(loaded, tmp_path / "saved")
    maker = AutoModelForSequenceClassification if head != "lm" else AutoModelForMaskedLM if loaded.kind == "encoder" else AutoModelForCausalLM
    plain, tokenizer = maker.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    kept = batch.attention_mask.bool() if head == "lm" else slice(None)
    with torch.inference_mode():
        want = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[kept]
        got = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[kept]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert float(want.abs().max()) > 0
    if head != "lm":
        assert plain.config.problem_type == loaded.model.config.problem_type
        ours = class_logits(loaded, encode(loaded.tokenizer, TEXTS, context=loaded.context))
        np.testing.assert_allclose(ours, want.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family, repetition", [*((family, 1.0) for family in toys.FAMILIES if family not in toys.ENCODERS), ("llama", 1.3)])
def test_greedy_text_is_transformers_own(family: str, repetition: float, twins: dict[str, Path]) -> None:
    loaded = load(str(twins[family]))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(4)
    rows = encode(loaded.tokenizer, TEXTS, context=64)
    want = []
    for row in rows:
        tokens = torch.tensor([row])
        out = loaded.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False, pad_token_id=loaded.tokenizer.pad_token_id,
            repetition_penalty=repetition,
        )  # fmt: skip
        want.append(loaded.tokenizer.decode(out[0, len(row) :], skip_special_tokens=True))
    assert generate(loaded, TEXTS, max_new_tokens=12, repetition=repetition) == want
