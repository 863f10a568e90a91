"""Time, memory and disk of a build before anything starts, and what base and data licences allow (pure functions).

Counts of work are exact; what a machine makes of them is rounded up: a build that is done early disappoints nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from knowhow.errors import ResourceError
from knowhow.recipe import PLAIN_BATCH, BudgetSpec, PhaseSpec

EXPLAIN_PASSES = 200
"""Passes that one answer takes for its evidence and for base against specialist; its parts come on top, each a pass, heads being 64 wide mostly."""
DIAGNOSIS, DIAGNOSIS_PER_LAYER = 500e3, 40e3
"""Operations per parameter of the looks before training and after it (stages/diagnose.py), and of those that are taken once a layer."""
SHARE_OF_MATMUL = {"float32": 0.4, "bf16": 0.3}
"""Share of the measured matrix-product rate that a training step reaches at least, small models included."""

DEFAULT_EPOCHS = 3.0
OVERHEAD_GB = 1.8
"""Python with torch, transformers, scikit-learn and LightGBM, measured on the tiny demo."""
NGRAM_BYTES = 500
"""Memory of the n-gram baselines per token of data: 2.4 GB at the peak of the demo's 1.3 million tokens, 1.8 GB at the tiny demo's 0.1 million."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates in operations per second of a large matrix product; `bf16_rate` 0 where the machine has no fast bf16. Free bytes now."""

    cores: int
    float32_rate: float
    bf16_rate: float
    memory_free: int
    disk_free: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A model: `trained` is the number of parameters that get gradients, out of `parameters`."""

    parameters: int
    trained: int
    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Load:
    """Rows to train on, rows to measure on, tokens and bytes of one row on average; `passes` of the model that one answer takes;
    `explained`: answers whose evidence is sought."""

    rows: int
    held_out: int
    tokens: float
    bytes: float
    passes: int = 1
    explained: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """`minutes` by stage; gigabytes at the peak."""

    minutes: Mapping[str, float]
    memory_gb: float
    disk_gb: float

    @property
    def total_minutes(self) -> float:
        return sum(self.minutes.values())


def steps(phase: PhaseSpec, load: Load) -> int:
    """Optimizer steps of a phase; 0 when it is given in minutes."""
    if phase.minutes is not None:
        return 0
    if phase.steps is not None:
        return phase.steps
    return max(1, round((phase.epochs or DEFAULT_EPOCHS) * load.rows * load.tokens / batch(phase)))


def batch(phase: PhaseSpec) -> int:
    """Tokens of a step, as far as they are known before there is a plan."""
    return PLAIN_BATCH if phase.batch_tokens == "auto" else phase.batch_tokens


def minutes(phases: Sequence[PhaseSpec], shape: Shape, load: Load, machine: Machine, *, classical: bool = True) -> dict[str, float]:
    """Minutes of each stage. `classical`: n-gram baselines are fitted too.

    A training step costs 6 operations per parameter and token (forward 2, backward 4: Kaplan et al. 2020, table 1), 4 where the weights
    are frozen under adapters (no gradient of the weights), an evaluation 2."""
    train = 0.0
    for phase in phases:
        rates = len(phase.lr) if isinstance(phase.lr, list) else 1
        tokens = steps(phase, load) * batch(phase)
        operations = 4 if phase.method == "lora" else 6
        seconds = rates * operations * shape.parameters * tokens / _rate(phase.precision, machine)
        train += phase.minutes * rates if phase.minutes is not None else seconds / 60
        train += 1.0 if phase.compile else 0.0
    passes = 4 * load.passes
    evaluate = passes * 2 * shape.parameters * load.held_out * load.tokens / _rate("auto", machine) / 60
    words = (load.rows + load.held_out) * load.tokens
    looked = DIAGNOSIS + DIAGNOSIS_PER_LAYER * shape.layers
    return {
        "data": 0.1 + words / 2e6 / 60,
        "diagnose and verify": 0.1 + looked * shape.parameters / _rate("float32", machine) / 60,
        "baselines": 0.3 + (words / 1e4 / 60 if classical else 0.0),
        "train": train,
        "evaluate": 0.8 + evaluate,
        "explain": (EXPLAIN_PASSES + shape.layers * (7 + shape.width // 64))
        * load.explained
        * load.passes
        * 2
        * shape.parameters
        * load.tokens
        / _rate("auto", machine)
        / 60,
        "package and report": 0.3,
    }


def memory_gb(phases: Sequence[PhaseSpec], shape: Shape, load: Load) -> float:
    """Weights, gradients and two moments in float32, activations of one microbatch, the rows and their n-grams.

    Activations: 34 bytes per token, layer and unit of width in half precision (Korthikanti et al. 2022, eq. 2 without attention scores), twice that here."""
    state = 4 * shape.parameters + 12 * shape.trained
    tokens = max(phase.microbatch_tokens for phase in phases)
    logits = 12 * shape.vocabulary if any(phase.objective != "classify" for phase in phases) else 0
    activations = tokens * (68 * shape.width * shape.layers + logits)
    rows = (load.rows + load.held_out) * (6 * load.bytes + NGRAM_BYTES * load.tokens)
    return (state + activations + rows) / 1e9 + OVERHEAD_GB


def disk_gb(shape: Shape, load: Load) -> float:
    """Two checkpoints while one replaces the other, the best weights, the specialist, the rows of each stage, the report."""
    checkpoints = 2 * (4 * shape.parameters + 8 * shape.trained) + 4 * shape.trained
    return (checkpoints + 4 * shape.parameters + 3 * (load.rows + load.held_out) * load.bytes + 30e6) / 1e9


def estimate(phases: Sequence[PhaseSpec], shape: Shape, load: Load, machine: Machine) -> Estimate:
    return Estimate(minutes(phases, shape, load, machine), memory_gb(phases, shape, load), disk_gb(shape, load))


def hold_against(found: Estimate, machine: Machine, budget: BudgetSpec) -> None:
    """Raises ResourceError when the machine or the recipe's budget has less than the estimate."""
    needs = (
        ("memory", found.memory_gb, machine.memory_free / 1e9, "this machine has free", "use a smaller base or a smaller `microbatch_tokens`"),
        ("memory", found.memory_gb, budget.memory_gb, "budget.memory_gb", "use a smaller `microbatch_tokens`, or raise the budget"),
        ("disk", found.disk_gb, machine.disk_free / 1e9, "the disk has free", "free some space (`knowhow runs gc`), or choose another disk with --runs"),
        ("disk", found.disk_gb, budget.disk_gb, "budget.disk_gb", "raise the budget"),
    )
    for what, needed, limit, whose, fix in needs:
        if limit is not None and needed > limit:
            raise ResourceError(f"about {_size(needed)} of {what} needed", allowed=f"{_size(limit)} ({whose})", fix=fix)
    if budget.minutes is not None and found.total_minutes > budget.minutes:
        fix = "fewer steps or epochs, a smaller base, or raise the budget"
        raise ResourceError(f"about {found.total_minutes:.0f} minutes needed", allowed=f"{budget.minutes:g} minutes (budget.minutes)", fix=fix)


LICENCE_KINDS = {
    "permissive": (
        "mit",
        "apache-",
        "bsd",
        "isc",
        "cc-by-4",
        "cc-by-3",
        "cc-by-2",
        "cc0",
        "unlicense",
        "pddl",
        "odc-by",
        "cdla-permissive",
        "public domain",
        "zlib",
    ),
    "share-alike": ("cc-by-sa", "cdla-sharing", "odbl"),
    "copyleft": ("gpl", "lgpl", "agpl"),
    "non-commercial": ("cc-by-nc",),
    "no derivatives": ("cc-by-nd", "cc-by-nc-nd"),
    "own terms": ("llama", "gemma", "openrail", "bigscience", "other", "licenseref-"),
}
_ORDER = ["permissive", "share-alike", "copyleft", "non-commercial", "own terms", "no derivatives", "none stated"]


def licence_kind(licence: str | None) -> str:
    """The family of an SPDX id; of an expression (`MIT AND CC-BY-SA-4.0`) the strictest part. Unknown ids are "own terms"."""
    if not licence or not licence.strip():
        return "none stated"
    parts = [part.strip(" ()").lower() for part in licence.replace(" OR ", " AND ").split(" AND ")]
    return max((_kind(part) for part in parts), key=_ORDER.index)


def licences(base: str | None, data: str | None) -> dict[str, Any]:
    """What a specialist made of both may be used for, and the licence that it can carry.

    Keys: base, data (licence and kind of each), use ("any", "share-alike", "non-commercial", "local use only"), licence, notes. Advice, not law."""
    kinds = {"base": licence_kind(base), "data": licence_kind(data)}
    said = {"base": base or "none stated", "data": data or "none stated"}
    notes = [f"the {name} states no licence: nobody has allowed you to pass it on" for name, kind in kinds.items() if kind == "none stated"]
    notes += [f"the {name} ({said[name]}) allows no derivatives" for name, kind in kinds.items() if kind == "no derivatives"]
    notes += [f"the {name} ({said[name]}) has terms of its own: read them before you publish" for name, kind in kinds.items() if kind == "own terms"]
    found = set(kinds.values())
    if notes:
        use, licence = "local use only", "none"
    elif "non-commercial" in found and found & {"copyleft", "share-alike"}:
        use, licence = "local use only", "none"
        notes = [f"{said['base']} and {said['data']} ask for different licences: no licence satisfies both"]
    elif "non-commercial" in found:
        use, licence = "non-commercial", _strictest(said, kinds, "non-commercial")
    elif "copyleft" in found:
        use, licence = "share-alike", _strictest(said, kinds, "copyleft")
    elif "share-alike" in found:
        use, licence = "share-alike", _strictest(said, kinds, "share-alike")
    else:
        use, licence = "any", base or "none"
    if use in ("share-alike", "non-commercial"):
        notes = [f"pass it on under {licence} only"]
    return {
        "base": {"licence": said["base"], "kind": kinds["base"]},
        "data": {"licence": said["data"], "kind": kinds["data"]},
        "use": use,
        "licence": licence,
        "notes": notes,
    }


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.1f} MB"


def _kind(part: str) -> str:
    found = [(len(start), kind) for kind, starts in LICENCE_KINDS.items() for start in starts if part.startswith(start)]
    return max(found)[1] if found else "own terms"


def _strictest(said: Mapping[str, str], kinds: Mapping[str, str], kind: str) -> str:
    return next(said[name] for name in ("base", "data") if kinds[name] == kind)


def _rate(precision: str, machine: Machine) -> float:
    """Operations per second that a training step reaches."""
    if precision != "float32" and machine.bf16_rate > machine.float32_rate:
        return machine.bf16_rate * SHARE_OF_MATMUL["bf16"]
    return machine.float32_rate * SHARE_OF_MATMUL["float32"]
