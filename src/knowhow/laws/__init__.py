"""The laws of learning that a build predicts with: one per file, in the order in which they are listed here. Each module ends with `LAW`."""

from __future__ import annotations

from importlib import import_module

from knowhow.errors import UsageError
from knowhow.laws.law import Law

NAMES = (
    "noether",
    "one-step",
    "rotational-equilibrium",
    "fact",
    "lora-first-order",
    "nuclear-norm",
    "kernel-regime",
    "linear-attention",
    "mode-times",
    "edge-of-stability",
    "neural-collapse",
    "hessian-outliers",
    "induction",
    "noise-scale",
    "local-learning-coefficient",
    "superposition",
    "grokking",
    "sinks",
    "bigram-floor",
    "learning-rate-ceiling",
    "update-rank",
    "layer-skip",
    "forgetting",
    "more-data",
    "light-adaptation",
    "steps-to-target",
)


def law(name: str) -> Law:
    """A law by name. Raises UsageError for one that is not in the registry."""
    if name not in NAMES:
        raise UsageError(f"the law {name!r}", allowed=", ".join(NAMES), fix="`knowhow laws list` shows what each says")
    found: Law = import_module(f"knowhow.laws.{name.replace('-', '_')}").LAW
    return found


def every_law() -> list[Law]:
    return [law(name) for name in NAMES]
