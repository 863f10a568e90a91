"""Stage plan: predictions of every law that has something to say before training, and the choices that rest on them.

Leaves predictions.json and plan.json (stages/settled.py is how later stages read what the recipe left to the plan), and pilot.json where pilots were run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from knowhow import laws
from knowhow import plan as planning
from knowhow.files import digest, read_json, write_json
from knowhow.laws import neural_collapse, noise_scale
from knowhow.laws.law import RUN, fact
from knowhow.plan import Asked, Matrix
from knowhow.recipe import PLAIN_RANK, PLAIN_RATE, PhaseSpec
from knowhow.stages import pilot
from knowhow.stages.common import Build
from knowhow.stages.phase import phases
from knowhow.types import Diagnosis, Measurement, Prediction, Task

UNSEEN = frozenset({noise_scale.NAME})
"""Laws that foresee something of any run, by what no observer of a build looks at."""
PILOT_SHARE = 0.03
"""Of the training's tokens: what a pilot may cost where the rate does not hang on it."""


def work(build: Build, folder: Path) -> None:
    """The rate is planned first, since most predictions about the run need it."""
    spec = build.recipe.adapt[-1]
    diagnosis = read_diagnosis(build.run.path("diagnose", "diagnosis.json"))
    if found := piloted(build, fact(diagnosis, "steps") or 0.0):
        write_json(folder / "pilot.json", [[m.site, m.metric, m.value, m.unit, m.n] for m in found])
        diagnosis = Diagnosis((*diagnosis.measurements, *found), digest([diagnosis.digest, [[m.site, m.metric, m.value] for m in found]]))
    matrices = read_matrices(build.run.path("diagnose", "spectra.json"))
    asked = wishes(build, spec, matrices)
    rate = planning.rate(diagnosis, predictions(diagnosis, build.task), asked)
    lr = PLAIN_RATE if rate is None else max(rate.value) if isinstance(rate.value, list) else rate.value
    diagnosis = with_rate(diagnosis, lr)
    found = predictions(diagnosis, build.task)
    plan = planning.plan(diagnosis, found, asked, matrices)
    write_json(folder / "predictions.json", [asdict(one) for one in found])
    write_json(folder / "plan.json", {"choices": [asdict(choice) for choice in plan.choices], "shares": planning.shares(diagnosis), "lr": lr})


def piloted(build: Build, steps: float) -> list[Measurement]:
    """Pilots of the last phase: at rates that rise, or fall, as long as that helps, where the rate is left to the plan; else at the recipe's own rate, if
    that costs little beside so many `steps`. They start from the base: what a phase before will leave is not there yet."""
    phase, asked = replace(phases(build)[-1], parent=build.base, number=0), build.recipe.adapt[-1].lr
    if asked != "auto":
        dear = pilot.STEPS * min(pilot.TOKENS, phase.spec.batch_tokens) > PILOT_SHARE * steps * phase.spec.batch_tokens
        return [] if dear else pilot.pilot(phase, build, max(asked) if isinstance(asked, list) else asked)
    seen: dict[float, list[Measurement]] = {}

    def loss(lr: float) -> float:
        build.progress("plan: pilots", len(seen), len(planning.RATES))
        seen[lr] = pilot.pilot(phase, build, lr)
        return next((m.value for m in seen[lr] if m.metric == planning.PILOT), math.inf)

    planning.climbed(planning.RATES, loss)
    return [each for found in seen.values() for each in found]


def predictions(diagnosis: Diagnosis, task: Task) -> list[Prediction]:
    """Of every law that a build can score; the others have experiments of their own."""
    left_out = UNSEEN | ({neural_collapse.NAME} if task.many or not task.classes else set())
    return [one for law in laws.every_law() if law.name not in left_out for one in law.predict(diagnosis)]


def with_rate(diagnosis: Diagnosis, lr: float) -> Diagnosis:
    """The diagnosis with the rate that the run will have, and its mean over the schedule."""
    mean = lr * (fact(diagnosis, "schedule") or 1.0)
    added = (Measurement(RUN, "lr", lr, "", 1), Measurement(RUN, "lr.mean", mean, "", 1))
    return Diagnosis((*diagnosis.measurements, *added), digest([diagnosis.digest, lr]))


def wishes(build: Build, spec: PhaseSpec, matrices: Mapping[str, Matrix]) -> Asked:
    """What the recipe decides itself, and what it leaves to the plan within which limits."""
    own: dict[str, Any] = {name: value for name, value in (("lr", spec.lr), ("batch_tokens", spec.batch_tokens)) if value != "auto"}
    parameters = spec.lora.parameters or PLAIN_RANK * sum(matrix.price for matrix in matrices.values())
    if spec.method == "lora" and spec.lora.rank != "auto":
        own["rank_pattern"] = spec.lora.rank
    return Asked(own, parameters, build.recipe.budget.forgetting)


def read_diagnosis(path: Path) -> Diagnosis:
    raw = read_json(path)
    return Diagnosis(tuple(Measurement(*row) for row in raw["measurements"]), raw["digest"])


def read_matrices(path: Path) -> dict[str, Matrix]:
    return {name: Matrix(*row["shape"], row["values"]) for name, row in read_json(path).items()}
