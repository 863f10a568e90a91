"""Small tasks that several benches build specialists for: lines of TREC, SST-2 or Banking77 as rows of text and label."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("KNOWHOW_DATA", ""))


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
