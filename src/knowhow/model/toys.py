"""A tiny random twin of every supported family: a real Hugging Face folder made in memory, so that no test needs a hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from knowhow.errors import UsageError
from knowhow.model.quiet import quiet

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
_SQUARE = {**_LLAMA, "num_key_value_heads": 4}
_BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": True},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {**_LLAMA, "sliding_window": 64},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": 64},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "sliding_window": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": _BERT,
    "phi": _SQUARE,
    "phi3": _LLAMA,
    "olmo": _SQUARE,
    "olmo2": _LLAMA,
    "smollm3": _LLAMA,
    "bert": _BERT,
    "roberta": {**_BERT, "max_position_embeddings": 130},
    "modernbert": {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 32},
}
ENCODERS = frozenset({"bert", "roberta", "modernbert"})
_NO_BOS = frozenset({"gpt2", "gpt_neox", "qwen2", "qwen3", "phi", "olmo", "olmo2"})
_LINES = (
    "The expert looked at the report and wrote down what it had done.",
    "open file, read file, write file, close file; send the answer over the network.",
    "What is the label? The label is one of benign, rat or ransomware.",
    "0 1 2 3 4 5 6 7 8 9 and the quick brown fox jumps over the lazy dog.",
)


def twin(family: str, folder: Path, *, vocab: int = 320, seed: int = 0, lines: tuple[str, ...] = _LINES) -> Path:
    """Writes a model folder (about 20k random parameters, float32) of `family`, its byte-level BPE trained on `lines`. Same arguments, same bytes.

    `vocab`: the most entries of the tokenizer and the rows of the embedding, at least 300. Returns `folder`."""
    if family not in FAMILIES:
        raise UsageError(f"family {family!r}", allowed=", ".join(FAMILIES))
    if vocab < 300:
        raise UsageError(f"vocab {vocab}", allowed="at least 300 (256 bytes and the special tokens)")
    tokenizer = tokenizer_for(family, vocab, lines)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if family in ENCODERS:
        ids |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    config = AutoConfig.for_model(family, vocab_size=vocab, **ids, **FAMILIES[family])
    maker = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = maker.from_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def tokenizer_for(family: str, vocab: int, lines: tuple[str, ...] = _LINES) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens that `family` has: [CLS] and [SEP] round an encoder's text, a BOS before some decoders'."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = _specials(family)
    special = list(dict.fromkeys(names.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2, show_progress=False
    )
    backend.train_from_iterator(lines, trainer)
    start, end = names.get("cls_token") or names.get("bos_token"), names.get("sep_token")
    if family not in _NO_BOS:
        pattern = f"{start} $A {end}" if family in ENCODERS else f"{start} $A"
        tokens = [(token, backend.token_to_id(token)) for token in special if token in pattern]
        backend.post_processor = processors.TemplateProcessing(single=pattern, pair=f"{pattern} $B", special_tokens=tokens)
    limit = FAMILIES[family].get("n_positions") or FAMILIES[family]["max_position_embeddings"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128 if family in ENCODERS else limit, **names)


def _specials(family: str) -> dict[str, str]:
    if family == "roberta":
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        return {**names, "unk_token": "<unk>", "mask_token": "<mask>"}
    if family in ENCODERS:
        return {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if family in _NO_BOS:
        return {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"} if family == "gpt2" else {"eos_token": "<|endoftext|>"}
    return {"bos_token": "<s>", "eos_token": "</s>"}
