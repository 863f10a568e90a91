"""A law and its scores as plain rows: what is written to disk, printed as JSON and made into pages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.laws.law import QUESTIONS, Experiment, Judgement, Law, judge
from knowhow.types import Prediction, Scored

Row = Mapping[str, Any]
DIGITS = 6
"""Figures that are kept of a number."""

_OF_THE_RUN = re.compile(r" \([^()]*\d\.\d[^()]*\)$")


def of_law(law: Law) -> dict[str, Any]:
    """What its page says; experiments and controls as data."""
    return {
        "law": law.name,
        "title": law.title,
        "asks": law.asks,
        "question": QUESTIONS[law.asks],
        "tolerance": law.tolerance,
        "sections": law.sections,
        "experiments": [of_experiment(one) for one in law.experiments],
        "controls": [
            {"name": one.name, "because": one.because, "experiment": None if one.experiment is None else of_experiment(one.experiment)} for one in law.controls
        ],
    }


def of_experiment(one: Experiment) -> dict[str, Any]:
    """Its fields; those that only say the usual are left out."""
    usual = Experiment("", 0, {})
    row: dict[str, Any] = {"system": one.system, "steps": one.steps, "optimizer": dict(one.optimizer)}
    row["observers"] = {name: dict(options) for name, options in one.observers.items()}
    if one.options:
        row["options"] = dict(one.options)
    if one.schedule != usual.schedule:
        row["schedule"] = one.schedule
    numbers = (("warmup", one.warmup, usual.warmup), ("warm", one.warm, usual.warm), ("clip", one.clip, usual.clip))
    return row | {name: value for name, value, plain in numbers if value != plain}


def of_score(one: Scored, experiment: int | None = None) -> dict[str, Any]:
    """`experiment`: which of the law's own, from 1. A bound or a measurement that is no number becomes None."""
    prediction = one.prediction
    row = {} if experiment is None else {"experiment": experiment}
    row |= {
        "quantity": prediction.quantity,
        "site": prediction.site,
        "value": kept(prediction.value),
        "low": kept(prediction.low),
        "high": kept(prediction.high),
    }
    return row | {
        "measured": kept(one.measured),
        "residual": kept(one.residual),
        "verdict": one.verdict,
        "because": one.because,
        "inside": kept(one.inside),
    }


def score_of(law: str, row: Row) -> Scored:
    """The other way round; an open end of an interval is infinite."""
    low, high = row["low"], row["high"]
    value, inside = (math.nan if row[name] is None else float(row[name]) for name in ("value", "inside"))
    prediction = Prediction(law, row["quantity"], row["site"], value, -math.inf if low is None else low, math.inf if high is None else high, "")
    return Scored(prediction, row["measured"], row["residual"], row["verdict"], row["because"], inside)


def plain(quantity: str) -> str:
    """A quantity without the numbers of its run that some laws write in brackets behind it: one name for all seeds."""
    return _OF_THE_RUN.sub("", quantity)


def judgement(law: str, lines: Sequence[Row]) -> Judgement:
    """The verdict over lines {seed, scored, controls} of one law, a line a seed."""
    runs = {int(line["seed"]): [score_of(law, row) for row in line["scored"]] for line in lines}
    names = list(dict.fromkeys(name for line in lines for name in line["controls"]))
    controls = {name: {int(line["seed"]): [score_of(law, row) for row in line["controls"].get(name, ())] for line in lines} for name in names}
    return judge(runs, controls)


def kept(value: float | None) -> float | None:
    """A number to DIGITS figures; None for one that is none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
