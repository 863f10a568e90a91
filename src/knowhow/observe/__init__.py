"""Observers: one per file, read-only. An experiment or a study names them; a name is made into an observer here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from knowhow.errors import UsageError
from knowhow.observe.when import When, every, log_spaced
from knowhow.protocols import Observer

MAKERS = {
    "one_step": "knowhow.observe.one_step:OneStep",
}
"""Name → where its class is; imported when asked for."""


def observer(name: str, options: Mapping[str, Any], steps: int) -> Observer:
    """An observer by name. `options`: `every` (a period) or `looks` (so many, log-spaced; 30 when neither is said), the rest is the class's own.

    Raises UsageError for a name that is not known."""
    if name not in MAKERS:
        raise UsageError(f"the observer {name!r}", allowed=", ".join(MAKERS))
    own = {key: value for key, value in options.items() if key not in ("every", "looks")}
    due: When = every(options["every"]) if "every" in options else log_spaced(steps, options.get("looks", 30))
    where, made = MAKERS[name].split(":")
    maker: Callable[..., Observer] = vars(import_module(where))[made]
    return maker(due, **own)
