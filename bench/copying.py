"""What lets a small language model copy? Traces as rows of their own or packed into one stream, and the rate of the hidden matrices.

    python bench/copying.py [--tokens 4e6] [--only packed …]

The base's own shape (6 layers, d 256) from random weights, generated traces, one seed. Watched: NLL of variables that the trace has named already
(uniform over all names: 5.55). Appends a record per look to bench/results/copying.jsonl. Cost: about a minute per million tokens on an accelerator, and on
two cores four (with bf16) to twelve.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import TokenBudget
from knowhow.data.windows import Windows, documents, first_documents
from knowhow.domains import find_domain
from knowhow.domains.malware.words import VARIABLES
from knowhow.files import append_jsonl
from knowhow.loop.machine import keep_memory
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.model import load
from knowhow.types import Batch

OPTIONS = {"tier": {"P": 0.1, "O": 0.25, "F": 0.55, "X": 0.1}, "behaviours": "all", "complete": 0.9}
STEP = 4096
LOOK = 100


@dataclass(frozen=True)
class Way:
    """`muon` None: AdamW with `lr` for all."""

    packed: bool = False
    lr: float = 3e-3
    muon: float | None = None
    spread: float = 0.1


WAYS = {
    "packed, AdamW 2e-3": Way(packed=True, lr=2e-3),
    "rows, AdamW 1e-3": Way(lr=1e-3),
    "rows, AdamW 3e-3": Way(),
    "rows, Muon .02": Way(muon=0.02),
    "rows, Muon .02, embeddings .5": Way(muon=0.02, spread=0.5),
    "rows, Muon .005": Way(muon=0.005),
}


def stream(tokenizer, end: int, *, seed: int, count: int) -> np.ndarray:
    """Traces as one array of tokens, `end` after each."""
    made = [example.prompt for example in find_domain("malware").generate(OPTIONS, seed=seed, n=count)]
    return np.concatenate([[*row, end] for row in tokenizer(made, add_special_tokens=False).input_ids]).astype(np.uint16)


def named(batch: Batch, variables: np.ndarray) -> torch.Tensor:
    """BT: the target is a variable that the row has shown before."""
    tokens_BT, targets_BT = batch.tokens_BT.numpy(), batch.targets_BT.numpy()
    marks_BT = np.zeros_like(tokens_BT, bool)
    for row in range(len(tokens_BT)):
        seen: set[int] = set()
        for at, (token, target) in enumerate(zip(tokens_BT[row], targets_BT[row], strict=True)):
            seen.add(token)
            marks_BT[row, at] = target in variables and target in seen
    return torch.from_numpy(marks_BT)


def look(model: LlamaForCausalLM, batches: list[Batch], marks: list[torch.Tensor]) -> float:
    device, total, count = next(model.parameters()).device, 0.0, 0
    model.eval()
    with torch.inference_mode():
        for batch, mark_BT in zip(batches, marks, strict=True):
            logits_ND = model(input_ids=batch.tokens_BT.to(device)).logits[mark_BT.to(device)].float()
            total += float(torch.nn.functional.cross_entropy(logits_ND, batch.targets_BT[mark_BT].to(device), reduction="sum"))
            count += int(mark_BT.sum())
    model.train()
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=4e6)
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    keep_memory()
    seedling = load.load("seedling")
    end = seedling.tokenizer.eos_token_id
    train_N = stream(seedling.tokenizer, end, seed=910002, count=int(asked.tokens / 110))
    variables = {seedling.tokenizer(f" {name}", add_special_tokens=False).input_ids[0] for name in VARIABLES}
    batches = first_documents(stream(seedling.tokenizer, end, seed=910004, count=120), end, 1024, 16_000)
    marks, steps = [named(batch, variables) for batch in batches], int(asked.tokens / STEP)
    for name in asked.only:
        way = WAYS[name]
        torch.manual_seed(0)
        model = LlamaForCausalLM(seedling.model.config).to("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=way.spread)
        stepped = Windows([train_N], [1.0], 512, STEP // 512, STEP // 512, steps, 0)
        source = stepped if way.packed else TokenBudget(documents(train_N, end, 512), STEP, STEP, end, 0, language_model=True)
        optim = Optim(model, OptimSpec(way.lr, weight_decay=0.05, muon_lr=way.muon))
        for info in train(model, NextToken("lm"), source, optim, schedule("constant", steps, warmup=0.02), LoopSpec(steps)):
            if info.step % LOOK == 0 or info.step == steps:
                row = {"way": name, "step": info.step, "tokens": info.tokens_seen, "loss": round(info.loss, 3), "named": round(look(model, batches, marks), 3)}
                append_jsonl(Path(__file__).parent / "results" / "copying.jsonl", row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
