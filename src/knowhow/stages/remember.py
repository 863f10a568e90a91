"""Part of stage evaluate: can training rows be read back? Canaries, verbatim extraction, membership inference, as far as the task allows each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from knowhow.evaluate import memorisation
from knowhow.evaluate.gold import answer_kind, gold_of
from knowhow.evaluate.labels import nll_rows
from knowhow.model.generate import generate
from knowhow.model.load import Loaded
from knowhow.recipe import Recipe
from knowhow.stages.common import Build, answers
from knowhow.types import Example, Task

COPIES = 4
MEMBERS = 1000
EXTRACTED = 200


def canaries(recipe: Recipe, task: Task) -> memorisation.Canaries:
    """The canaries of a recipe: the same rows whenever it is asked."""
    return memorisation.plant(recipe.data.canaries, COPIES, recipe.seed, task)


def work(build: Build, loaded: Loaded) -> dict[str, Any]:
    """{membership, extraction, canaries}; a part that this task or recipe has no way to measure is left out."""
    task, recipe = build.task, build.recipe
    drawn = {part: _drawn(build.rows(part), MEMBERS, recipe.seed) for part in ("train", "test")}
    losses = partial(_losses, build, loaded)
    found: dict[str, Any] = {"membership": memorisation.membership(losses(drawn["train"]), losses(drawn["test"]), seed=recipe.seed)}
    if loaded.head == "lm":
        pairs = {part: memorisation.pairs(rows[:EXTRACTED], task) for part, rows in drawn.items()}
        shown = memorisation.extraction(partial(generate, loaded), pairs["train"], pairs["test"], seed=recipe.seed)
        found["extraction"] = {**shown, "n": shown["rows"]}
    if recipe.data.canaries:
        planted = canaries(recipe, task)
        bits = memorisation.exposure(losses(planted.probes), losses(planted.alternatives), copies=COPIES, seed=recipe.seed)
        found["canaries"] = {**bits, "exposure_mean": bits["exposure"], "exposure_max": max(bits["per_canary"]), "n": bits["canaries"]}
    return found


def _drawn(rows: Sequence[Example], most: int, seed: int) -> list[Example]:
    random = np.random.Generator(np.random.PCG64(seed))
    own = [at for at in range(len(rows)) if rows[at].origin != "canary"]
    return [rows[int(at)] for at in random.permutation(own)[:most]]


def _losses(build: Build, loaded: Loaded, rows: Sequence[Example]) -> np.ndarray:
    """How unlikely the model finds the right answer of each row, float N: nats, or the squared error of a number."""
    task = build.task
    given = answers(loaded, rows, task, build.recipe.base, name="specialist", progress=build.progress)
    if loaded.head == "lm":
        return given.nll_N
    gold = gold_of(rows, task).values
    return (given.values_N - gold) ** 2 if answer_kind(task) == "number" else nll_rows(gold, given)
