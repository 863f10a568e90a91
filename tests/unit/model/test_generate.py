"""Generation: reproducible by seed, whatever the batches; filters keep what they say; stops and limits hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.model.generate import Sampling, Writer, end_ids, filtered, generate
from knowhow.model.load import Loaded
from knowhow.protocols import Generator

Make = Callable[..., Loaded]
PROMPTS = ("The expert looked at", "open file", "What is the label? The label is one of benign, rat or ransomware.", "")


@pytest.fixture
def sharp(lm: Make) -> Loaded:
    """Random weights four times as large, so that the next token is not a tie of all."""
    loaded = lm("llama")
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(4)
    return loaded


def test_the_same_seed_gives_the_same_texts_whatever_the_batches(sharp: Loaded) -> None:
    one = generate(sharp, PROMPTS, max_new_tokens=12, temperature=1.0, seed=3)
    two = generate(sharp, PROMPTS, max_new_tokens=12, temperature=1.0, seed=3, batch_tokens=1)
    other = generate(sharp, PROMPTS, max_new_tokens=12, temperature=1.0, seed=4)
    assert one == two
    assert one != other
    same = generate(sharp, [PROMPTS[0]] * 4, max_new_tokens=12, temperature=1.0, seed=3)
    assert len(set(same)) > 1


def test_it_is_a_generator(sharp: Loaded) -> None:
    writer = Writer(sharp, Sampling(top_k=1))
    assert isinstance(writer, Generator)
    greedy = generate(sharp, PROMPTS, max_new_tokens=8)
    assert writer(PROMPTS, max_new_tokens=8, temperature=1.0, seed=0) == greedy


def test_progress_and_mode(sharp: Loaded) -> None:
    seen: list[tuple[str, int, int]] = []
    sharp.model.train()
    generate(sharp, PROMPTS, max_new_tokens=2, progress=lambda *call: seen.append(call))
    assert seen[-1] == ("generate", 4, 4)
    assert sharp.model.training


def test_a_stop_text_ends_the_answer_and_is_not_in_it(sharp: Loaded) -> None:
    whole = generate(sharp, PROMPTS, max_new_tokens=20)
    text = next(text for text in whole if len(text.strip()) > 6 and "�" not in text[2:4])
    stop = text[2:4]
    for short, long in zip(generate(sharp, PROMPTS, max_new_tokens=20, stop=(stop,)), whole, strict=True):
        assert stop not in short
        assert short == (long[: long.index(stop)] if stop in long else long)


def test_end_tokens_end_the_answer(sharp: Loaded) -> None:
    with torch.no_grad():
        hidden = sharp.model.get_input_embeddings().weight
        hidden[sharp.tokenizer.eos_token_id] = hidden.mean(0) * 0
    sharp.model.generation_config.eos_token_id = [1, 7]
    assert end_ids(sharp) == {1, 7}
    row = sharp.tokenizer(PROMPTS[0]).input_ids
    sharp.model.generation_config.eos_token_id = int(sharp.model(input_ids=torch.tensor([row])).logits[0, -1].argmax())
    assert generate(sharp, [PROMPTS[0]], max_new_tokens=5)[0] == sharp.tokenizer.decode([sharp.model.generation_config.eos_token_id], skip_special_tokens=True)


def test_prompts_of_tokens_and_long_prompts(sharp: Loaded) -> None:
    row = sharp.tokenizer(PROMPTS[0]).input_ids
    assert generate(sharp, [row], max_new_tokens=5) == generate(sharp, [PROMPTS[0]], max_new_tokens=5)
    assert len(generate(sharp, ["file " * 500], max_new_tokens=5)) == 1
    for prompts, limit in (([[]], 5), (["a"], 0), (["a"], 128)):
        with pytest.raises(UsageError):
            generate(sharp, prompts, max_new_tokens=limit)


def test_filters() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    kept = {
        Sampling(1.0): [0.5, 0.3, 0.15, 0.05],
        Sampling(1.0, top_k=2): [0.625, 0.375, 0, 0],
        Sampling(1.0, top_p=0.6): [0.625, 0.375, 0, 0],
        Sampling(1.0, top_p=0.01): [1, 0, 0, 0],
        Sampling(1.0, min_p=0.4): [0.625, 0.375, 0, 0],
        Sampling(0.5): [0.6849, 0.2466, 0.0616, 0.0068],
    }
    for way, want in kept.items():
        np.testing.assert_allclose(filtered(logits, way).numpy(), want, atol=1e-4)


def test_draws_follow_the_probabilities(sharp: Loaded) -> None:
    with torch.inference_mode():
        row = sharp.tokenizer("open file").input_ids
        probs = torch.softmax(sharp.model(input_ids=torch.tensor([row])).logits[0, -1] / 2, -1).numpy()
    texts = generate(sharp, ["open file"] * 600, max_new_tokens=1, temperature=2.0, seed=1)
    best = int(probs.argmax())
    share = np.mean([text == sharp.tokenizer.decode([best], skip_special_tokens=True) for text in texts])
    alike = sum(probs[index] for index in range(320) if sharp.tokenizer.decode([index], skip_special_tokens=True) == sharp.tokenizer.decode([best]))
    assert abs(share - alike) < 4 * np.sqrt(alike * (1 - alike) / 600) + 1e-9


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 2}, {"repetition": 0}, {"temperature": float("nan")}])
def test_bad_samplers(bad: dict, sharp: Loaded) -> None:
    with pytest.raises(UsageError):
        generate(sharp, ["a"], max_new_tokens=2, **bad)


def test_only_causal_language_models_write(lm: Make, classifier: Make) -> None:
    for loaded in (lm("bert"), classifier("llama")):
        with pytest.raises(UsageError, match="causal language model"):
            generate(loaded, ["a"], max_new_tokens=2)
