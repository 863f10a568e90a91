"""Share of this machine's bf16 matrix rate that a whole training step reaches: `python bench/step_share.py [--steps 12]`.

A step is forward, loss, backward, clipping and optimizer of the project's own loop on a Llama with a vocabulary of 8192 and windows of 512 tokens,
8 windows a step, in bf16 autocast. FLOPs of a token are 6·N + 6·L·d·T: N the weights of the matrix products (4d² + 3·d·d_ff a layer, and the head;
2 forward and 4 backward each), and of attention only what lies under the diagonal, 2·(2·T/2·d) a layer forward and twice that backward.
The rate of square products is measured before and after every step; a step is held against the mean of the two.
Lines go to bench/results/step_share.jsonl; a model that is there already is not repeated (--again measures it anew).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "speed"))

from quiet import Others  # noqa: E402
from rate import matmul_rate  # noqa: E402
from rows import VOCABULARY, llama  # noqa: E402

from knowhow.adapt.lm import NextToken  # noqa: E402
from knowhow.data.windows import Windows  # noqa: E402
from knowhow.files import append_jsonl, digest, read_jsonl  # noqa: E402
from knowhow.loop.machine import keep_memory  # noqa: E402
from knowhow.loop.optim import Optim, OptimSpec  # noqa: E402
from knowhow.loop.step import LoopSpec, train  # noqa: E402

RESULTS = HERE / "results" / "step_share.jsonl"
MODELS = {256: (6, 704), 384: (8, 1024), 512: (8, 1408), 768: (6, 2048)}
T, ROWS, WARM = 512, 8, 2
BAR, FROM = 0.5, 384


def flops_per_token(d: int, layers: int, feed_forward: int) -> int:
    return 6 * (layers * (4 * d * d + 3 * d * feed_forward) + VOCABULARY * d) + 6 * layers * d * T


def steps(d: int, count: int) -> Iterator[dict[str, float]]:
    """Seconds of each step after the warm ones, and the rate round it."""
    layers, feed_forward = MODELS[d]
    model = llama(d=d, layers=layers, feed_forward=feed_forward)
    stream = torch.randint(0, VOCABULARY, (T * ROWS * (count + WARM) + 1,), generator=torch.Generator().manual_seed(0)).numpy()
    batches = Windows([stream], [1.0], T, ROWS, ROWS, count + WARM, 0)
    loop = train(model, NextToken(), batches, Optim(model, OptimSpec(1e-3, weight_decay=0.1)), lambda step: 1.0, LoopSpec(count + WARM, precision="bf16"))
    before = matmul_rate(0.6)
    while True:
        begun = time.perf_counter()
        info = next(loop, None)
        if info is None:
            return
        seconds = time.perf_counter() - begun
        after = matmul_rate(0.6)
        if info.step > WARM:
            yield {"seconds": seconds, "rate": (before + after) / 2}
        before = after


def measure(d: int, count: int) -> dict[str, object]:
    layers, feed_forward = MODELS[d]
    work, others = flops_per_token(d, layers, feed_forward) * T * ROWS, Others()
    seen = list(steps(d, count))
    shares = sorted(work / row["seconds"] / row["rate"] for row in seen)
    return {
        "d": d, "layers": layers, "d_ff": feed_forward, "tokens": T * ROWS, "gflop_per_step": work / 1e9, "share": statistics.median(shares),
        "least": shares[0], "most": shares[-1], "seconds": statistics.median(row["seconds"] for row in seen),
        "rate": statistics.median(row["rate"] for row in seen), "steps": count, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "others": others.share(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    keep_memory()
    plan = digest([asked.steps, T, ROWS, MODELS, torch.__version__])[:12]
    known = {} if asked.again else {row["d"]: row for row in read_jsonl(RESULTS) if row["plan"] == plan}
    rate = matmul_rate()
    left = [d for d in MODELS if d not in known]
    cost = sum((flops_per_token(d, *MODELS[d]) * T * ROWS / rate / 0.5 + 0.7) * (asked.steps + WARM) for d in left)
    print(f"bf16 products at {rate / 1e9:.0f} GFLOP/s, load {os.getloadavg()[0]:.1f}; about {cost / 60:.0f} minutes in all", flush=True)
    for d in left:
        known[d] = measure(d, asked.steps)
        append_jsonl(RESULTS, {"plan": plan, **known[d]})
    print(f"{'d':>4} {'layers':>6} {'s/step':>7} {'tokens/s':>9} {'GFLOP/s':>8}   share of the rate, median [least, most]")
    for d, row in sorted(known.items()):
        verdict = f", bar {BAR:.0%} {'met' if row['share'] >= BAR else 'MISSED'}" if d >= FROM else ""
        figures = f"{row['seconds']:7.2f} {row['tokens'] / row['seconds']:9.0f} {row['rate'] / 1e9:8.0f}"
        print(f"{d:4} {row['layers']:6} {figures}   {row['share']:.1%} [{row['least']:.1%}, {row['most']:.1%}]{verdict}")
    return 3 if any(row["share"] < BAR for d, row in known.items() if d >= FROM) else 0


if __name__ == "__main__":
    sys.exit(main())
