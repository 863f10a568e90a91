"""The Noether ledger on real models: python bench/charges.py [--looks 5] [--only twin …]

Per model, rate, decay and rows in a batch: the largest residual of the discrete law over all sites and looks, by kind of charge, judged (rounding of the
weights taken back) and as stored; the two wrong charges; the flow limit at the end; seconds of the run (wall, and of one thread), warm-up among them.
Models: an untied twin and stories260K ($KNOWHOW_DATA/weights) after 150 steps of AdamW on the chain, and the embedded base as it is. Prints a table and
appends it to bench/results/charges.jsonl.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from knowhow.experiments.run import run
from knowhow.files import append_jsonl
from knowhow.laws.law import Experiment, columns, values

RESULTS = Path(__file__).parent / "results" / "charges.jsonl"
KINDS = ("vo", "qk", "up_down", "norm_gain")
STEPS = {"seedling": 6}


def models() -> dict[str, dict[str, Any]]:
    """Name → options of the system."""
    found: dict[str, dict[str, Any]] = {"twin": {"length": 32}, "seedling": {"model": "seedling", "length": 32, "states": 64}}
    folder = Path(os.environ.get("KNOWHOW_DATA", "shared/data")) / "weights" / "stories260K"
    if folder.is_dir():
        return {**found, "stories260K": {"model": str(folder), "length": 32}}
    print(f"{folder} is not there: stories260K is left out")
    return found


def settings(name: str) -> Iterator[tuple[float, float, int]]:
    """Rate, decay, rows of a batch."""
    large = 4 if name == "seedling" else 8
    for rate, rows in ((0.05, 1), (0.05, large), (0.003, large)):
        for decay in (0.0, 0.05):
            yield rate, decay, rows


def measured(name: str, options: dict[str, Any], rate: float, decay: float, rows: int, looks: int) -> dict[str, Any]:
    optimizer = {"rule": "sgd", "decayed": "all", "lr": rate, "weight_decay": decay}
    steps, warm = STEPS.get(name, 20), 0 if name == "seedling" else 150
    experiment = Experiment("charges", steps, {"charges": {"looks": looks}}, options={**options, "rows": rows}, optimizer=optimizer, warm=warm)
    wall, thread = time.perf_counter(), time.process_time()
    outcome = run(experiment, 0)
    found: dict[str, Any] = {"model": name, "rate": rate, "decay": decay, "rows": rows, "seconds": round(time.perf_counter() - wall, 1)}
    found |= {"cpu_seconds": round(time.process_time() - thread, 1), "broke": outcome.broke}
    for kind in KINDS:
        for column in ("residual", "stored"):
            found[f"{kind}.{column}"] = max(values(outcome.trace, f"charges.{kind}.{column}"), default=None)
        found[f"{kind}.flow"] = (values(outcome.trace, f"charges.{kind}.flow") or [None])[-1]
    for wrong in ("qk_full", "gate_down"):
        kept = sorted(values(outcome.trace, f"charges.wrong.{wrong}.residual"))
        found |= {f"{wrong}.largest": kept[-1], f"{wrong}.smallest": kept[0]}
    found["excluded"] = {word.rsplit(".", 1)[-1]: int(values(outcome.trace, word)[0]) for word in columns(outcome.trace, "charges.excluded.")}
    found["lost_in_rounding"] = [kind for kind in KINDS if values(outcome.trace, f"charges.{kind}.broken.rounding")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--looks", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("model rate decay rows | judged vo qk up_down norm_gain | stored: the same | wrong: qk gate | flow: largest | seconds (cpu)", flush=True)
    for name, options in models().items():
        if asked.only is not None and name not in asked.only:
            continue
        for rate, decay, rows in settings(name):
            one = measured(name, options, rate, decay, rows, asked.looks)
            append_jsonl(RESULTS, one)
            judged, stored = (" ".join("–" if one[f"{k}.{c}"] is None else f"{one[f'{k}.{c}']:.1e}" for k in KINDS) for c in ("residual", "stored"))
            wrong = " ".join(f"{one[f'{w}.smallest']:.2f}–{one[f'{w}.largest']:.2f}" for w in ("qk_full", "gate_down"))
            flow = max(one[f"{kind}.flow"] or 0.0 for kind in KINDS)
            note = f" lost in rounding: {', '.join(one['lost_in_rounding'])}" if one["lost_in_rounding"] else ""
            print(f"{name} {rate} {decay} {rows} | {judged} | {stored} | {wrong} | {flow:.4f} | {one['seconds']} ({one['cpu_seconds']}){note}", flush=True)


if __name__ == "__main__":
    main()
