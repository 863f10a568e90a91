"""The recipe of a base model: `knowhow pretrain`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from knowhow.recipe.specialist import GenerateSpec
from knowhow.recipe.words import SCHEMA_VERSION, Amount, Count, Fraction, Name, Positive, Section


class CorpusSpec(Section):
    """One stream of text for pretraining."""

    files: list[str] = Field(default_factory=list, description="JSONL files with a `text` field")
    generate: GenerateSpec | None = None
    documents: bool = Field(False, description="each document is a row of its own, none sees another; false: one stream, cut into windows")
    share: Positive = Field(1.0, description="share of the training tokens")


class PretrainRecipe(Section):
    """A base model made from text: `knowhow pretrain`."""

    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    name: Name
    vocabulary: Count = 8192
    d_model: Count = 256
    layers: Count = 6
    heads: Count = 4
    kv_heads: Count = 4
    d_ff: Count = 640
    context: Count = 1024
    embedding_std: Positive = Field(0.02, description="standard deviation of the embeddings at the start (they are the output layer too)")
    corpora: dict[str, CorpusSpec]
    valid: dict[str, CorpusSpec]
    tokens: Count = Field(description="training tokens")
    batch_tokens: Count = 16384
    microbatch_tokens: Count = 8192
    sequence: Count = Field(512, description="tokens of one training window")
    long_sequence: Count | None = Field(None, description="tokens of a window in the last steps (longer ones cost more: attention)")
    long_share: Fraction = Field(0.15, description="share of the steps with long windows")
    lr: Positive = 2e-3
    muon_lr: Positive | None = Field(0.02, description="learning rate of the hidden matrices under Muon; null: AdamW for all")
    weight_decay: Amount = 0.1
    warmup: Fraction = 0.02
    decay: Fraction = Field(0.3, description="share of the steps over which the rate falls to zero (WSD)")
    clip: Positive = 1.0
    compile: bool = True
    precision: Literal["auto", "float32", "bf16"] = "auto"
    checkpoint_every: Count = 100
    seed: int = Field(0, ge=0, lt=2**31)
