"""The nouns that travel between stages: frozen, small, without behaviour of their own.

Shape letters: B batch, T tokens, D model, V vocabulary, C classes, N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

TaskKind = Literal["classify", "regress", "generate", "score"]
Role = Literal["target", "chosen", "rejected", "teacher", "sampled"]
Verdict = Literal["confirmed", "violated", "not applicable"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked. `labels` are in index order; `score` is a pair of texts with a label (`labels` set) or a number (`labels` empty)."""

    kind: TaskKind
    labels: tuple[str, ...] = ()
    many: bool = False
    metric: str = "macro_f1"
    instruction: str = ""

    @property
    def classes(self) -> bool:
        """True when an answer is a label (or a set of labels), not a number or a text."""
        return bool(self.labels)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model came from; `sha256` is the digest of its folder's files, `parent` that of the model it was extended from."""

    source: str
    revision: str | None = None
    dtype: str = "float32"
    adapter: str | None = None
    parent: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    role: Role = "target"
    reward: float | None = None


RUN = "run"
"""The site of facts, measurements and predictions about a run as a whole."""

DISTRACTOR = "distractor"
"""The kind of a span that looks like evidence and is none."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start:end` of the prompt that show `kind` (evidence known to the generator or given by an annotator; or a DISTRACTOR)."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task. `label`: a label, a tuple of labels (many), a number (regress) or None; `weight` counts identical rows."""

    id: str
    prompt: str | tuple[Message, ...]
    completions: tuple[Completion, ...] = ()
    label: str | tuple[str, ...] | float | None = None
    pair: str | None = None
    group: str | None = None
    time: float | None = None
    slice: str | None = None
    origin: str = ""
    weight: float = 1.0
    evidence: tuple[Span, ...] = ()


@dataclass(slots=True)
class Batch:
    """One microbatch, right-padded. `targets_BT` holds next-token targets already shifted (-100 = not supervised);
    `labels` is B (class index), BC (soft or many labels) or B float (regress); `onset_BK`: the position from which the labels hold
    (K = C for many labels, else 1), for losses at every position."""

    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor
    targets_BT: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    onset_BK: torch.Tensor | None = None
    weight_B: torch.Tensor | None = None
    groups: Sequence[str] = ()
    rewards: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None
    ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    site: str
    metric: str
    value: float
    unit: str
    n: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Measurements of the untouched base on this task."""

    measurements: tuple[Measurement, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Prediction:
    law: str
    quantity: str
    site: str
    value: float
    low: float
    high: float
    made_from: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision of the plan: what was chosen, on which predictions, and what the alternatives were predicted to cost."""

    choice: str
    value: Any
    because: tuple[Prediction, ...] = ()
    alternatives: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A prediction beside what was measured: `residual` is what the law's tolerance is stated for (see the law), `inside` the share of the observed
    steps at which its assumptions held, `because` says why not applicable, or what was compared."""

    prediction: Prediction
    measured: float | None
    residual: float | None
    verdict: Verdict
    because: str = ""
    inside: float = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """How one parameter is moved: learning rate and decay of this step, the optimizer's rule (adamw, sgd, muon), momentum (β1 for adamw)."""

    lr: float
    decay: float
    rule: str
    momentum: float = 0.0


@dataclass(slots=True)
class StepInfo:
    """What the loop yields after each optimizer step. `loss` is per supervised unit (token or weighted example); `model` and `batches` are live.

    For observers: `objective` (an Objective) and `units` say what the loss of `batches` is (the objective's loss, summed over them, ÷ units); `clipped` is
    the factor by which the gradients were scaled (known in `after`); `rates` how each trained parameter moves, by name (at steps that someone watches)."""

    step: int
    tokens_seen: int
    loss: float
    metrics: Mapping[str, float]
    lr: float
    grad_norm: float
    model: torch.nn.Module
    batches: Sequence[Batch]
    objective: Any = None
    units: float = 1.0
    clipped: float = 1.0
    rates: Mapping[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """What the observers kept: rows of {step, …}."""

    rows: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval; `n` is the number of independent units (clusters) behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's answers on N examples, whoever made them (baseline, base, specialist).

    `probs_NC`: class probabilities (one label: rows sum to 1; many labels: independent), None for regress and generate;
    `values_N`: numbers (regress); `texts`: generated answers; `nll_N`: negative log-likelihood of the target in nats;
    `thresholds_C`: many labels: the probability from which each label is given (None: one half)."""

    model: str
    ids: tuple[str, ...]
    probs_NC: np.ndarray | None = None
    values_N: np.ndarray | None = None
    texts: tuple[str, ...] | None = None
    nll_N: np.ndarray | None = None
    logits_NC: np.ndarray | None = None
    thresholds_C: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One metric of one model on one slice, with its interval; `paired` maps a baseline's name to the paired difference (this model minus it)."""

    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    slice: str
    model: str
    paired: Mapping[str, Interval] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    samples: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    claim: str
    method: str
    effect: float
    interval: Interval
    control: float
    verdict: Literal["supported", "refuted", "undecided"]
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Specialist:
    """Manifest of a packaged folder (written as knowhow.json)."""

    name: str
    base: ModelRef
    task: Task
    results: tuple[EvalResult, ...]
    findings: tuple[Finding, ...]
    predictions: tuple[Mapping[str, Any], ...]
    limits: tuple[str, ...]
    licence: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Item:
    """A case as text. `ranges` U: characters [start, end) of each unit (a report's events, a document's sentences), in order, parted by `between`
    (nothing where it belongs to the units); `telling` U: whether a unit may matter (None: any may); `places` U: which record of the case each unit is
    (None: its own position)."""

    name: str
    text: str
    ranges: tuple[tuple[int, int], ...]
    telling: tuple[bool, ...] | None = None
    between: str = "\n"
    places: tuple[int, ...] | None = None

    def place(self, unit: int) -> int:
        """The record that a unit is."""
        return unit if self.places is None else self.places[unit]

    def lines(self) -> list[str]:
        """Each unit's text."""
        return [self.text[start:end] for start, end in self.ranges]


@dataclass(frozen=True, slots=True)
class Claim:
    """One label of one case. `units`: evidence, positions in the case; `probability` with everything, `without` the evidence, with it `alone`;
    `flips`: whether the label goes without it; `random_flips`: in what share of random deletions of the same number; `enough`: the fewest units, from the
    strongest on, whose deletion takes the label away, with the probability then (None: not found); `held`: the evidence is confirmed."""

    label: str
    units: tuple[int, ...]
    probability: float
    without: float
    alone: float
    flips: bool
    random_flips: float
    enough: tuple[tuple[int, ...], float] | None
    held: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """`probabilities`: label → calibrated probability; `given`: the labels that hold; `views`: in how many pieces the case was read (0: it has no unit);
    `sure`: sure enough at the risk that the specialist was built for (None: it says nothing about that)."""

    item: Item
    probabilities: Mapping[str, float]
    given: tuple[str, ...]
    views: int
    claims: tuple[Claim, ...] = ()
    sure: bool | None = None


@dataclass(frozen=True, slots=True)
class Near:
    """A known case that is like this one: cosine of their words; `same`: no line differs; `here`: units that only this case has, `there`: lines that only
    the known one has."""

    id: str
    labels: tuple[str, ...]
    similarity: float
    same: bool
    here: tuple[int, ...]
    there: tuple[str, ...]
