"""What both sides train on: rows of lognormal lengths and a small Llama, in a folder that each process reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowhow.model.toys import tokenizer_for

SHORTEST, LONGEST, MEDIAN, SPREAD = 16, 512, 120, 0.8
VOCABULARY, D, LAYERS, FEED_FORWARD = 8192, 256, 6, 704


def write_rows(path: Path, count: int, *, completions: bool, seed: int = 0) -> int:
    """`count` rows of Zipf tokens as arrays tokens, offsets, supervised. `completions`: 30 to 70% of a row is its prompt, which is not a target.

    Returns the supervised tokens of one epoch (the first token of a row is nobody's target)."""
    random = np.random.Generator(np.random.PCG64(seed))
    lengths = np.clip(np.exp(random.normal(np.log(MEDIAN), SPREAD, count)).round().astype(int), SHORTEST, LONGEST)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = (random.zipf(1.2, offsets[-1]) % (VOCABULARY - 8) + 8).astype(np.int32)
    prompts = (lengths * random.uniform(0.3, 0.7, count)).astype(int) if completions else np.ones(count, int)
    supervised = np.ones(offsets[-1], bool)
    for start, prompt in zip(offsets[:-1], prompts):
        supervised[start : start + prompt] = False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, tokens=tokens, offsets=offsets, supervised=supervised)
    return int(supervised.sum())


def llama(*, d: int = D, layers: int = LAYERS, feed_forward: int = FEED_FORWARD, context: int = 1024) -> LlamaForCausalLM:
    """Random float32 weights, the same at every call; head size 64, tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=d, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=d // 64,
        num_key_value_heads=d // 64, max_position_embeddings=context, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def write_model(folder: Path) -> int:
    """The 7M model and a tokenizer that has the special tokens a trainer asks for. Returns its parameters."""
    model = llama()
    model.save_pretrained(folder)
    tokenizer_for("llama", 320).save_pretrained(folder)
    return model.num_parameters()
