"""Forgetting and the gain from twice the data, predicted before training and measured: tiny builds of a really trained 0.26M Llama on four tasks.

Each build draws its task, rows, rate and steps; it is diagnosed, trained on n rows with general text measured at four log-spaced steps, and trained again
on 2n. `--fit` draws the builds that the laws' constants were fitted on (seeds 0–4), without it those that they are judged on (seeds 100–104).

    KNOWHOW_DATA=… python bench/forecasts.py [--fit] [--builds 30]      # about 30 s a build; appends to bench/results/forecasts.jsonl and resumes
    KNOWHOW_DATA=… python bench/forecasts.py --report                   # coverage, clustered by build
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from small_tasks import BATCH, DATA, recipe_of

from knowhow import run
from knowhow.diagnose import bending
from knowhow.files import append_jsonl, read_jsonl
from knowhow.laws import forgetting, light_adaptation, more_data
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.stages import diagnose, pilot
from knowhow.stages.phase import phases
from knowhow.stages.plan import with_rate
from knowhow.stages.validation import validation
from knowhow.types import RUN, Diagnosis, Measurement

RESULTS = Path(__file__).parent / "results" / "forecasts.jsonl"
BASE = str(DATA / "weights/stories260K")
TASKS = ("trec", "sst2", "banking77", "traces")


def draw(seed: int, number: int) -> dict[str, Any]:
    random = np.random.default_rng([seed, number])
    return {
        "task": TASKS[number % len(TASKS)], "rows": int(random.choice([150, 300, 600])), "lr": float(10 ** random.uniform(-3.5, -2.2)),
        "steps": int(random.choice([60, 120, 240])), "seed": seed, "number": number,
    }  # fmt: skip


def trained(at: Any, asked: dict[str, Any], looks: list[int]) -> dict[str, Any]:
    """Rise of general loss at `looks`, and the best validation loss of the run."""
    phase = phases(at)[-1]
    rows, loaded = phase.rows("train"), phase.fresh()
    general, batches = diagnose.general_rows(at, loaded)
    look = validation(phase)

    def loss() -> float:
        with torch.no_grad():
            return float(sum(general(loaded.model, batch)[0] for batch in batches)) / sum(general.units(batch) for batch in batches)

    start, rises, losses, steps = loss(), {}, {}, []
    spec = phase.spec
    optim = Optim(loaded.model, OptimSpec(asked["lr"], weight_decay=spec.weight_decay))
    base, shown = copy.deepcopy(loaded.model), diagnose.some(phase.rows("valid"), loaded.tokenizer.pad_token_id, 0, False)[:1]
    loop = LoopSpec(asked["steps"], precision="float32")
    stream = phase.batches(rows, loaded.tokenizer.pad_token_id)
    for info in train(loaded.model, phase.objective(rows, loaded), stream, optim, schedule(spec.schedule, asked["steps"], warmup=spec.warmup), loop):
        steps.append(round(info.loss, 4))
        if info.step in looks:
            loaded.model.eval()
            rises[info.step] = loss() - start
            losses[info.step] = look(loaded)[0]["valid_loss"]
            loaded.model.train()
    loaded.model.eval()
    bent = bending.between(base, loaded.model, shown)
    return {"rises": rises, "valid_loss": min(losses.values()), "valid_losses": losses, "losses": steps, "bend": bent}


def build(asked: dict[str, Any]) -> dict[str, Any]:
    clock = time.monotonic()
    looks = sorted({round(asked["steps"] * share) for share in (1 / 8, 1 / 4, 1 / 2, 1)})
    with tempfile.TemporaryDirectory() as where:
        folder, results, found, piloted = Path(where), [], None, []
        for rows in (asked["rows"], 2 * asked["rows"]):
            recipe = recipe_of(
                str(DATA / "weights/stories260K"),
                asked["task"],
                rows,
                folder,
                lr=asked["lr"],
                steps=asked["steps"],
                seed=asked["seed"],
                shuffle=asked["number"],
            )
            at = run.flow(recipe, runs=folder / "runs", resume=False, start_from=None, progress=lambda *_: None, root=folder, until="base")
            if found is None:
                found = with_rate(diagnose.diagnose(phases(at)[-1], at)[0], asked["lr"])
                piloted = pilot.pilot(phases(at)[-1], at, asked["lr"], BATCH)
            results.append(trained(at, asked, looks))
    every = (*found.measurements, *piloted)
    kept = [[m.site, m.metric, m.value] for m in every if m.site == "run" or m.metric.startswith(("line", "growth", "bend", "pilot"))]
    gain = results[0]["valid_loss"] - results[1]["valid_loss"]
    return {**asked, "forgotten": results[0]["rises"], "gain": gain, "runs": results, "measurements": kept, "seconds": round(time.monotonic() - clock, 1)}


def mean_rate(row: dict[str, Any], step: int) -> float:
    factor = schedule("cosine", row["steps"], warmup=0.05)
    return row["lr"] * sum(factor(k) for k in range(1, step + 1)) / step


def scored(row: dict[str, Any]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Law → (predicted, low, high, measured) of a build: forgetting at each look with the pilot and without, and the gain."""
    measured = [Measurement(site, metric, value, "", 1) for site, metric, value in row["measurements"] if metric not in ("lr.mean", "steps")]
    found: dict[str, list[tuple[float, float, float, float]]] = {"forgetting": [], "forgetting without a pilot": []}
    for step, rise in row["forgotten"].items():
        known = [*measured, Measurement(RUN, "lr.mean", mean_rate(row, int(step)), "", 1), Measurement(RUN, "steps", float(step), "", 1)]
        for name, kept in (("forgetting", known), ("forgetting without a pilot", [m for m in known if not m.metric.startswith("pilot")])):
            found[name] += [(one.value, one.low, one.high, rise) for one in forgetting.predict(Diagnosis(tuple(kept), ""))]
    whole = Diagnosis((*measured, Measurement(RUN, "lr.mean", mean_rate(row, row["steps"]), "", 1), Measurement(RUN, "steps", float(row["steps"]), "", 1)), "")
    found["more data"] = [(one.value, one.low, one.high, row["gain"]) for one in more_data.predict(whole)]
    found["light adaptation"] = [(one.value, one.low, one.high, row["runs"][0]["bend"]) for one in light_adaptation.predict(whole)]
    return found


def report() -> None:
    for name, fit in (("fitted on", True), ("judged on", False)):
        rows = [row for row in read_jsonl(RESULTS) if (row["seed"] < 100) == fit]
        every = [scored(row) for row in rows]
        for law in every[0] if every else ():
            clusters = np.array([at for at, each in enumerate(every) for _ in each[law]])
            values = np.array([one for each in every for one in each[law]])
            hits = ((values[:, 1] <= values[:, 3]) & (values[:, 3] <= values[:, 2])).astype(float)
            found = bootstrap(weighted_mean(hits), clusters, draws=1000, seed=0, confidence=0.95, vectorised=True)
            order = f"rank correlation {spearmanr(values[:, 0], values[:, 3]).statistic:.2f}"
            print(f"{name} {len(rows)} builds: {law}: coverage {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of {len(hits)} predictions, {order}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--builds", type=int, default=30)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    if asked.report:
        report()
        return
    known = {(row["seed"], row["number"]) for row in read_jsonl(RESULTS)}
    todo = [draw((0 if asked.fit else 100) + number % 5, number) for number in range(asked.builds)]
    todo = [each for each in todo if (each["seed"], each["number"]) not in known]
    print(f"{len(todo)} builds, about {0.6 * len(todo):.0f} minutes", flush=True)
    for each in todo:
        row = build(each)
        append_jsonl(RESULTS, row)
        print(json.dumps({key: row[key] for key in ("task", "rows", "lr", "steps", "forgotten", "gain", "seconds")}), flush=True)


if __name__ == "__main__":
    main()
