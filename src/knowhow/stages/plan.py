"""Stage plan: predictions of every law that has something to say before training, and the choices that rest on them.

Leaves predictions.json and plan.json; `settled` is how later stages read a setting that the recipe left to the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from knowhow import laws
from knowhow import plan as planning
from knowhow.files import digest, read_json, write_json
from knowhow.laws.law import RUN, fact
from knowhow.plan import Asked, Matrix
from knowhow.recipe import PhaseSpec
from knowhow.stages.common import Build
from knowhow.types import Diagnosis, Measurement, Prediction

PLAIN_RANK = 8
"""The rank of an adapter nobody planned, and the size that a planned one has when no budget is said."""
PLAIN_RATE = 1e-3


def work(build: Build, folder: Path) -> None:
    """The rate is planned first, since most predictions about the run need it."""
    spec = build.recipe.adapt[-1]
    diagnosis = read_diagnosis(build.run.path("diagnose", "diagnosis.json"))
    matrices = read_matrices(build.run.path("diagnose", "spectra.json"))
    asked = wishes(build, spec, matrices)
    rate = planning.rate(diagnosis, predictions(diagnosis), asked)
    lr = PLAIN_RATE if rate is None else max(rate.value) if isinstance(rate.value, list) else rate.value
    diagnosis = with_rate(diagnosis, lr)
    found = predictions(diagnosis)
    plan = planning.plan(diagnosis, found, asked, matrices)
    write_json(folder / "predictions.json", [asdict(one) for one in found])
    write_json(folder / "plan.json", {"choices": [asdict(choice) for choice in plan.choices], "shares": planning.shares(diagnosis), "lr": lr})


def predictions(diagnosis: Diagnosis) -> list[Prediction]:
    return [one for law in laws.every_law() for one in law.predict(diagnosis)]


def with_rate(diagnosis: Diagnosis, lr: float) -> Diagnosis:
    """The diagnosis with the rate that the run will have, and its mean over the schedule."""
    mean = lr * (fact(diagnosis, "schedule") or 1.0)
    added = (Measurement(RUN, "lr", lr, "", 1), Measurement(RUN, "lr.mean", mean, "", 1))
    return Diagnosis((*diagnosis.measurements, *added), digest([diagnosis.digest, lr]))


def wishes(build: Build, spec: PhaseSpec, matrices: Mapping[str, Matrix]) -> Asked:
    """What the recipe decides itself, and what it leaves to the plan within which limits."""
    own: dict[str, Any] = {"batch_tokens": spec.batch_tokens}
    if spec.lr != "auto":
        own["lr"] = spec.lr
    parameters = spec.lora.parameters or PLAIN_RANK * sum(matrix.price for matrix in matrices.values())
    if spec.method == "lora" and spec.lora.rank != "auto":
        own["rank_pattern"] = spec.lora.rank
    return Asked(own, parameters, build.recipe.budget.forgetting)


def settled(build: Build, spec: PhaseSpec) -> PhaseSpec:
    """The phase with a rate in place of `auto`: the plan's, or PLAIN_RATE before there is a plan."""
    if spec.lr != "auto":
        return spec
    chosen = choice_of(build, "lr")
    return spec.model_copy(update={"lr": PLAIN_RATE if chosen is None else chosen["value"]})


def settled_ranks(build: Build, spec: PhaseSpec) -> dict[str, int] | None:
    """The planned rank of each module, None where the recipe says one rank for all."""
    chosen = choice_of(build, "rank_pattern") if spec.lora.rank == "auto" else None
    return None if chosen is None else dict(chosen["value"])


def choice_of(build: Build, name: str) -> Mapping[str, Any] | None:
    path = build.run.path("plan", "plan.json")
    if not path.is_file():
        return None
    found: Mapping[str, Any] | None = next((choice for choice in read_json(path)["choices"] if choice["choice"] == name), None)
    return found


def read_diagnosis(path: Path) -> Diagnosis:
    raw = read_json(path)
    return Diagnosis(tuple(Measurement(*row) for row in raw["measurements"]), raw["digest"])


def read_matrices(path: Path) -> dict[str, Matrix]:
    return {name: Matrix(*row["shape"], row["values"]) for name, row in read_json(path).items()}
