"""The judgements that were committed: each law once, on seeds that nobody had looked at when its gates and tolerances were fixed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from knowhow.laws.rows import Row, judgement, kept, plain

FILE = Path(__file__).with_name("judged.json")
FRESH = range(100, 105)
"""The seeds of the one judgement; everything before it is tried on others."""

TUNING = range(5)
NOT_YET = "not judged yet"


@cache
def committed() -> Mapping[str, Row]:
    """Law → what `summary` said of it; empty while nothing has been judged."""
    found: Mapping[str, Row] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return found


def verdict(law: str) -> str:
    return str(committed()[law]["verdict"]) if law in committed() else NOT_YET


def summary(law: str, lines: Sequence[Row]) -> dict[str, Any]:
    """A law's judgement from its lines, one a seed: verdict and reason, the verdict at each seed, whether each control failed at every seed, the share of
    steps inside its gates, the median size of the residuals of all scored predictions, and `figures`: medians over seeds and sites by experiment and
    quantity."""
    said = judgement(law, lines)
    rows = [row for line in lines for row in line["scored"]]
    return {
        "verdict": said.verdict,
        "because": said.because,
        "seeds": {str(seed): one for seed, one in said.seeds.items()},
        "controls": dict(said.controls),
        "inside": kept(said.inside),
        "residual": middle([abs(row["residual"]) for row in rows if row["residual"] is not None]),
        "figures": figures(rows),
    }


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Scored predictions by experiment and quantity: `n` of them, `confirmed`, and the medians of what was predicted and measured."""
    found = []
    for key in dict.fromkeys((row["experiment"], plain(row["quantity"])) for row in rows):
        own = [row for row in rows if (row["experiment"], plain(row["quantity"])) == key]
        made: dict[str, Any] = {"experiment": key[0], "quantity": key[1], "n": len(own), "confirmed": sum(row["verdict"] == "confirmed" for row in own)}
        for name in ("value", "low", "high", "measured", "residual"):
            made[name] = middle([row[name] for row in own if row[name] is not None])
        found.append(made)
    return found


def middle(numbers: Sequence[float]) -> float | None:
    """The median to a few figures; None of nothing."""
    return kept(statistics.median(numbers)) if numbers else None
