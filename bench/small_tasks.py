"""Small tasks that several benches build specialists for: lines of TREC, SST-2 or Banking77 as rows of text and label, or generated traces."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.recipe import Recipe

DATA = Path(os.environ.get("KNOWHOW_DATA", ""))
VALID = 300
BATCH = 1024


def lines_of(task: str) -> list[dict[str, str]]:
    if task == "banking77":
        rows = list(csv.reader((DATA / "tasks/banking77/train.tsv").open(), delimiter="\t"))
        return [{"text": text, "label": label} for label, text in rows if label < "card_n"]
    name = {"trec": "trec/train.txt", "sst2": "sst2/train.txt"}[task]
    pairs = [line.split(" ", 1) for line in (DATA / "tasks" / name).read_text("latin-1").splitlines()]
    return [{"text": text, "label": f"class {label}"} for label, text in pairs]


def write_parts(lines: list[dict[str, str]], order: np.ndarray, folder: Path, *, train: int, valid: int) -> dict[str, str]:
    """Files of rows in this order: the first `valid` to validate on, `train` behind them, the last ten to test on. Returns part → path."""
    for part, chosen in {"train": order[valid : valid + train], "valid": order[:valid], "test": order[-10:]}.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(lines[at]) + "\n" for at in chosen))
    return {part: str(folder / f"{part}.jsonl") for part in ("train", "valid", "test")}


def recipe_of(model: str, task: str, rows: int, folder: Path, *, lr: float | str, steps: int, seed: int, shuffle: int = 0) -> Recipe:
    """A small build of the classes that its rows show: `rows` to train on, VALID to choose by, BATCH tokens a step. `shuffle`: another draw of rows."""
    phase = {"lr": lr, "steps": steps, "batch_tokens": BATCH, "microbatch_tokens": BATCH, "weight_decay": 0.05}
    said: dict[str, Any] = {"name": "small", "base": {"model": model, "context": 256}, "adapt": [phase], "seed": seed}
    if task == "traces":
        made = {"domain": "malware", "options": {"tier": "O"}, "train": rows, "valid": VALID, "test": 10}
        return Recipe.model_validate({**said, "task": {"kind": "classify", "many": True}, "data": {"generate": made, "audit": False}})
    random = np.random.default_rng([seed, shuffle, 7])
    lines = lines_of(task)
    order = random.permutation(len(lines))
    labels = sorted({lines[at]["label"] for at in order[VALID : VALID + rows]})
    files = write_parts(lines, np.array([at for at in order if lines[at]["label"] in labels]), folder, train=rows, valid=VALID)
    return Recipe.model_validate({**said, "task": {"kind": "classify", "labels": labels}, "data": {"audit": False, **files}})
