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
    "fourier": "knowhow.observe.fourier:Fourier",
    "circuits": "knowhow.observe.circuits:Circuits",
    "tokens": "knowhow.observe.tokens:TokenLosses",
    "spectra": "knowhow.observe.spectra:Spectra",
    "sparsity": "knowhow.observe.sparsity:Sparsity",
    "outliers": "knowhow.observe.outliers:Outliers",
    "probes": "knowhow.observe.probes:Probes",
    "ngrams": "knowhow.observe.ngrams:NGrams",
    "charges": "knowhow.observe.charges:Charges",
    "modes": "knowhow.observe.modes:Modes",
    "factors": "knowhow.observe.factors:Factors",
    "sharpness": "knowhow.observe.sharpness:Sharpness",
    "fact": "knowhow.observe.fact:Fact",
    "rotation": "knowhow.observe.rotation:Rotation",
    "lora": "knowhow.observe.lora:Lora",
    "kernel": "knowhow.observe.kernel:Kernel",
    "noise": "knowhow.observe.noise:Noise",
    "geometry": "knowhow.observe.geometry:Geometry",
    "hessian": "knowhow.observe.hessian:Hessian",
    "llc": "knowhow.observe.llc:LocalLearningCoefficient",
    "superposition": "knowhow.observe.superposition:Superposition",
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
