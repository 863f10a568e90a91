"""TRL's side of a run, in an environment of its own that knows nothing of knowhow: `python theirs.py ARGUMENTS.json` prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rate import matmul_rate
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

IGNORE = -100


class Clock(TrainerCallback):
    """When each step ended and which of them compiled something."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.graphs: list[int] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._look()

    def on_step_end(self, *_: object, **__: object) -> None:
        self._look()

    def _look(self) -> None:
        self.ends.append(time.perf_counter())
        self.graphs.append(int(counters["stats"]["unique_graphs"]) + sum(counters["aot_autograd"].values()))


def dataset(path: str) -> Dataset:
    with np.load(path, allow_pickle=False) as held:
        pieces = [slice(start, end) for start, end in itertools.pairwise(held["offsets"])]
        labels = np.where(held["supervised"], held["tokens"], IGNORE)
        return Dataset.from_dict({"input_ids": [held["tokens"][at].tolist() for at in pieces], "labels": [labels[at].tolist() for at in pieces]})


def counted(trainer: SFTTrainer) -> list[int]:
    """Supervised tokens of each microbatch, filled in as the trainer draws them."""
    inner, counts = trainer.data_collator, []

    def collate(examples: Sequence[Any]) -> Any:
        batch = inner(examples)
        counts.append(int((batch["labels"][..., 1:] != IGNORE).sum()))
        return batch

    trainer.data_collator = collate
    return counts


@torch.no_grad()
def leak(trainer: SFTTrainer) -> float:
    """Largest change of a token's log probability when its row stands alone: not zero when packed rows see each other."""
    batch = dict(next(iter(trainer.get_train_dataloader())))
    if "position_ids" not in batch:
        return 0.0
    together = trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs[0]
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
    worst = 0.0
    for start, end in itertools.pairwise(starts):
        alone = {"input_ids": batch["input_ids"][:, start:end], "labels": batch["labels"][:, start:end]}
        single = trainer.model(**alone, use_cache=False, fused_lm_head=True).log_probs[0]
        worst = max(worst, float((single - together[start : end - 1]).abs().max()))
    return worst


def main(asked: Mapping[str, Any]) -> dict[str, Any]:
    config = SFTConfig(output_dir=asked["output"], use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, seed=0, **asked["config"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, **asked.get("load", {}))
    clock = Clock()
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    trainer = SFTTrainer(model, config, train_dataset=dataset(asked["rows"]), processing_class=tokenizer, callbacks=[clock])
    leaked = leak(trainer) if asked["check_leak"] else None
    counts, before = counted(trainer), matmul_rate()
    trainer.train()
    accumulate, steps = config.gradient_accumulation_steps, len(clock.ends) - 1
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "tokens": [sum(counts[at * accumulate : (at + 1) * accumulate]) for at in range(steps)],
        "seconds": np.diff(clock.ends).tolist(),
        "compiled": [now > then for then, now in itertools.pairwise(clock.graphs)],
        "rates": [before, matmul_rate()],
        "threads": torch.get_num_threads(),
        "leak": leaked,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
