"""The recipe of a specialist: task, base, data, phases, measures."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from knowhow.recipe.phase import PhaseSpec
from knowhow.recipe.words import SCHEMA_VERSION, Count, Fraction, Length, Name, Positive, Section


class TaskSpec(Section):
    """What is asked of the specialist."""

    kind: Literal["classify", "regress", "generate", "score"] = Field(
        "classify", description="one label or many (classify), a number (regress), a text (generate), a judgement on a pair of texts (score)"
    )
    labels: list[str] | None = Field(None, description="the classes; left out, they are read from the training rows")
    many: bool = Field(False, description="true: an example may carry several labels")
    metric: str | None = Field(None, description="what decides; left out: macro_f1 (classes), spearman (numbers), exact_match (texts)")
    instruction: str = Field("", description="a sentence put before every input (generate, zero-shot baselines)")

    @model_validator(mode="after")
    def _each_label_once(self) -> TaskSpec:
        labels = self.labels or []
        for place, label in enumerate(labels):
            if label in labels[:place] or not label.strip():
                raise ValueError(f"the label {label!r} {'twice' if label.strip() else 'which is blank'}; name each label once")
        return self


class VocabularySpec(Section):
    """One token per domain word: an API name that costs six tokens is six times as slow and hard to see."""

    extend: bool = Field(False, description="add domain words to the tokenizer; new rows start from the mean of their pieces")
    pattern: str | list[str] = Field(r"\S+", description="regular expression of a word, or several: a pattern with a space joins neighbours into one token")
    min_count: Count = Field(5, description="a word must occur in at least so many training rows")
    max_new: Count = Field(2000, description="at most so many new words")

    @model_validator(mode="after")
    def _patterns_can_be_read(self) -> VocabularySpec:
        for pattern in [self.pattern] if isinstance(self.pattern, str) else self.pattern:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                fix = "put a backslash before brackets that stand for themselves"
                raise ValueError(f"the pattern {pattern!r} is no regular expression ({error}); {fix}") from error
        return self


class BaseSpec(Section):
    """The model to start from."""

    model: str = Field("seedling", description="`seedling` (embedded), `minilm`, a folder, or a hub id like org/name")
    revision: str | None = Field(None, description="hub commit; left out: the newest, whose commit is written into the run")
    context: Length | None = Field(None, description="longest input in tokens; left out: what the model was trained with")
    truncate: Literal["tail", "head", "middle"] = Field("tail", description="what is cut from inputs that are too long")
    dropout: Fraction = Field(0.0, description="dropout in attention and head where the family has it")
    vocabulary: VocabularySpec = Field(default_factory=VocabularySpec)


class GenerateSpec(Section):
    """Rows made by a domain's generator (seeds of the parts are disjoint)."""

    domain: Name = Field(description="a domain, e.g. malware")
    options: dict[str, Any] = Field(default_factory=dict, description="the domain's own options")
    train: Count = 4000
    valid: Count = 500
    test: Count = 1000
    seed: int | None = Field(None, ge=0, description="left out: made from the recipe's seed; each part has its own")


class FieldsSpec(Section):
    """Which column is what; left out, they are recognised from their names and shown."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    slice: str | None = None
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    messages: str | None = None
    id: str | None = None


class SplitSpec(Section):
    """How rows are parted when the recipe names no files for it."""

    by: Literal["auto", "random", "group", "time"] = Field(
        "auto", description="auto: by time where there is a time, by group where there is a group; always by duplicate cluster unless `random`"
    )
    valid: Fraction = 0.1
    test: Fraction = 0.1


class SynthesizeSpec(Section):
    """Rows added to scarce training data; every one is deduplicated and checked against validation and test."""

    templates: list[str] = Field(default_factory=list, description="texts with {slots}")
    slots: dict[str, list[str]] = Field(default_factory=dict)
    label: str | None = Field(None, description="label of the rows made from templates")
    teacher_url: str | None = Field(None, description="an OpenAI-compatible endpoint; asked only when set")
    teacher_model: str | None = None
    teacher_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    rows: Count = 200


class DataSpec(Section):
    """Where the rows are: files (`train`, and `valid`/`test` or a split), a domain's reader, or a generator."""

    train: str | None = Field(None, description="file, folder or hub id")
    valid: str | None = None
    test: str | None = None
    domain: Name | None = Field(None, description="read the files with this domain's reader")
    options: dict[str, Any] = Field(default_factory=dict, description="the reader's own options")
    generate: GenerateSpec | None = None
    fields: FieldsSpec = Field(default_factory=FieldsSpec)
    encoding: str = Field("utf-8", description="of text files, e.g. latin-1")
    split: SplitSpec = Field(default_factory=SplitSpec)
    synthesize: SynthesizeSpec | None = None
    limit: Count | None = Field(None, description="use only so many training rows (a quick try)")
    audit: bool = Field(True, description="audit the rows (duplicates, leakage, conflicts, noise)")
    canaries: int = Field(0, ge=0, le=100, description="plant so many canaries in training and measure whether they can be read back")
    licence: str | None = Field(None, description="the data's licence, for the compatibility note and the card")

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if (self.train is None) == (self.generate is None):
            got = "neither `train` nor `generate`" if self.train is None else "both `train` and `generate`"
            raise ValueError(f"{got}; give either `train` (a file, folder or hub id) or `generate` (a domain's generator)")
        return self


class ReadoutSpec(Section):
    candidates: list[Literal["tuned", "frozen", "tuned+ngrams", "frozen+ngrams"]] = Field(
        ["tuned"], min_length=1, description="what answers may be read off: the tuned model, the frozen base under a linear head, n-grams beside "
        "either; of several, validation picks one (labels alone)"
    )  # fmt: skip


class EvaluateSpec(Section):
    metrics: list[str] | None = Field(None, description="left out: all that fit the task")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    draws: Count = Field(1000, description="bootstrap draws")
    risk: Fraction = Field(0.05, description="the error rate at which the specialist may answer; above it, it abstains")
    forgetting: bool = Field(True, description="measure the NLL rise on general text (language models)")
    memorisation: bool = True
    baselines: list[Literal["majority", "tfidf-lr", "lightgbm", "base", "retrieval", "all-positive", "presence-only"]] | None = Field(
        None, description="left out: all that fit the task"
    )
    stress: int = Field(100, ge=0, description="test rows that are asked again in each of a domain's harmless rewrites; 0: none")
    few_shot: int = Field(0, ge=0, le=16, description="examples shown to the base model in its baseline")


class ExplainSpec(Section):
    examples: int = Field(20, ge=0, le=1000, description="answers whose evidence is sought and checked by taking it away; 0: none")
    pairs: int = Field(16, ge=4, le=1000, description="`knowhow look RUN circuit`: pairs of a text and its twin")
    sites: list[str] = Field(["layers.{middle}.resid_post"], min_length=1, description="`knowhow look RUN features`: where; {middle} is the middle layer")
    features: Count = Field(1024, description="features of a site")
    feature_steps: Count = Field(500, description="optimizer steps of learning features, all sites at once")
    answers: int = Field(4, ge=1, le=100, description="`knowhow look RUN influence`: answers whose training rows are sought")
    rows: Count = Field(1000, description="training rows that are asked about, drawn from all")


class BudgetSpec(Section):
    """Limits; the estimate is held against them before anything starts."""

    minutes: Positive | None = None
    memory_gb: Positive | None = None
    disk_gb: Positive | None = None
    size_mb: Positive | None = None
    latency_ms: Positive | None = None
    forgetting: Positive | None = Field(None, description="largest NLL rise on general text, nats per token; above it the build ends with exit code 3")
    beat_baselines: bool = Field(False, description="end with exit code 3 when the specialist does not beat every baseline")


class PackageSpec(Section):
    licence: str | None = Field(None, description="licence of the specialist; left out: what base and data allow")
    merge: bool = Field(True, description="LoRA: merge into the weights; false: keep PEFT's adapter format, base untouched")
    label_tokens: bool = Field(False, description="also write the label-token form for engines that load only language models")


class Recipe(Section):
    """A specialist, described: base + data + task."""

    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, description="older versions are migrated when read")
    name: Name
    description: str = ""
    task: TaskSpec = Field(default_factory=TaskSpec)
    base: BaseSpec = Field(default_factory=BaseSpec)
    data: DataSpec
    adapt: list[PhaseSpec] = Field(default_factory=lambda: [PhaseSpec()], min_length=1, description="phases, run in order")
    readout: ReadoutSpec = Field(default_factory=ReadoutSpec)
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec)
    explain: ExplainSpec = Field(default_factory=ExplainSpec)
    package: PackageSpec = Field(default_factory=PackageSpec)
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _phases_fit_the_task(self) -> Recipe:
        """Texts are learnt by sft or lm, numbers by classify, labels by classify or channel; phases of lm may come before."""
        learns = {"generate": ("sft",), "regress": ("classify",), "score": ("classify",), "classify": ("classify", "channel")}[self.task.kind]
        for number, phase in enumerate(self.adapt):
            if phase.objective not in learns and (phase.objective != "lm" or ("classify" in learns and phase is self.adapt[-1])):
                got = f"`adapt.{number}.objective` is {phase.objective} where the task is to {self.task.kind}"
                raise ValueError(f"{got}; set it to {' or '.join(learns)}, or change `task.kind`")
        if self.adapt[-1].objective == "channel" and self.package.label_tokens:
            raise ValueError("`package.label_tokens` with objective channel, which is a language model already; leave it out")
        if self.readout.candidates != ["tuned"]:
            self._readout_fits()
        return self

    def _readout_fits(self) -> None:
        asked = ", ".join(self.readout.candidates)
        if self.task.kind != "classify" or self.adapt[-1].objective != "classify":
            raise ValueError(f"`readout.candidates` {asked} where labels do not come from a classifying head; leave it out")
        if self.package.label_tokens and "ngrams" in asked:
            raise ValueError("`package.label_tokens` with n-grams, which no language model can hold; leave one of them out")
        if self.adapt[-1].method == "lora" and not self.package.merge:
            raise ValueError("`package.merge: false` with `readout.candidates`, which may pick a whole model; merge, or leave the candidates out")
