"""What a law is: words, a prediction, a score, and the experiment that can refute it; all of it data and pure functions on numbers.

A law's module docstring is its page (docs/laws): the first line is its title, then sections headed **Statement**, **Derivation**, **Assumptions**,
**Where it fails**, **Source**. The module ends with `LAW`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from knowhow.types import RUN, Diagnosis, Measurement, Prediction, Scored, Trace, Verdict

Predict = Callable[[Diagnosis], Sequence[Prediction]]
Score = Callable[[Sequence[Prediction], Trace], Sequence[Scored]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run that can refute a law. `system`: model, rows and objective by name (knowhow.experiments) with its `options`; `optimizer`: fields of
    OptimSpec; `observers`: name → options, `every` or `looks` (log-spaced) among them; `warm`: AdamW steps at 1e-3 that come before, unobserved;
    `clip`: gradient norm above which gradients are scaled."""

    system: str
    steps: int
    observers: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"lr": 1e-3})
    schedule: str = "constant"
    warmup: float = 0.0
    warm: int = 0
    clip: float = math.inf


@dataclass(frozen=True, slots=True)
class Control:
    """What must fail if the law's confirmation is to mean anything: another experiment scored by the law itself, or another score (a wrong formula, a
    weaker law) of the law's own run. It fails when nothing in it is confirmed and something is violated."""

    name: str
    because: str
    experiment: Experiment | None = None
    predict: Predict | None = None
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Law:
    """`asks`: which of the three questions it answers (see QUESTIONS), or a use; `tolerance` in words with its number; `experiments`: each must confirm.
    `page`: the module's docstring."""

    name: str
    page: str
    asks: str
    tolerance: str
    predict: Predict
    score: Score
    experiments: tuple[Experiment, ...]
    controls: tuple[Control, ...] = ()

    @property
    def title(self) -> str:
        return self.page.strip().splitlines()[0].rstrip(".")

    @property
    def statement(self) -> str:
        return self.sections["Statement"]

    @property
    def sections(self) -> dict[str, str]:
        """The page's sections by heading; the text before the first one is left out."""
        found: dict[str, str] = {}
        heading = ""
        for line in self.page.strip().splitlines()[1:]:
            if line.startswith("**") and line.count("**") >= 2:
                heading, line = line[2:].split("**", 1)
                found[heading] = line.lstrip(" .:")
            elif heading:
                found[heading] += "\n" + line
        return {name: text.strip() for name, text in found.items()}


QUESTIONS = {
    "circuits": "why compositional features and circuits appear",
    "simplicity": "why sparsity, low rank and separated factors appear",
    "dynamics": "how these follow from the equations of gradient-based learning",
    "use": "what a builder needs to know before a run",
}


def facts(values: Mapping[str, float], *, digest: str = "", n: int = 1) -> Diagnosis:
    """A diagnosis of facts about the run."""
    return Diagnosis(tuple(Measurement(RUN, name, float(value), "", n) for name, value in values.items()), digest)


def fact(diagnosis: Diagnosis, metric: str, site: str = RUN) -> float | None:
    """One number of a diagnosis; None when it was not measured."""
    return next((m.value for m in diagnosis.measurements if m.metric == metric and m.site == site), None)


def by_site(diagnosis: Diagnosis, metric: str) -> dict[str, float]:
    """A metric at every site where it was measured."""
    return {m.site: m.value for m in diagnosis.measurements if m.metric == metric}


def column(trace: Trace, name: str) -> list[tuple[int, float]]:
    """(step, value) wherever an observer kept `name` and it is a number."""
    return [(int(row["step"]), row[name]) for row in trace.rows if name in row and math.isfinite(row[name])]


def values(trace: Trace, name: str) -> list[float]:
    return [value for _, value in column(trace, name)]


def columns(trace: Trace, prefix: str) -> list[str]:
    """Names of columns that start with `prefix`, in the order in which they were first kept."""
    return list(dict.fromkeys(name for row in trace.rows for name in row if name.startswith(prefix)))


def predicted(law: str, quantity: str, value: float, low: float, high: float, diagnosis: Diagnosis, site: str = RUN) -> Prediction:
    return Prediction(law, quantity, site, value, low, high, diagnosis.digest)


def compared(prediction: Prediction, measured: float, *, residual: float | None = None, because: str = "", inside: float = 1.0) -> Scored:
    """Confirmed within the prediction's interval, violated outside it or when the measurement is no number. `residual`: left out, measured − value."""
    within = math.isfinite(measured) and prediction.low <= measured <= prediction.high
    difference = measured - prediction.value if residual is None else residual
    return Scored(prediction, measured, difference, "confirmed" if within else "violated", because, inside)


def not_applicable(prediction: Prediction, because: str, *, measured: float | None = None, inside: float = 0.0) -> Scored:
    return Scored(prediction, measured, None, "not applicable", because, inside)


def last_of(predictions: Sequence[Prediction], law: str, trace: Trace, name: str, otherwise: str) -> list[Scored]:
    """The law's predictions beside the last value of a column; not applicable, because `otherwise`, where it was not measured."""
    measured = values(trace, name)
    own = [one for one in predictions if one.law == law]
    return [compared(one, measured[-1]) for one in own] if measured else [not_applicable(one, otherwise) for one in own]


def summed_up(scored: Sequence[Scored]) -> Verdict:
    """One verdict of many: violated if anything is; confirmed if something is; else not applicable."""
    verdicts = {one.verdict for one in scored}
    if "violated" in verdicts:
        return "violated"
    return "confirmed" if "confirmed" in verdicts else "not applicable"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A law's verdict over seeds. `seeds`: the verdict of each; `controls`: name → whether it failed at every seed, as it must; `inside`: median share of
    the observed steps at which the assumptions held."""

    verdict: Verdict
    because: str
    seeds: Mapping[int, Verdict]
    controls: Mapping[str, bool]
    inside: float


def judge(runs: Mapping[int, Sequence[Scored]], controls: Mapping[str, Mapping[int, Sequence[Scored]]]) -> Judgement:
    """Confirmed: at every seed, and every control fails at every seed. Not applicable: the gate was closed at every seed. Violated otherwise.

    `runs`: seed → the scored predictions of all the law's experiments; `controls`: name → the same of a control."""
    seeds = {seed: summed_up(scored) for seed, scored in runs.items()}
    failed = {
        name: all({"violated"} <= (said := {one.verdict for one in scored}) and "confirmed" not in said for scored in each.values())
        for name, each in controls.items()
    }
    inside = statistics.median(one.inside for scored in runs.values() for one in scored) if runs else 0.0
    wrong = [seed for seed, verdict in seeds.items() if verdict != "confirmed"]
    if all(verdict == "not applicable" for verdict in seeds.values()):
        reasons = {one.because for scored in runs.values() for one in scored}
        return Judgement("not applicable", "; ".join(sorted(reasons)), seeds, failed, inside)
    if wrong:
        return Judgement("violated", f"not confirmed at seeds {', '.join(map(str, wrong))}", seeds, failed, inside)
    passed = [name for name, gone in failed.items() if not gone]
    if passed:
        return Judgement("violated", f"a control that must fail did not: {', '.join(passed)}", seeds, failed, inside)
    return Judgement("confirmed", f"at {len(seeds)} of {len(seeds)} seeds, with every control failing", seeds, failed, inside)
