"""`lr: auto` against sweeps: what the planned rate costs over the best of eight, and over the guess 1e-3.

Small builds of a really trained 0.26M Llama on four tasks, and of the embedded base on two. The score is the validation score that a build chooses by.

    KNOWHOW_DATA=… python bench/rate_choice.py               # about 25 machine-minutes; appends to bench/results/rate_choice.jsonl and resumes
    KNOWHOW_DATA=… python bench/rate_choice.py --report
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from small_tasks import DATA, recipe_of

from knowhow import run
from knowhow.files import append_jsonl, read_json, read_jsonl
from knowhow.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "rate_choice.jsonl"
RATES = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
GUESS = 1e-3
ROWS, STEPS = 1200, 120
BUILDS = [("stories260K", task, 0) for task in ("trec", "sst2", "banking77", "traces")]
BUILDS += [("seedling", task, 0) for task in ("trec", "traces")]


def flow(recipe: Recipe, folder: Path, until: str) -> Path:
    return run.flow(recipe, runs=folder / f"runs-{until}", resume=False, start_from=None, progress=lambda *_: None, root=folder, until=until).run.folder


def build(model: str, task: str, seed: int) -> dict[str, Any]:
    clock = time.monotonic()
    base = str(DATA / "weights/stories260K") if model == "stories260K" else model
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        asked = recipe_of(base, task, ROWS, folder, lr="auto", steps=STEPS, seed=seed)
        planned = flow(asked, folder, "plan")
        plan = read_json(planned / "plan" / "plan.json")
        measurements = read_json(planned / "diagnose" / "diagnosis.json")["measurements"] + read_json(planned / "plan" / "pilot.json")
        rates = sorted({*RATES, plan["lr"]})
        swept = asked.model_copy(update={"adapt": [asked.adapt[0].model_copy(update={"lr": rates})]})
        tried = read_json(flow(swept, folder, "adapt") / "adapt" / "choices.json")[0]["tried"]
    kept = [[site, metric, value] for site, metric, value, *_ in measurements if site == "run" or metric.startswith(("line", "pilot"))]
    return {
        "model": model, "task": task, "seed": seed, "planned": plan["lr"], "tried": [[each["lr"], each["score"]] for each in tried],
        "measurements": kept, "seconds": round(time.monotonic() - clock, 1),
    }  # fmt: skip


def report() -> None:
    rows = list(read_jsonl(RESULTS))
    for row in rows:
        scores = {lr: -1e9 if score is None else score for lr, score in row["tried"]}
        best = max(scores, key=lambda lr: scores[lr])
        said = f"planned {row['planned']:g}: {scores[row['planned']]:.3f}, best {best:g}: {scores[best]:.3f}, guess {GUESS:g}: {scores[GUESS]:.3f}"
        print(row["model"], row["task"], row["seed"], said)
    for name, at in (("planned", lambda row: row["planned"]), ("guess", lambda row: GUESS)):
        lost = [max(s for _, s in row["tried"] if s is not None) - dict(map(tuple, row["tried"]))[at(row)] for row in rows]
        print(f"{name}: lost {np.mean(lost):.3f} on average of {len(lost)}, at most {max(lost):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true")
    if parser.parse_args().report:
        report()
        return
    known = {(row["model"], row["task"], row["seed"]) for row in read_jsonl(RESULTS)}
    for each in BUILDS:
        if each not in known:
            row = build(*each)
            append_jsonl(RESULTS, row)
            print(json.dumps({key: row[key] for key in ("model", "task", "seed", "planned", "tried", "seconds")}), flush=True)


if __name__ == "__main__":
    main()
