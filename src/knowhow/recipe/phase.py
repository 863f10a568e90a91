"""One phase of adaptation, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from knowhow.recipe.words import Amount, Count, Fraction, Positive, Section

PLAIN_RATE, PLAIN_BATCH, PLAIN_RANK = 1e-3, 4096, 8
"""Where nobody said anything else, and what stands in for `auto` until there is a plan."""


class LoraSpec(Section):
    rank: Count | Literal["auto"] = Field(PLAIN_RANK, description="auto: a rank for each matrix, planned from the base's first gradient")
    parameters: Count | None = Field(None, description="rank auto: trainable parameters of the adapter; left out: as many as rank 8 everywhere")
    alpha: Positive = 16
    targets: Literal["auto", "attn", "mlp", "all"] = "auto"


class TeacherSpec(Section):
    """Distillation from classical baselines: each row's target is partly what baselines say that never saw it nor its near copies."""

    baselines: list[Literal["tfidf-lr", "lightgbm"]] = Field(["tfidf-lr", "lightgbm"], min_length=1, description="their mean is the teacher")
    share: Fraction = Field(0.5, description="share of the target that is the teacher's; the rest is the row's own label")
    folds: int = Field(5, ge=2, le=20, description="parts of the rows; each is answered by baselines fitted on the others")


_OF_CLASSIFY = ("teacher", "pooling", "replication", "drop_tokens", "label_smoothing", "class_weights", "head_lr")


class PhaseSpec(Section):
    """One phase of the loop. Give `steps` or `epochs`; `minutes` is turned into steps once, from a measured speed, and sealed."""

    objective: Literal["classify", "channel", "sft", "lm"] = Field(
        "classify", description="channel: labels by the likelihood of the text given each label, in place of a classifying head (causal base)"
    )
    method: Literal["full", "lora"] = "full"
    lora: LoraSpec = Field(default_factory=LoraSpec)
    lr: Positive | Annotated[list[Positive], Field(min_length=1)] | Literal["auto"] = Field(
        PLAIN_RATE, description="learning rate; a list is swept and chosen on validation; auto: the best of a few pilots of 20 steps"
    )
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: Fraction = Field(0.05, description="share of the steps")
    weight_decay: Amount = 0.05
    clip: Positive = Field(1.0, description="gradient norm above which gradients are scaled down")
    steps: Count | None = None
    epochs: Positive | None = None
    minutes: Positive | None = None
    batch_tokens: Count | Literal["auto"] = Field(PLAIN_BATCH, description="tokens of one optimizer step; auto: about the noise scale of the first gradients")
    microbatch_tokens: Count = Field(4096, description="tokens of one forward pass; smaller uses less memory")
    evaluate_every: Count | None = Field(None, description="steps between validations; left out: ten times in the phase")
    patience: Count | None = Field(None, description="stop after so many validations without a better one; the best weights are kept")
    checkpoint_every: Count = Field(50, description="steps between checkpoints: at most so many are redone after a kill")
    keep: int = Field(0, ge=0, le=200, description="weights kept at so many log-spaced steps: what `knowhow look RUN influence` reads training from")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 autocast where the machine has it")
    compile: bool = Field(False, description="torch.compile: about a minute to warm up, then faster")
    head_lr: Positive | None = Field(None, description="learning rate of a fresh head; left out: the same as lr")
    muon_lr: Positive | None = Field(None, description="learning rate of the hidden matrices under Muon, e.g. 5e-3; left out: AdamW with lr for all")
    label_smoothing: Fraction = 0.0
    drop_tokens: Fraction = Field(0.0, description="share of an input's tokens left out at random at each visit (classify): fewer rows learnt by heart")
    replication: Fraction = Field(
        0.0, description="share of the loss taken at every position from which a label's evidence is complete, the rest at the last (classify, causal base)"
    )
    pooling: Literal["token", "mean"] = Field(
        "token", description="what the head reads (classify): the model's own token (the last; an encoder's first), or the mean over all, by one more layer"
    )
    average: Fraction = Field(0.0, description="decay of a running mean of the weights; the mean is what is validated and kept (0: off)")
    teacher: TeacherSpec | None = None
    weights: Literal["rows", "sqrt", "distinct"] = Field("rows", description="how copies of a row count in the loss")
    class_weights: Literal["none", "sqrt", "balanced"] = "none"

    @model_validator(mode="after")
    def _keys_fit(self) -> PhaseSpec:
        said = [name for name, value in (("steps", self.steps), ("epochs", self.epochs), ("minutes", self.minutes)) if value is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} at once; give one of steps, epochs, minutes")
        only = [name for name, value in self if name in _OF_CLASSIFY and value != type(self).model_fields[name].default]
        if self.objective != "classify" and only:
            raise ValueError(f"`{'`, `'.join(only)}` {'is' if len(only) == 1 else 'are'} for objective classify, not for {self.objective}; leave it out")
        if self.objective == "channel" and self.method == "lora":
            raise ValueError("`method: lora` with objective channel, which trains tokens of its own; use method full")
        if self.pooling == "mean" and self.method == "lora":
            raise ValueError("`method: lora` with `pooling: mean`, which adds a layer that the base does not have; use method full")
        return self
