"""Tokens in, numbers out: control tokens stay text, order and padding change nothing, likelihoods are the model's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.model import toys
from knowhow.model.infer import class_logits, cut, encode, frame, label_logprobs, like_lengths, lm_nll, pieces
from knowhow.model.load import Loaded

TEXTS = ("open file, read file", "What is the label? 0 1 2 3 4", "x", "", "the expert wrote the report and the answer")
Make = Callable[..., Loaded]


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_control_tokens_in_a_text_stay_text(family: str, lm: Make) -> None:
    tokenizer = lm(family).tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    before, after = frame(tokenizer)
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for name in [*names, "a " + "".join(names), f"x{names[0]}y"]:
        row = encode(tokenizer, [name], context=100)[0]
        body = row[len(before) : len(row) - len(after)]
        assert special.isdisjoint(body)
        assert tokenizer.decode(body, skip_special_tokens=False) == name
    assert tokenizer.backend_tokenizer.encode_special_tokens is False


def test_control_tokens_that_are_in_the_vocabulary(lm: Make) -> None:
    """A unigram or word-level model may find the spelling of a control token among its own words."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "/": 3, "s": 4, "<": 5, ">": 6}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=AddedToken("</s>", special=True), unk_token="<unk>")
    assert pieces(tokenizer, ["a </s> a"]) == [[2, 5, 3, 4, 6, 2]]


@pytest.mark.parametrize("family, before, after", [("llama", 1, 0), ("gpt2", 0, 0), ("bert", 1, 1), ("roberta", 1, 1), ("qwen2", 0, 0)])
def test_frames(family: str, before: int, after: int, lm: Make) -> None:
    loaded = lm(family)
    assert tuple(map(len, frame(loaded.tokenizer))) == (before, after)
    assert encode(loaded.tokenizer, ["a"], context=9, bos=False) == pieces(loaded.tokenizer, ["a"])


def test_an_empty_text_is_one_token_at_least(lm: Make) -> None:
    for family in ("llama", "gpt2", "qwen2", "bert"):
        assert all(encode(lm(family).tokenizer, ["", "a"], context=9))
    assert encode(lm("gpt2").tokenizer, [""], context=9, bos=False) == [[]]


def test_cutting(lm: Make) -> None:
    row = list(range(10))
    assert cut(row, 4, "tail") == [0, 1, 2, 3]
    assert cut(row, 4, "head") == [6, 7, 8, 9]
    assert cut(row, 5, "middle") == [0, 1, 2, 8, 9]
    assert cut(row, 1, "middle") == [0]
    assert cut(row, 10, "head") == row
    tokenizer = lm("bert").tokenizer
    whole = encode(tokenizer, [TEXTS[0]], context=100)[0]
    for part in ("tail", "head", "middle"):
        short = encode(tokenizer, [TEXTS[0]], context=8, truncate=part)[0]
        assert len(short) == 8
        assert (short[0], short[-1]) == (whole[0], whole[-1])
    with pytest.raises(UsageError, match="context"):
        encode(tokenizer, ["a"], context=2)


def test_an_endless_text_is_cut_before_it_is_read(lm: Make) -> None:
    tokenizer = lm("llama").tokenizer
    long = "file " * 200_000
    assert encode(tokenizer, [long], context=16)[0] == encode(tokenizer, [long[:1000]], context=16)[0]
    sparse = " " * 5000 + "file"
    assert pieces(tokenizer, [sparse], 2) == [row[:] for row in pieces(tokenizer, [sparse])] or len(pieces(tokenizer, [sparse], 2)[0]) >= 2


def test_lone_surrogates_and_odd_bytes(lm: Make) -> None:
    rows = encode(lm().tokenizer, ["a\ud800b", "\udfff", "a\0b", "😀é"], context=30)
    assert [len(row) > 1 for row in rows] == [True] * 4
    assert encode(lm().tokenizer, ["a\ud800b"], context=30) == encode(lm().tokenizer, ["a�b"], context=30)


def test_like_lengths() -> None:
    lengths = [3, 9, 1, 9, 4, 30]
    batches = list(like_lengths(lengths, 20))
    assert sorted(int(index) for batch in batches for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 20 for batch in batches)
    assert [list(map(int, batch)) for batch in batches] == [[5], [1, 3], [4, 0, 2]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_batches_and_order_change_nothing(family: str, classifier: Make) -> None:
    loaded = classifier(family)
    rows = encode(loaded.tokenizer, TEXTS, context=loaded.context)
    seen: list[tuple[str, int, int]] = []
    together = class_logits(loaded, rows, progress=lambda *call: seen.append(call))
    alone = np.concatenate([class_logits(loaded, [row]) for row in rows])
    backwards = class_logits(loaded, rows[::-1], batch_tokens=16)[::-1]
    assert together.shape == (5, 3)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, backwards, atol=1e-6)
    assert seen[-1] == ("classify", 5, 5)
    padded = loaded.tokenizer.pad([{"input_ids": row} for row in rows], return_tensors="pt")
    with torch.inference_mode():
        plain = loaded.model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits.numpy()
    np.testing.assert_allclose(together, plain, atol=1e-6)


def test_modes_are_put_back(classifier: Make) -> None:
    loaded = classifier("llama")
    loaded.model.train()
    class_logits(loaded, [[5, 6]])
    assert loaded.model.training
    loaded.model.eval()


def test_half_precision_is_close_and_not_equal(classifier: Make) -> None:
    loaded = classifier("llama")
    rows = encode(loaded.tokenizer, TEXTS, context=loaded.context)
    full, half = (class_logits(loaded, rows, precision=precision) for precision in ("float32", "bf16"))
    np.testing.assert_allclose(full, half, atol=0.02)
    assert not np.array_equal(full, half)
    with pytest.raises(UsageError, match="precision"):
        class_logits(loaded, rows, precision="int8")


def test_likelihoods_are_the_models_own(lm: Make) -> None:
    loaded = lm("llama")
    rows = encode(loaded.tokenizer, TEXTS, context=loaded.context)
    sums, counts = lm_nll(loaded, rows, batch_tokens=40)
    for row, total, count in zip(rows, sums, counts, strict=True):
        assert count == len(row) - 1
        if count:
            with torch.inference_mode():
                loss = loaded.model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss
            np.testing.assert_allclose(total, float(loss) * count, rtol=1e-5)
    after, number = lm_nll(loaded, rows, starts=[3] * 5)
    assert list(number) == [max(0, len(row) - 3) for row in rows]
    assert (after <= sums + 1e-9).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_label_scores_are_likelihoods_after_the_prompt(family: str, lm: Make) -> None:
    loaded = lm(family)
    labels = ("benign", "a", "ransomware of a kind")
    prompts = [*TEXTS, "ends in a space "]
    scores = label_logprobs(loaded, prompts, labels, batch_tokens=200)
    means = label_logprobs(loaded, prompts, labels, normalise=True)
    for column, label in enumerate(labels):
        answer = pieces(loaded.tokenizer, [" " + label])[0]
        rows = [row + answer for row in encode(loaded.tokenizer, [prompt.rstrip() for prompt in prompts], context=loaded.context - 40)]
        sums, counts = lm_nll(loaded, rows, starts=[len(row) - len(answer) for row in rows])
        assert set(counts) == {len(answer)}
        np.testing.assert_allclose(scores[:, column], -sums, rtol=1e-4)
        np.testing.assert_allclose(means[:, column] * len(answer), -sums, rtol=1e-4)


def test_wrong_models_are_told(lm: Make, classifier: Make) -> None:
    with pytest.raises(UsageError, match="classifier"):
        class_logits(lm("llama"), [[5]])
    for loaded in (lm("bert"), classifier("llama")):
        with pytest.raises(UsageError, match="causal language model"):
            lm_nll(loaded, [[5, 6]])
        with pytest.raises(UsageError, match="causal language model"):
            label_logprobs(loaded, ["a"], ["b"])
    with pytest.raises(UsageError, match="context"):
        class_logits(classifier("llama"), [[5] * 129])
