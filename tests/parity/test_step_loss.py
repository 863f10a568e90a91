"""The loss of a step against transformers' own `ForCausalLMLoss`, normalised by the targets of all microbatches as its trainer does (float32, 1e-5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import IGNORE, Rows, TokenBudget, rows
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def marked() -> Rows:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 40, 50)
    prompts = (lengths * random.uniform(0.1, 0.8, 50)).astype(int).clip(1)
    lists = [random.integers(1, 96, length).tolist() for length in lengths]
    return rows(lists, [str(row) for row in range(50)], supervised=[[at >= prompt for at in range(length)] for prompt, length in zip(prompts, lengths)])


def theirs(model: LlamaForCausalLM, micro: list, source: Rows) -> torch.Tensor:
    """Labels as transformers wants them (not shifted), each microbatch divided by the targets of the whole step."""
    labelled = []
    for batch in micro:
        labels = torch.full_like(batch.tokens_BT, IGNORE)
        for at, name in enumerate(batch.ids):
            here = slice(source.offsets[int(name)], source.offsets[int(name) + 1])
            row = torch.from_numpy(np.where(source.supervised[here], source.tokens[here], IGNORE))
            labels[at, : len(row)] = row
        labelled.append(labels)
    count = sum(int((labels[:, 1:] != IGNORE).sum()) for labels in labelled)
    parts = [
        model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long(), labels=labels, num_items_in_batch=count).loss
        for batch, labels in zip(micro, labelled)
    ]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_twenty_steps_are_those_of_transformers_loss_and_torch_s_optimizer(clip: float) -> None:
    source = marked()
    stream = TokenBudget(source, 256, 96, pad=0, seed=0, language_model=True)
    ours, other = llama(), llama().train()
    optimizer = torch.optim.AdamW(other.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    loop = train(ours, NextToken("sft"), stream, Optim(ours, OptimSpec(3e-3)), lambda step: 1.0, LoopSpec(20, clip=clip, precision="float32"))
    for info in loop:
        assert len(info.batches) > 1
        optimizer.zero_grad()
        loss = theirs(other, list(info.batches), source)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
        optimizer.step()
        assert info.loss == pytest.approx(float(loss.detach()), abs=1e-5)
        assert info.grad_norm == pytest.approx(float(norm), rel=1e-4)
    # Adam divides by gradients that may be nearly zero, so a single weight says little
    mine, reference = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (ours, other))
    assert float((mine - reference).norm() / reference.norm()) < 1e-5
