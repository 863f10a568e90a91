"""Classical baselines on the real sandbox traces: 8 families, official time split, the public half of the test rows.

    python bench/real_traces_baseline.py DATA/malware/speakeasy_traces [--threads 2]

Everything is chosen on a tenth of the training sequences. Appends one record to bench/real_traces_baseline.jsonl. About two minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from knowhow.evaluate import baselines, suite
from knowhow.files import append_jsonl, digest
from knowhow.types import EvalResult, Example, Task

FAMILIES = ("clean", "backdoor", "coinminer", "dropper", "keylogger", "ransomware", "rat", "trojan")
TASK = Task("classify", FAMILIES)


def read(folder: Path, split: str) -> list[Example]:
    """Distinct (sequence, family) pairs of one split, weighing their rows; windows_syswow64 is clean."""
    with gzip.open(folder / "sequences.jsonl.gz", "rt") as lines:
        texts = {str(row["seq_id"]): row["tokens"] for row in map(json.loads, lines)}
    with gzip.open(folder / "rows.csv.gz", "rt") as lines:
        rows = [(row["seq_id"], row["family"]) for row in csv.DictReader(lines) if row["split"] == split]
    pairs = Counter((sequence, "clean" if family == "windows_syswow64" else family) for sequence, family in rows)
    return [
        Example(id=f"{sequence}:{family}", prompt=texts[sequence], label=family, group=sequence, weight=count)
        for (sequence, family), count in sorted(pairs.items())
    ]


def parted(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(train, valid): a sequence goes to validation when its digest says so."""
    held = [int(digest(example.group)[:8], 16) < share * 2**32 for example in examples]
    return [example for example, out in zip(examples, held) if not out], [example for example, out in zip(examples, held) if out]


def brief(result: EvalResult) -> dict[str, object]:
    paired = {name: [round(value, 4) for value in (gap.value, gap.low, gap.high)] for name, gap in result.paired.items()}
    value, low, high = (round(number, 4) for number in (result.value, result.low, result.high))
    return {"metric": result.metric, "slice": result.slice, "value": value, "low": low, "high": high, "n": result.n, "paired": paired}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    train, valid = parted(read(arguments.folder, "train"), 0.1)
    test = read(arguments.folder, "test")
    started = time.process_time()
    fitted = baselines.fit_classical(baselines.rows_of(train, TASK), baselines.rows_of(valid, TASK), TASK, limits=baselines.Limits(threads=arguments.threads))
    seconds = time.process_time() - started
    answers = {name: baselines.answers(name, model, test, TASK) for name, model in fitted.items()}
    clusters = np.array([int(example.group) for example in test])
    slices = suite.standard_slices(test, clusters, {int(example.group) for example in train + valid})
    options = suite.Options(draws=2000, metrics=("accuracy", "macro_f1", "auc", "tpr@1e-2", "nll"))
    for name, given in answers.items():
        others = {other: answer for other, answer in answers.items() if other != name}
        results = suite.evaluate(given, test, TASK, baselines=others, slices=slices, clusters_N=clusters, options=options)
        record = {"model": name, "cpu_seconds_all_models": round(seconds, 1), "train": len(train), "valid": len(valid), "test": len(test)}
        append_jsonl(Path(__file__).with_suffix(".jsonl"), {**record, "results": [brief(result) for result in results]})
        for result in results:
            if result.metric in ("accuracy", "macro_f1"):
                print(f"{name:12} {result.slice:14} {result.metric:10} {result.value:.3f} [{result.low:.3f}, {result.high:.3f}] n={result.n}")


if __name__ == "__main__":
    main()
