"""Numbers as a person reads them, and the few facts about metrics that the page and the terminal share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

DASH = "–"
MINUS = "−"
LOWER_IS_BETTER = frozenset({"nll", "loss", "perplexity", "mae", "mse", "rmse", "ece", "ece_debiased", "brier", "risk"})
METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
    "exact_match": "exact match",
    "nll": "NLL",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "mse": "mean squared error",
    "balanced_accuracy": "balanced accuracy",
    "recall": "recall",
    "precision": "precision",
    "mcc": "Matthews correlation",
    "tpr@1e-2": "TPR at 1% FPR",
    "tpr@1e-3": "TPR at 0.1% FPR",
    "ece_debiased": "calibration error, debiased",
    "r2": "R²",
    "tpr_at_fpr": "TPR at fixed FPR",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "perplexity": "perplexity",
}
FLOW = (
    "train",
    "valid",
    "test",
    "data",
    "base",
    "baseline",
    "diagnose",
    "plan",
    "adapt",
    "readout",
    "compress",
    "evaluate",
    "explain",
    "verify",
    "package",
    "report",
)
SLICE_NAMES = {"all": "all rows", "deduplicated": "each distinct input once", "novel": "inputs not seen in training"}


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def slice_name(name: str) -> str:
    return SLICE_NAMES.get(name, name.removeprefix("class:").removeprefix("slice:"))


def better_sign(metric: str) -> int:
    """+1 where more is better, -1 where less is."""
    return -1 if metric.lower() in LOWER_IS_BETTER else 1


def number(value: object, *path: str) -> float | None:
    """The finite number at `path` inside nested mappings; None when anything on the way is missing or of another kind."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def part(value: object, key: str) -> Mapping[str, Any]:
    """The object at `key`; an empty one when it is missing or of another kind."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(value: object, key: str) -> list[Any]:
    """The list at `key`; an empty one when it is missing or of another kind."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def ends(row: object, value: float) -> dict[str, float]:
    """`low` and `high` of an interval; where an end is missing, the value itself."""
    low, high = number(row, "low"), number(row, "high")
    return {"low": value if low is None else low, "high": value if high is None else high}


def decimal(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign; a dash for nothing."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"


def span(low: float | None, high: float | None, *, digits: int = 3, sign: bool = False) -> str:
    """An interval: `0.58 to 0.64`."""
    if low is None or high is None:
        return DASH
    write = signed if sign else decimal
    return f"{write(low, digits)} to {write(high, digits)}"


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """A value with its interval: `0.612 (0.591 to 0.633)`."""
    return f"{signed(value) if sign else decimal(value)} ({span(low, high, sign=sign)})"


def sure(confidence: float | None) -> str:
    """A confidence in whole percent that never says 100% or 0% of what is not quite certain."""
    if confidence is None:
        return ""
    return "over 99%" if 0.99 < confidence < 1 else "under 1%" if 0 < confidence < 0.01 else f"{confidence:.0%}"


def count(value: float | None) -> str:
    """1,234 · 6.6 M · 1.2 G."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def percent(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{100 * value:.{digits}f}%"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return DASH
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{value / unit_size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_order(names: Iterable[str]) -> list[str]:
    """Splits and stages in the order of the flow; names that are neither follow as they come."""
    return sorted(names, key=lambda name: FLOW.index(name) if name in FLOW else len(FLOW))


def words(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(n: float | None, one: str, many: str = "") -> str:
    return f"{count(n)} {one if n == 1 else many or one + 's'}"
