"""What a base has learnt: its validation losses beside n-gram models, and its card."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import LlamaForCausalLM

from knowhow.data.batch import IGNORE
from knowhow.data.windows import even_windows, first_documents
from knowhow.maths import ngram
from knowhow.observe.life import mean_loss
from knowhow.recipe import PretrainRecipe
from knowhow.types import Batch

Streams = dict[str, np.ndarray]

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [knowhow, base-model]
---

# {name}

A small Llama-type language model: {layers} layers, d {d_model}, {heads} heads, feed-forward {d_ff}, tied embeddings, byte-level BPE of {vocabulary:,} tokens,
context {context}. Pretrained on {tokens:,} tokens of {corpora}, and nothing else. English novels are in the public domain (1840–1920); traces are generated,
without labels, from seeds used nowhere else. It is a base to start specialists from: it knows old-fashioned English
and the shape of program traces, and no facts.

Validation loss in nats per token, on text that was never trained on:

| corpus | training tokens | this model | 5-gram | unigram | untrained |
|---|---|---|---|---|---|
{rows}

The 5-gram (interpolated Kneser–Ney) and the unigram saw as many tokens of the same corpus. `training.jsonl` is the training log; `observations.jsonl` holds
looks at log-spaced steps: losses, spectra of the weights, roles of the heads. To make it again: `knowhow pretrain recipes/{name}.yaml`.
"""


def looks(recipe: PretrainRecipe, name: str, stream: np.ndarray, end: int, count: int) -> list[Batch]:
    """Validation rows of a corpus, of the kind that it is trained on: `count` windows, or as many tokens in documents."""
    sequence = recipe.long_sequence or recipe.sequence
    if name in recipe.corpora and recipe.corpora[name].documents:
        return first_documents(stream, end, recipe.context, count * sequence)
    return even_windows(stream, sequence, count)


def against_ngrams(recipe: PretrainRecipe, streams: Streams, valid: Streams, model: LlamaForCausalLM, before: LlamaForCausalLM) -> dict[str, Any]:
    """Validation loss per corpus beside a unigram, a 5-gram (Kneser–Ney) trained on as many tokens of the same corpus, and the model `before` training."""
    total = sum(spec.share for spec in recipe.corpora.values())
    found = {}
    for name, stream in valid.items():
        batches = looks(recipe, name, stream, model.config.eos_token_id, 64)
        targets = [row[row != IGNORE].numpy() for batch in batches for row in batch.targets_BT]
        seen = np.asarray(streams[name][: int(recipe.tokens * recipe.corpora[name].share / total)])
        grams = ngram.fit(seen, recipe.vocabulary)
        found[name] = {
            "model": mean_loss(model, batches, recipe.precision),
            "untrained": mean_loss(before, batches[:2], recipe.precision),
            "unigram": float(ngram.unigram_losses(seen, np.concatenate(targets), recipe.vocabulary).mean()),
            "five_gram": float(np.concatenate([ngram.losses(grams, row) for row in targets]).mean()),
            "validation_tokens": sum(map(len, targets)),
            "training_tokens": len(seen),
        }
    return found


def card(recipe: PretrainRecipe, streams: Streams, found: dict[str, Any]) -> str:
    """The base's model card."""
    columns = ("model", "five_gram", "unigram", "untrained")
    rows = [f"| {name} | {f['training_tokens']:,} | {' | '.join(f'{f[column]:.3f}' for column in columns)} |" for name, f in found.items()]
    return CARD.format(
        name=recipe.name, tokens=recipe.tokens, d_model=recipe.d_model, layers=recipe.layers, heads=recipe.heads, d_ff=recipe.d_ff,
        vocabulary=recipe.vocabulary, context=recipe.context, corpora=", ".join(streams), rows="\n".join(rows),
    )  # fmt: skip
