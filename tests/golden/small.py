"""A task that takes seconds: warm or cold, in every form that a recipe knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from knowhow import run
from knowhow.recipe import Recipe

WORDS = {"warm": ["sun", "fire", "summer", "desert"], "cold": ["ice", "snow", "winter", "frost"]}


def silent(what: str, done: int, total: int) -> None:
    """Nothing to draw."""


def rows(task: str, count: int = 160) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    made = []
    for at in range(count):
        label = "warm" if at % 2 else "cold"
        text = " ".join(random.choice(WORDS[label] + ["the", "a", "of", "and"], size=random.integers(4, 12))) + f" number {at}"
        extra: dict[str, Any] = {"label": label}
        if task == "regress":
            extra = {"label": float(len(text)) + 0.5}
        if task == "generate":
            extra = {"completion": label}
        if task == "score":
            extra = {"label": label, "pair": "is it warm or cold?"}
        if task == "many":
            extra = {"label": [label, "odd"] if at % 4 < 2 else [label]}
        made.append({"text": text, **extra})
    return made


def recipe(folder: Path, base: str, task: str = "classify", **phase: Any) -> Recipe:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows(task)))
    kind = {"many": "classify"}.get(task, task)
    objective = "sft" if task == "generate" else "classify"
    return Recipe(
        name=f"tiny-{task}",
        task={"kind": kind, "many": task == "many"},
        base={"model": base},
        data={"train": str(folder / "rows.jsonl"), "canaries": 2, "split": {"valid": 0.2, "test": 0.25}},
        adapt=[{"objective": objective, "steps": 20, "checkpoint_every": 5, "batch_tokens": 512, "microbatch_tokens": 256, "lr": 3e-3, **phase}],
        evaluate={"draws": 100},
        explain={"examples": 0},
    )


def explained(asked: Recipe, examples: int = 2) -> Recipe:
    """The same with evidence for a few answers; without it a build is quicker."""
    return Recipe.model_validate({**asked.model_dump(), "explain": {"examples": examples}})


def built(recipe: Recipe, folder: Path, *, resume: bool = False, progress: Any = silent) -> run.RunResult:
    return run.build(recipe, runs=folder / "runs", resume=resume, start_from=None, progress=progress, root=folder)
