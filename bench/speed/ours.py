"""Our side of a run, in a process of its own: `python ours.py ARGUMENTS.json` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rate import matmul_rate
from transformers import LlamaForCausalLM

from knowhow.adapt.lm import NextToken, decoder
from knowhow.data.batch import Rows, TokenBudget, collate
from knowhow.loop.machine import keep_memory
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.types import Batch


@dataclass
class InOrder:
    """Rows as they stand: `accumulate` microbatches of `size` rows a step; satisfies the Batches protocol."""

    rows: Rows
    size: int
    accumulate: int

    def __iter__(self) -> Iterator[list[Batch]]:
        step = self.size * self.accumulate
        for first in range(0, len(self.rows) - step + 1, step):
            chosen = [np.arange(at, at + self.size) for at in range(first, first + step, self.size)]
            yield [collate(self.rows, part, pad=1, language_model=True) for part in chosen]

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: Mapping[str, int]) -> None:
        """It always begins at the beginning."""


def read_rows(path: str) -> Rows:
    with np.load(path, allow_pickle=False) as held:
        offsets = held["offsets"]
        return Rows(held["tokens"], offsets, [str(row) for row in range(len(offsets) - 1)], held["supervised"])


def main(asked: Mapping[str, object]) -> dict[str, object]:
    keep_memory()
    rows = read_rows(str(asked["rows"]))
    model = LlamaForCausalLM.from_pretrained(str(asked["model"]), dtype=torch.float32)
    if asked["in_order"]:
        batches, steps = InOrder(rows, 8, 2), int(asked["steps"])
    else:
        batches = TokenBudget(rows, int(asked["batch_tokens"]), int(asked["microbatch_tokens"]), 1, 0, True)
        steps = batches.steps_per_epoch()
    objective = NextToken("sft", backbone=torch.compile(decoder(model), dynamic=True) if asked["compile"] else None)
    optim = Optim(model, OptimSpec(float(asked["lr"]), betas=(0.9, 0.999)))
    spec = LoopSpec(steps, precision=str(asked["precision"]))
    losses, tokens, clock = [], [], []
    before = matmul_rate()
    clock.append(time.perf_counter())
    for info in train(model, objective, batches, optim, lambda step: 1 - (step - 1) / steps, spec):
        clock.append(time.perf_counter())
        losses.append(info.loss)
        tokens.append(int(sum(objective.units(batch) for batch in info.batches)))
    return {"losses": losses, "tokens": tokens, "seconds": np.diff(clock).tolist(), "rates": [before, matmul_rate()], "threads": torch.get_num_threads()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
