"""What all sides load: models with random weights in folders, two rows of tokens each, and the names under which sides report values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from knowhow.files import write_json
from knowhow.model.toys import tokenizer_for

KINDS = ("resid_pre", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "resid_mid", "mlp.out", "resid_post")
"""Sites whose values all sides report."""
VOCABULARY, NOISE = 320, 0.1


@dataclass(frozen=True, slots=True)
class Patch:
    """Where the two single patches go: the stream before `layer` at `position`, and z of `head` in `layer` at all positions."""

    layer: int
    position: int
    head: int


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    family: str
    layers: int
    tokens: int
    patch: Patch
    small: bool = False


PARITY = (Shape("gpt2, tiny", "gpt2", 3, 9, Patch(1, 4, 2), True), Shape("llama with 4 / 2 heads, tiny", "llama", 3, 9, Patch(1, 4, 2), True))
SPEED = (Shape("12x16", "gpt2", 12, 16, Patch(5, 7, 3)), Shape("4x128", "gpt2", 4, 128, Patch(2, 60, 3)))
TAPS = Shape("12x128", "gpt2", 12, 128, Patch(5, 7, 3))


def write(shape: Shape, folder: Path) -> dict[str, Any]:
    """A model and its two rows (base, source: T tokens) in `folder`; what a side is asked with."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = _model(shape).eval()
    if shape.small:
        _disturb(model)
    model.save_pretrained(folder)
    tokenizer_for(shape.family, VOCABULARY).save_pretrained(folder)
    random = np.random.Generator(np.random.PCG64(1))
    base, source = random.integers(8, VOCABULARY, (2, shape.tokens)).tolist()
    asked = {"model": str(folder), "family": shape.family, "base": base, "source": source, "pair": [17, 42], "patch": asdict(shape.patch), "kinds": KINDS}
    write_json(folder / "asked.json", asked)
    return asked


def _model(shape: Shape) -> PreTrainedModel:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if shape.family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=shape.layers, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, **ends,
            )
        )  # fmt: skip
    if not shape.small:
        return GPT2LMHeadModel(GPT2Config(n_layer=shape.layers))
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=shape.layers, n_head=4, initializer_range=0.2, **ends))


@torch.no_grad()
def _disturb(model: PreTrainedModel) -> None:
    """Biases and norms off their zeros and ones, so that a side that drops one is seen."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(NOISE * torch.randn_like(parameter))


def largest(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest difference by kind of value, over layers. Raises AssertionError when a side lacks a value, or has another shape."""
    assert set(ours) == set(theirs), f"values of one side only: {sorted(set(ours) ^ set(theirs))}"
    worst: dict[str, float] = {}
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, f"{name}: {value.shape} and {theirs[name].shape}"
        kind = name.split(".", 2)[2] if name.startswith("layers.") else name
        worst[kind] = max(worst.get(kind, 0.0), float(np.abs(value.astype(np.float64) - theirs[name]).max()))
    return worst
