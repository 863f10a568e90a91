"""The largest stable learning rate, predicted before training and measured by bisection: 3 models × 2 tasks.

Diverged: the mean loss of the last 20 of 200 steps above that of the untrained model on the same rows, or no number. Constant rate, AdamW, batches of
512 tokens, clip 1. The rate is bisected in its logarithm to a factor of 1.2 between 1e-4 and 3.

    KNOWHOW_DATA=… python bench/learning_rates.py            # about 40 machine-minutes; appends to bench/results/learning_rates.jsonl and resumes
    KNOWHOW_DATA=… python bench/learning_rates.py --report
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from small_tasks import DATA, lines_of

from knowhow import run
from knowhow.experiments.language import decoder
from knowhow.files import append_jsonl, read_jsonl
from knowhow.laws import learning_rate_ceiling
from knowhow.laws.law import fact
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.model import load
from knowhow.recipe import Recipe
from knowhow.stages import diagnose
from knowhow.stages.phase import phases

RESULTS = Path(__file__).parent / "results" / "learning_rates.jsonl"
STEPS, LAST, TOKENS = 200, 20, 512
LOW, HIGH, FACTOR = 1e-4, 3.0, 1.2


def rows_of(task: str, folder: Path) -> Path:
    """TREC's questions with their classes, or Banking77's as texts to write on from."""
    out = folder / f"{task}.jsonl"
    with out.open("w") as file:
        if task == "trec":
            for line in lines_of(task):
                file.write(json.dumps(line) + "\n")
        else:
            for label, text in csv.reader((DATA / "tasks/banking77/train.tsv").open(), delimiter="\t"):
                file.write(json.dumps({"prompt": text, "completion": label}) + "\n")
    return out


def model_of(name: str, folder: Path) -> str:
    if name == "seedling":
        return name
    if name == "stories260K":
        return str(DATA / "weights/stories260K")
    made = folder / "random"
    if not made.is_dir():
        loaded = load.load("seedling")
        decoder(0, vocab=len(loaded.tokenizer), layers=4, width=128, tied=True).save_pretrained(made)
        loaded.tokenizer.save_pretrained(made)
    return str(made)


def recipe_of(model: str, task: str, data: Path) -> Recipe:
    phase = {"objective": "classify" if task == "trec" else "sft", "lr": 1e-3, "schedule": "constant", "warmup": 0.0, "steps": STEPS}
    return Recipe.model_validate({
        "name": "rates", "base": {"model": model, "context": 128}, "data": {"train": str(data), "audit": False},
        "task": {"kind": "classify" if task == "trec" else "generate"},
        "adapt": [{**phase, "batch_tokens": TOKENS, "microbatch_tokens": TOKENS, "weight_decay": 0.0}],
    })  # fmt: skip


def diverges(phase, rows, lr: float) -> bool:
    loaded = phase.fresh()
    objective = phase.objective(rows, loaded)
    start, losses = None, []
    try:
        steps = LoopSpec(STEPS, clip=1.0, precision="float32")
        for info in train(
            loaded.model, objective, phase.batches(rows, loaded.tokenizer.pad_token_id), Optim(loaded.model, OptimSpec(lr)), lambda _: 1.0, steps
        ):
            losses.append(info.loss)
            start = info.loss if start is None else start
            if info.step >= 60 and min(losses[-30:]) > 3 * max(losses[:3]):
                return True
    except FloatingPointError:
        return True
    first = untrained_loss(phase, rows)
    return not sum(losses[-LAST:]) / LAST < first


def untrained_loss(phase, rows) -> float:
    loaded = phase.fresh()
    objective, total, units = phase.objective(rows, loaded), 0.0, 0.0
    with torch.no_grad():
        for step, micro in enumerate(phase.batches(rows, loaded.tokenizer.pad_token_id)):
            for batch in micro:
                total, units = total + float(objective(loaded.model, batch)[0]), units + objective.units(batch)
            if step >= LAST:
                return total / units
    raise AssertionError


def ceiling(phase, rows) -> tuple[float, list[tuple[float, bool]]]:
    low, high, tried = LOW, HIGH, []
    while high / low > FACTOR:
        lr = math.sqrt(low * high)
        gone = diverges(phase, rows, lr)
        tried.append((lr, gone))
        print(f"    lr {lr:.4g}: {'diverged' if gone else 'stable'}", flush=True)
        low, high = (low, lr) if gone else (lr, high)
    return math.sqrt(low * high), tried


def foreseen(model: str, task: str, folder: Path) -> float:
    """What a build of this base and task would say before training."""
    at, phase = begun(model, task, folder)
    found, _ = diagnose.diagnose(phase, at)
    return learning_rate_ceiling.SCALE * float(fact(found, "start.ceiling") or math.nan)


def begun(model: str, task: str, folder: Path):
    recipe = recipe_of(model_of(model, folder), task, rows_of(task, folder))
    at = run.flow(recipe, runs=folder / "runs", resume=False, start_from=None, progress=lambda *_: None, root=folder, until="base")
    return at, phases(at)[-1]


def report() -> None:
    within = 0
    rows = list(read_jsonl(RESULTS))
    with tempfile.TemporaryDirectory() as where:
        for row in rows:
            value = foreseen(row["model"], row["task"], Path(where))
            ratio = row["ceiling"] / value
            within += 0.5 <= ratio <= 2
            print(
                f"{row['model']} {row['task']}: measured {row['ceiling']:.3g}, predicted {value:.3g} ({ratio:.2f}×), 1e-3 is off {row['ceiling'] / 1e-3:.0f}×"
            )
    print(f"within a factor of two: {within} of {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="predictions by the code as it is, beside what was measured (some minutes)")
    parser.add_argument("--models", nargs="*", default=["stories260K", "random", "seedling"])
    parser.add_argument("--tasks", nargs="*", default=["trec", "banking77"])
    asked = parser.parse_args()
    if asked.report:
        report()
        return
    known = {(row["model"], row["task"]) for row in read_jsonl(RESULTS)}
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for model in asked.models:
            for task in asked.tasks:
                if (model, task) in known:
                    continue
                clock = time.monotonic()
                at, phase = begun(model, task, folder)
                found, _ = diagnose.diagnose(phase, at)
                print(f"{model} {task}: diagnosed in {time.monotonic() - clock:.0f} s", flush=True)
                rows = phase.rows("train")
                measured, tried = ceiling(phase, rows)
                row = {"model": model, "task": task, "ceiling": measured, "tried": tried, "seconds": round(time.monotonic() - clock, 1)}
                line = [[m.site, m.metric, m.value] for m in found.measurements if m.metric.startswith(("line", "start", "noise", "gradient.s", "curv"))]
                append_jsonl(RESULTS, {**row, "measurements": line})
                print(f"{model} {task}: ceiling {measured:.4g}", flush=True)


if __name__ == "__main__":
    main()
