"""knowhow.json: the parts of a specialist's manifest, each checked when it is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """Every part of a manifest: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskPart(Section):
    kind: Literal["classify", "regress", "generate", "score"]
    labels: tuple[str, ...] = ()
    many: bool = False
    metric: str
    instruction: str = ""


class BasePart(Section):
    source: str
    revision: str | None = None
    dtype: str
    adapter: str | None = None
    parent: str | None = None
    sha256: str = ""


class IntervalPart(Section):
    value: Finite
    low: Finite
    high: Finite
    n: int


class ResultPart(Section):
    value: Finite
    low: Finite
    high: Finite
    n: int
    task: str
    metric: str
    slice: str
    model: str
    paired: dict[str, IntervalPart] = {}
    cost: dict[str, Finite] = {}


class CalibrationPart(Section):
    """`false_positives`: for each label how often rows without it are given it (rate, low, high, n), on validation."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    false_positives: tuple[dict[str, Finite], ...] | None = None
    thresholds: tuple[Finite, ...] | None = None
    abstention: dict[str, Any] | None = None


class InputPart(Section):
    """How inputs are cut: the most tokens (None: the model's context) and which part goes. `form`: how an answer is read off the model: by its head,
    or by the likelihood of the input after each label's token (a channel)."""

    context: int | None = None
    truncate: Literal["tail", "head", "middle"] = "tail"
    form: Literal["head", "channel"] = "head"


class Manifest(Section):
    """knowhow.json. `digest` is the sha256 of the canonical JSON of everything else, so a change anywhere shows."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)]
    knowhow: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    task: TaskPart
    base: BasePart
    parent: str | None = None
    adapter: bool
    results: tuple[ResultPart, ...] = ()
    findings: tuple[dict[str, Any], ...] = ()
    predictions: tuple[dict[str, Any], ...] = ()
    limits: tuple[str, ...] = ()
    licence: str
    licences: dict[str, Any] = {}
    calibration: CalibrationPart = CalibrationPart()
    input: InputPart = InputPart()
    vocabulary: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    files: dict[str, Digest]
    digest: Digest

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels
