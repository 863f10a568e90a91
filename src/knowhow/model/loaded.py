"""A model ready to use: weights, tokenizer and what is known about them."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch

from knowhow.model.ngrams import NGrams
from knowhow.types import ModelRef

_INTEGERS = "torch.ao.nn.quantized"
Kind = Literal["causal", "encoder"]
Head = Literal["lm", "classifier", "regressor", "channel"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """`model`: a transformers (or PEFT) module in eval mode; `tokenizer`: a fast tokenizer with a pad token.

    `context`: the most tokens the model takes; `labels`: in index order, empty without a classifying head;
    `frozen`: for an adapter, the digest of the base weights that it must leave untouched; `ngrams`: what answers beside the model, its logits added to
    the model's (a classifier's alone)."""

    model: torch.nn.Module
    tokenizer: Any
    kind: Kind
    head: Head
    ref: ModelRef
    context: int
    labels: tuple[str, ...] = ()
    frozen: str = ""
    ngrams: NGrams | None = None


def digest_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def has_gradients(model: torch.nn.Module) -> bool:
    """Whether gradients pass through every part: integer kernels have none (PyTorch would warn and give wrong ones)."""
    return not any(module.__class__.__module__.startswith(_INTEGERS) for module in model.modules())


def without_adapter(model: torch.nn.Module) -> torch.nn.Module:
    """The model that a PEFT wrapper holds; any other as it is."""
    return model.get_base_model() if model.__class__.__name__.startswith("Peft") else model


def cache_name(model: torch.nn.Module) -> str:
    """What this model calls its key-value cache, in a forward pass and in what that returns: `cache` from transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(without_adapter(model).forward).parameters else "past_key_values"


def hidden_matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trained matrices by name, without embeddings and whatever is tied to them, and without the language-model head."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2}
    return {name: p for name, p in trained.items() if id(p) not in tables and "lm_head" not in name and "embed" not in name}


def site_of(name: str) -> str:
    """The place of a weight as reports name it: `layers.3.mlp.up_proj`."""
    return name.removesuffix(".weight").removeprefix("base_model.model.").removeprefix("model.")
