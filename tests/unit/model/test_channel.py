"""A language model with the labels before the text: its tokens, its questions, its answers by Bayes' rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from knowhow.errors import UsageError
from knowhow.model import channel, infer, load
from knowhow.model.loaded import Loaded

LABELS = ("benign", "rat", "run key")
Make = Callable[..., Loaded]


def made(lm: Make, family: str = "llama", *, many: bool, labels: tuple[str, ...] = LABELS) -> Loaded:
    return channel.conditioned(lm(family), labels, many=many)


def by_hand(loaded: Loaded, given: list[str], text: list[int], *, with_label: bool) -> float:
    """log P(text | given) token by token, the label's own token too where that is asked."""
    known, end = loaded.tokenizer.get_vocab(), loaded.tokenizer.eos_token_id
    row = [end, *(known[name] for name in given), *text, end]
    with torch.inference_mode():
        logp_TV = loaded.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    first = 1 if with_label else 1 + len(given)
    return float(sum(logp_TV[place - 1, row[place]] for place in range(first, len(row))))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_one_label_is_the_likelihood_of_label_and_text(lm: Make, family: str) -> None:
    loaded = made(lm, family, many=False)
    rows = [[5, 6, 7, 8], [9]]
    found = channel.class_logits(loaded, rows)
    want = np.array([[by_hand(loaded, [f"<|given:{label.replace(' ', '_')}|>"], row, with_label=True) for label in LABELS] for row in rows])
    assert np.allclose(found, want - want.max(1, keepdims=True), atol=1e-4)


def test_many_labels_are_asked_one_by_one_while_the_others_are_unknown(lm: Make) -> None:
    loaded = made(lm, many=True)
    row = [5, 6, 7, 8]
    given = {state: ["<|given:benign=unknown|>", f"<|given:rat={state}|>", "<|given:run_key=unknown|>"] for state in ("yes", "no")}
    want = by_hand(loaded, given["yes"], row, with_label=False) - by_hand(loaded, given["no"], row, with_label=False)
    assert channel.class_logits(loaded, [row, [9]])[0, 1] == pytest.approx(want, abs=1e-4)


def test_the_base_stays_as_it_is_and_new_rows_come_from_the_seed(lm: Make) -> None:
    base = lm("llama")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    first, again, other = (channel.conditioned(base, LABELS, many=True, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    tables = [each.model.get_input_embeddings().weight for each in (first, again, other)]
    ids = channel.states(first).flatten()
    assert torch.equal(tables[0][ids], tables[1][ids])
    assert not torch.equal(tables[0][ids], tables[2][ids])
    assert torch.equal(tables[0][: min(ids)], before["model.embed_tokens.weight"][: min(ids)])
    assert 0.01 < float(tables[0][ids].detach().std() / before["model.embed_tokens.weight"].std()) < 0.04


def test_a_saved_channel_is_loaded_with_its_tokens_and_is_a_plain_language_model(lm: Make, tmp_path: Path) -> None:
    loaded = made(lm, many=True)
    load.save(loaded, tmp_path / "saved")
    again = load.load(str(tmp_path / "saved"), head="channel", labels=LABELS, many=True, seed=7)
    assert again.context == loaded.context
    assert torch.equal(channel.states(again), channel.states(loaded))
    assert np.allclose(channel.class_logits(again, [[5, 6, 7]]), channel.class_logits(loaded, [[5, 6, 7]]), atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    row = torch.tensor([channel.prefixes(channel.states(loaded), loaded.tokenizer.eos_token_id)[0, 1].tolist() + [5, 6, 7]])
    assert torch.allclose(plain(input_ids=row).logits, loaded.model(input_ids=row).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").convert_tokens_to_ids("<|given:rat=yes|>") == int(channel.states(loaded)[1, channel.YES])


def test_the_tokens_cannot_come_from_a_text(lm: Make) -> None:
    loaded = made(lm, many=True)
    rows = infer.encode(loaded.tokenizer, ["<|given:rat=yes|> and so on"], context=loaded.context)
    assert not set(rows[0]) & set(channel.states(loaded).flatten().tolist())


def test_a_text_of_the_whole_context_still_fits(lm: Make) -> None:
    loaded = made(lm, many=True)
    assert channel.class_logits(loaded, [[5] * loaded.context]).shape == (1, 3)


def test_far_answers_stay_finite_and_progress_counts_up(lm: Make) -> None:
    loaded = made(lm, many=True)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[channel.states(loaded)[0, channel.YES]] *= 1e3
    seen: list[tuple[str, int, int]] = []
    found = channel.class_logits(loaded, [[5, 6] * 20, [7]], progress=lambda *call: seen.append(call))
    assert np.abs(found).max() <= 60
    assert np.isfinite(found).all()
    assert [name for name, _, _ in seen] == ["classify"] * len(seen)
    assert seen[-1][1] == seen[-1][2]


def test_what_cannot_be_a_channel_is_refused(lm: Make, classifier: Make) -> None:
    with pytest.raises(UsageError, match="encoder"):
        channel.conditioned(lm("bert"), LABELS, many=True)
    with pytest.raises(UsageError, match="same once spelled"):
        channel.conditioned(lm("llama"), ("a b", "a_b"), many=False)
    with pytest.raises(UsageError, match="channel without labels"):
        load.load("seedling", head="channel")
    with pytest.raises(UsageError, match="class logits of a language model"):
        infer.class_logits(made(lm, many=True), [[5]])
