"""How a phase reads a setting that its recipe left to the plan; before there is a plan, plain values stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.files import read_json
from knowhow.recipe import PLAIN_BATCH, PLAIN_RATE, PhaseSpec
from knowhow.stages.common import Build


def settled(build: Build, spec: PhaseSpec) -> PhaseSpec:
    """The phase with numbers in place of `auto`: a rate and a batch that are the plan's."""
    plain = {"lr": PLAIN_RATE, "batch_tokens": PLAIN_BATCH}
    left = {name for name, value in (("lr", spec.lr), ("batch_tokens", spec.batch_tokens)) if value == "auto"}
    chosen = {name: choice_of(build, name) for name in left}
    return spec.model_copy(update={name: plain[name] if found is None else found["value"] for name, found in chosen.items()}) if left else spec


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
