"""How long the audit of a million short rows takes, and how much memory: `python bench/audit_scale.py [rows]`.

Rows of 4 to 16 words of a Zipf vocabulary, a fifth of them from templates, with planted exact copies (5%), near copies (5%), leaks from train into
test and wrong labels (10%). Prints JSON: seconds of reading and storing, seconds of the audit, peak memory of the process, and what was found
beside what was planted.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from knowhow.data import audit, fields, sources, store
from knowhow.types import Task

LABELS = ("deliver", "refund", "stop", "query", "praise")


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """A label owns the words of rank ≡ label mod 5; half a row's words come from its label."""
    rng = np.random.Generator(np.random.PCG64(seed))
    vocabulary = np.array(["".join(rng.choice(list("abcdefghijklmnoprstuvw"), rng.integers(3, 10))) for _ in range(20_000)])
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    weights /= weights.sum()
    recent: list[dict[str, str]] = []
    while count:
        drawn = rng.choice(len(vocabulary), (1000, 16), p=weights)
        lengths, labels, kinds = rng.integers(4, 17, 1000), rng.integers(len(LABELS), size=1000), rng.random(1000)
        for picks, length, label, kind in zip(drawn[:count], lengths, labels, kinds):
            if recent and kind < 0.10:
                row = dict(recent[int(kind * 1e6) % len(recent)])
                row["text"] += "" if kind < 0.05 else " again"
            else:
                own = np.where(np.arange(16) % 2 == 0, picks // 5 * 5 + label, picks)
                words = vocabulary[own[:length] % len(vocabulary)]
                text = f"please {words[0]} the {words[1]} of my {words[2]} before {words[3]}" if kind > 0.8 else " ".join(words)
                row = {"text": text, "label": LABELS[(label + (kind > 0.9 and kind < 0.98)) % len(LABELS)]}
            recent = [*recent[-4999:], row] if len(recent) < 5000 else recent
            yield row
        count -= min(count, 1000)


def tokenizer(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8192, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def main(count: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        raw, task = Path(name) / "rows.jsonl", Task("classify", LABELS)
        with raw.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
        began = time.perf_counter()
        mapped = fields.FieldMap(text="text", label="label")
        store.write(Path(name) / "all.arrow", fields.examples(sources.open_source(raw).rows(), mapped, task, origin="rows.jsonl"))
        read = time.perf_counter() - began
        examples = store.Examples(Path(name) / "all.arrow")
        splits = {"train": examples[: count * 9 // 10], "test": examples[count * 9 // 10 :]}
        bpe = tokenizer(examples.texts(range(min(count, 20_000))))
        began, cpu = time.perf_counter(), time.process_time()
        stages: dict[str, float] = {}

        def progress(what: str, done: int, total: int) -> None:
            stages[what] = round(time.perf_counter() - began, 1)

        report = audit.audit(splits, task, tokenizer=lambda texts: [one.ids for one in bpe.encode_batch(list(texts))], context=24, progress=progress)
        spent, busy = time.perf_counter() - began, time.process_time() - cpu
    return {
        "rows": count,
        "bytes": int(sum(map(len, examples.texts(range(min(count, 1000))))) / min(count, 1000) * count),
        "seconds_read_and_store": round(read, 1),
        "seconds_audit": round(spent, 1),
        "cpu_seconds_audit": round(busy, 1),
        "finished_at": stages,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "found": {
            "duplicates": {kind: report["duplicates"][kind] for kind in ("exact", "near")},
            "leakage": {pair: {kind: leak[kind] for kind in ("exact", "near")} for pair, leak in report["leakage"].items()},
            "conflicts": {kind: report["conflicts"][kind] for kind in ("inputs", "rows", "ceiling_accuracy")},
            "label_noise": {kind: report["label_noise"][kind] for kind in ("suspected", "share", "sampled", "accuracy")},
            "truncation": report["truncation"],
        },
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), indent=1))
