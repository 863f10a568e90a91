"""Which attribution of training rows foretells retraining: linear datamodelling score by method, for full training and LoRA, and planted label errors found.

    python bench/data_attribution.py [--seeds 3] [--subsets 50] [--drivers 4]

A tiny Llama that has read unlabelled requests (filler words and two key words of one label) is taught their labels, a tenth of which are wrong, and
taught again on halves of them. Every test request has a near-duplicate among the training rows: its fillers, with keys of another label. One record
per seed and way of training in bench/results/data_attribution.jsonl; what is there already is not done again. About twelve minutes of one core.
Shape letters: N training rows, M test rows, S subsets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from knowhow.adapt.classify import Classify
from knowhow.adapt.lm import NextToken
from knowhow.data import batch
from knowhow.explain.influence import row_losses
from knowhow.explain.influence import scores as influence
from knowhow.explain.influence.datamodel import drivers, lds, outcomes, subsets
from knowhow.explain.influence.kfac import curvature
from knowhow.explain.influence.per_example import Keep, Projection, gradients
from knowhow.explain.influence.scores import Influence, Sides
from knowhow.explain.probes import gather
from knowhow.files import append_jsonl, read_jsonl
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.model import adapters, infer, load, toys
from knowhow.types import Batch

RESULTS = Path(__file__).parent / "results" / "data_attribution.jsonl"
LABELS = ("refund", "delivery", "account", "repair")
KEYS, FILLERS, TRAIN, TEST, WRONG = 10, 40, 128, 40, 0.1
STEP_ROWS, EPOCHS, KEPT = 16, 12, 5
WAYS = {"full": 3e-3, "lora": 4e-3}
WIDTH = 1024


@dataclass(frozen=True)
class Case:
    """Rows of one seed and the base they are taught to; `wrong` N: labels that were changed."""

    seed: int
    base: str
    texts: list[str]
    labels: np.ndarray
    wrong: np.ndarray
    rows: batch.Rows
    pad: int

    def batches(self, chosen: np.ndarray) -> list[dict[str, torch.Tensor]]:
        return [as_rows(batch.collate(self.rows, part, pad=self.pad, language_model=False)) for part in np.array_split(chosen, max(1, len(chosen) // 32))]


def as_rows(made: Batch) -> dict[str, torch.Tensor]:
    assert made.labels is not None
    return {"input_ids": made.tokens_BT, "attention_mask": made.mask_BT.long(), "labels": made.labels}


def words(drawn: np.random.Generator, count: int) -> list[str]:
    parts = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    return ["".join(drawn.choice(parts, 3)) for _ in range(count)]


def case(seed: int, home: Path) -> Case:
    """Rows, and a base that has read unlabelled ones."""
    drawn = np.random.default_rng([seed, 77])
    keys, fillers = np.array(words(drawn, len(LABELS) * KEYS)).reshape(len(LABELS), KEYS), words(drawn, FILLERS)
    labels = drawn.integers(len(LABELS), size=TRAIN + TEST + 600)
    around = [list(drawn.choice(fillers, 5, replace=False)) for _ in labels]
    for test, train_row in enumerate(drawn.choice(TRAIN, TEST, replace=False)):
        around[TRAIN + test] = around[train_row]
        labels[TRAIN + test] = (labels[train_row] + drawn.integers(1, len(LABELS))) % len(LABELS)
    texts = []
    for label, fill in zip(labels, around, strict=True):
        at, pair = int(drawn.integers(1, 5)), drawn.choice(keys[label], 2, replace=False)
        texts.append(" ".join([*fill[:at], pair[0], *fill[at:], pair[1]]))
    folder = toys.twin("llama", home / f"twin-{seed}", vocab=600, seed=seed, lines=tuple(texts))
    loaded = load.load(str(folder))
    tokens = infer.encode(loaded.tokenizer, texts, context=64)
    pad, count = loaded.tokenizer.pad_token_id, TRAIN + TEST
    read = batch.rows([[*row, loaded.tokenizer.eos_token_id] for row in tokens[count:]], [str(at) for at in range(600)])
    fit(loaded.model, NextToken("lm"), stream(read, np.arange(600), seed, pad, words=True), 700, 5e-3)
    base = home / f"base-{seed}"
    load.save(loaded, base)
    wrong = np.zeros(TRAIN, bool)
    wrong[drawn.choice(TRAIN, round(WRONG * TRAIN), replace=False)] = True
    given = labels[:count].copy()
    given[:TRAIN][wrong] = (given[:TRAIN][wrong] + drawn.integers(1, len(LABELS), size=int(wrong.sum()))) % len(LABELS)
    rows = batch.rows(tokens[:count], [str(at) for at in range(count)], labels=given.astype(np.int64))
    return Case(seed, str(base), texts[:count], given, wrong, rows, pad)


def stream(rows: batch.Rows, chosen: np.ndarray, seed: int, pad: int, *, words: bool = False) -> Iterator[list[Batch]]:
    """Steps in an order that hangs on the seed alone: two subsets read the rows that they share in the same order."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        order = order[np.isin(order, chosen)]
        for start in range(0, len(order), STEP_ROWS):
            yield [batch.collate(rows, order[start : start + STEP_ROWS], pad=pad, language_model=words)]
        epoch += 1


def fit(model: torch.nn.Module, objective, batches, steps: int, lr: float) -> list[tuple[dict[str, torch.Tensor], float]]:
    """Trains, and gives `KEPT` checkpoints with their learning rates."""
    optim, kept = Optim(model, OptimSpec(lr)), []
    for info in train(model, objective, batches, optim, schedule("cosine", steps, warmup=0.1), LoopSpec(steps, precision="float32")):
        if info.step % max(1, steps // KEPT) == 0:
            kept.append(({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, info.lr))
    model.eval()
    return kept


def taught(one: Case, way: str, chosen: np.ndarray, seed: int) -> tuple[load.Loaded, list[tuple[dict[str, torch.Tensor], float]]]:
    loaded = load.load(one.base, head="classifier", labels=LABELS, seed=seed)
    if way == "lora":
        loaded = adapters.add_lora(loaded, rank=4, alpha=8, seed=seed)
    steps = EPOCHS * -(-len(chosen) // STEP_ROWS)
    return loaded, fit(loaded.model, Classify(), stream(one.rows, chosen, seed, one.pad), steps, WAYS[way])


def margins(one: Case, way: str, mask_N: np.ndarray, seed: int) -> np.ndarray:
    loaded, _ = taught(one, way, np.flatnonzero(mask_N), seed)
    with torch.no_grad():
        return np.concatenate([-row_losses.of_margin(loaded.model, rows).numpy() for rows in one.batches(np.arange(TRAIN, TRAIN + TEST))])


def methods(one: Case, way: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float], float]:
    """Scores NM by method, self-influence N (high for rows that look wrong), seconds, and the accuracy on test rows."""
    loaded, kept = taught(one, way, np.arange(TRAIN), one.seed)
    model, took = loaded.model, {}
    sides = Sides(one.batches(np.arange(TRAIN)), one.batches(np.arange(TRAIN, TRAIN + TEST)), row_losses.of_labels, row_losses.of_margin)
    found: dict[str, Influence] = {}
    for name, make in {
        "TracIn": lambda: influence.tracin(model, sides, kept),
        "TracIn, projected": lambda: influence.tracin(model, sides, kept, project=Projection(WIDTH)),
        "gradients, last": lambda: influence.tracin(model, sides, kept[-1:]),
        "EK-FAC": lambda: influence.ekfac(model, sides, curvature(model, row_losses.every_class(len(LABELS)), sides.train)),
        "EK-FAC, drawn labels": lambda: influence.ekfac(model, sides, curvature(model, [row_losses.drawn(one.seed)], sides.train)),
        "projected (TRAK)": lambda: trak(model, sides),
    }.items():
        start = time.monotonic()
        found[name] = make()
        took[name] = round(time.monotonic() - start, 2)
    scores = {name: each.scores for name, each in found.items()}
    own = {name: each.own for name, each in found.items() if name != "TracIn, projected"}
    train_NP, test_MP = gradients(model, row_losses.of_labels, sides.train), gradients(model, row_losses.of_margin, sides.test)
    scores["gradient cosine"] = influence.cosine(train_NP, test_MP)
    likeness = influence.tfidf(one.texts[:TRAIN], one.texts[TRAIN:])
    plain = [[{name: value for name, value in rows.items() if name != "labels"} for rows in side] for side in (sides.train, sides.test)]
    shown = [torch.from_numpy(gather(model, side).values_LND[-1]) for side in plain]
    hidden, (left, right) = influence.cosine(*shown), (one.labels[:TRAIN], one.labels[TRAIN:])
    scores |= {"TF-IDF": likeness, "TF-IDF by label": influence.by_label(likeness, left, right)}
    scores |= {"embedding": hidden, "embedding by label": influence.by_label(hidden, left, right)}
    drawn = np.random.default_rng([one.seed, 5])
    scores |= {"random": drawn.normal(size=hidden.shape), "permuted EK-FAC": scores["EK-FAC"][drawn.permutation(TRAIN)]}
    with torch.no_grad():
        own["loss"] = np.concatenate([row_losses.of_labels(model, rows).numpy() for rows in sides.train])
        hits = np.concatenate([(model(rows["input_ids"], rows["attention_mask"]).logits.argmax(1) == rows["labels"]).numpy() for rows in sides.test])
    within = influence.by_label(influence.tfidf(one.texts[:TRAIN], one.texts[:TRAIN]) * (1 - np.eye(TRAIN)), left, left)
    own["TF-IDF neighbours"] = -np.take_along_axis(within, np.argsort(-np.abs(within), 1)[:, :10], 1).sum(1)
    own["random"] = drawn.normal(size=TRAIN)
    return scores, own, took, float(hits.mean())


def trak(model: torch.nn.Module, sides: Sides) -> Influence:
    keep = Keep(project=Projection(WIDTH))
    train_NK, test_MK, kernel_NK = (
        gradients(model, loss, side, keep)
        for loss, side in ((row_losses.of_labels, sides.train), (row_losses.of_margin, sides.test), (row_losses.of_margin, sides.train))
    )
    return influence.projected(train_NK, test_MK, kernel_NK)


def measured(one: Case, way: str, asked: argparse.Namespace) -> dict[str, object]:
    start = time.process_time()
    scores, own, took, accuracy = methods(one, way)
    masks = subsets(TRAIN, asked.subsets, seed=one.seed)
    found = outcomes(masks, lambda mask, seed: margins(one, way, mask, seed), seeds=(one.seed,))
    again = margins(one, way, masks[0], one.seed + 1000)
    row: dict[str, object] = {
        "seed": one.seed, "way": way, "train": TRAIN, "test": TEST, "wrong": int(one.wrong.sum()), "subsets": asked.subsets, "epochs": EPOCHS,
        "accuracy": round(accuracy, 3), "other_seed": round(float(stats.spearmanr(found[0], again).statistic), 3), "seconds": took,
    }  # fmt: skip
    row["lds"] = {}
    for name, each in scores.items():
        said = lds(each, masks, found, seed=one.seed)
        spans = {"wide": [said.wide.low, said.wide.high], "null": [said.null.low, said.null.high]}
        row["lds"][name] = {"value": said.mean.value, "low": said.mean.low, "high": said.mean.high, **spans}
    row["errors_auc"] = {name: float(roc_auc_score(one.wrong, each)) for name, each in own.items()}
    if asked.drivers:
        at = int(np.argsort(np.abs(scores["EK-FAC"]).max(0))[-TEST // 4])
        told = drivers(scores["EK-FAC"][:, at], k=6, retrain=lambda mask, seed: margins(one, way, mask, seed), test=at, seeds=range(asked.drivers))
        row["drivers"] = [
            {"claim": f.claim, "effect": f.effect, "control": f.control, "difference": [f.interval.low, f.interval.high], "verdict": f.verdict}
            for f in told.findings
        ]
    row["core_seconds"] = round(time.process_time() - start, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subsets", type=int, default=50)
    parser.add_argument("--drivers", type=int, default=4, help="seeds of the leave-out check of one worked example; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["seed"], row["way"]) for row in read_jsonl(asked.out) if row["subsets"] == asked.subsets}
    left = [(seed, way) for seed in range(asked.seeds) for way in WAYS if (seed, way) not in done]
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[int, Case] = {}
        for seed, way in left:
            if seed not in cases:
                cases[seed] = case(seed, Path(folder))
            if (seed, way) == left[0]:
                start = time.process_time()
                margins(cases[seed], way, subsets(TRAIN, 1)[0], seed)
                # a check trains four times, on nearly all rows: twice what a half takes
                minutes = len(left) * (time.process_time() - start) * (asked.subsets + 8 * asked.drivers) / 60
                print(f"{len(left)} cases, {asked.subsets} + {4 * asked.drivers} retrainings each: about {minutes:.1f} minutes of one core", flush=True)
            row = measured(cases[seed], way, asked)
            append_jsonl(asked.out, row)
            print(f"seed {seed}  {way}  accuracy {row['accuracy']}  {row['core_seconds']} s", flush=True)
    summary(asked)


def summary(asked: argparse.Namespace) -> None:
    """The mean over seeds, and the range of the seeds."""
    for way in WAYS:
        rows = [row for row in read_jsonl(asked.out) if row["way"] == way and row["subsets"] == asked.subsets]
        for kind in ("lds", "errors_auc"):
            for name in rows[0][kind] if rows else ():
                values = [float("nan") if (value := row[kind][name]["value"] if kind == "lds" else row[kind][name]) is None else value for row in rows]
                print(f"{way:5} {kind:10} {name:22} {np.mean(values):+.3f}  seeds {' '.join(f'{value:+.3f}' for value in values)}")


if __name__ == "__main__":
    main()
