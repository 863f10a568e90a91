"""The one line that matters: was training worth it? Read from results alone, so the page, the terminal and the card say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from knowhow.report.numbers import better_sign, decimal, metric_name, signed, slice_name, span, words
from knowhow.report.text import clean
from knowhow.types import EvalResult, Interval

SPECIALIST = "specialist"
State = Literal["beats", "enough", "unknown"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Specialist minus `baseline`, turned so that more is better: `beaten` when its whole interval is above zero, `worse` when it is below."""

    baseline: str
    difference: Interval
    beaten: bool
    worse: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    state: State
    title: str
    sentence: str
    metric: str
    slice: str
    gaps: tuple[Gap, ...] = ()


def headline_metric(results: Sequence[EvalResult], wanted: str | None = None) -> str:
    """The metric that decides: the recipe's where the specialist has it, else the specialist's first."""
    own = [result.metric for result in results if result.model == SPECIALIST] or [result.metric for result in results]
    return wanted if wanted in own else (own[0] if own else wanted or "")


def find(results: Iterable[EvalResult], *, model: str, metric: str, slice: str = "all") -> EvalResult | None:
    return next((result for result in results if (result.model, result.metric, result.slice) == (model, metric, slice)), None)


def ranked(results: Iterable[EvalResult], metric: str, slice: str = "all") -> list[EvalResult]:
    """One result per model, best first."""
    rows = {result.model: result for result in results if result.metric == metric and result.slice == slice}
    return sorted(rows.values(), key=lambda row: (-better_sign(metric) * row.value, row.model))


def gaps(result: EvalResult) -> tuple[Gap, ...]:
    """Paired differences of one result, hardest baseline first."""
    sign = better_sign(result.metric)
    found = []
    for name, gap in result.paired.items():
        low, high = (gap.low, gap.high) if sign > 0 else (-gap.high, -gap.low)
        found.append(Gap(name, gap, beaten=low > 0, worse=high < 0))
    return tuple(sorted(found, key=lambda gap: (sign * gap.difference.value, gap.baseline)))


def judge(results: Sequence[EvalResult], metric: str, slice: str = "all") -> Verdict:
    """Beats every baseline (each paired interval above zero), or: do not train, because what is cheaper is enough."""
    own = find(results, model=SPECIALIST, metric=metric, slice=slice)
    if own is None:
        return Verdict("unknown", "No verdict yet", "The specialist has not been evaluated.", metric, slice)
    found = gaps(own)
    value = f"{metric_name(metric)} {decimal(own.value)} (95% interval {span(own.low, own.high)}, n = {own.n:,}) on {slice_name(slice)}"
    if not found:
        return Verdict("unknown", "No verdict", f"The specialist reaches {value}; there is no baseline to compare it with.", metric, slice)
    unbeaten = [gap for gap in found if not gap.beaten]
    if not unbeaten:
        hardest = found[0]
        return Verdict(
            "beats",
            "The specialist beats every baseline",
            f"It reaches {value}: {_difference(hardest)} against {clean(hardest.baseline, 40)}, the strongest baseline.",
            metric,
            slice,
            found,
        )
    names = words([clean(gap.baseline, 40) for gap in unbeaten[:3]]) + (f" and {len(unbeaten) - 3} more" if len(unbeaten) > 3 else "")
    title = f"Do not train: {names} {'is' if len(unbeaten) == 1 else 'are'} enough"
    first = unbeaten[0]
    told = "is worse than" if first.worse else "is not shown to be better than"
    return Verdict("enough", title, f"The specialist reaches {value} and {told} {clean(first.baseline, 40)}: {_difference(first)}.", metric, slice, found)


def _difference(gap: Gap) -> str:
    return f"{signed(gap.difference.value)} (95% interval {span(gap.difference.low, gap.difference.high, sign=True)})"
