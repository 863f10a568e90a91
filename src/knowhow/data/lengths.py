"""How many tokens rows take, and how many rows do not fit the model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from knowhow.data.chat import prompt_text
from knowhow.protocols import Tokenizer
from knowhow.types import Example, Task

SAMPLE = 20_000
"""Rows tokenised for the quantiles; beside them every row that could be too long is tokenised, up to LONG of them, the longest first."""
LONG = 20_000
_BATCH = 256


def truncation(
    splits: Mapping[str, Sequence[Example]], sizes: np.ndarray, task: Task, *, tokenizer: Tokenizer, context: int | None, seed: int
) -> tuple[dict[str, Any], float | None]:
    """({over, share, longest, p50, p95, p99, context, sampled}, tokens per word) over all N rows.

    `sizes`: N UTF-8 bytes of each row. A token is at least one byte, so a row of at most `context` bytes fits and need not be tokenised; `over`
    is exact while at most LONG rows are larger than that, scaled up from the longest beyond. `longest` is exact under the same condition."""
    rng = np.random.Generator(np.random.PCG64(seed))
    total = len(sizes)
    sample = np.sort(rng.choice(total, min(SAMPLE, total), replace=False))
    lengths, words = _measured(splits, sample, task, tokenizer)
    largest = np.argsort(-sizes, kind="stable")[: min(200, total)]
    suspects = np.flatnonzero(sizes > context) if context is not None else largest
    checked = suspects[np.argsort(-sizes[suspects], kind="stable")[:LONG]]
    long_lengths = _measured(splits, np.sort(checked), task, tokenizer)[0] if len(checked) else np.zeros(0, np.int64)
    over = 0
    if context is not None and len(checked):
        # Beyond LONG rows the rest of the suspects are judged by the sample, of which they are a known share.
        over = int((long_lengths > context).sum()) if len(checked) == len(suspects) else round(float((lengths > context).mean()) * total)
    quantiles = np.percentile(lengths, [50, 95, 99]) if len(lengths) else [0, 0, 0]
    report = {
        "over": over,
        "share": over / max(total, 1),
        "longest": int(max(lengths.max(initial=0), long_lengths.max(initial=0))),
        **{name: float(value) for name, value in zip(("p50", "p95", "p99"), quantiles)},
        "context": context,
        "sampled": len(sample),
    }
    return report, float(lengths.sum() / words) if words else None


def sizes(splits: Mapping[str, Sequence[Example]], task: Task, *, seen: Callable[[int], None] | None = None) -> np.ndarray:
    """N UTF-8 bytes of what the model reads (prompt, second text and, for texts, the longest answer)."""
    measured = []
    for examples in splits.values():
        for example in examples:
            measured.append(len(_text(example, task).encode("utf-8", "surrogatepass")))
            if seen is not None and len(measured) % 10_000 == 0:
                seen(len(measured))
    return np.array(measured, np.int64)


def _measured(splits: Mapping[str, Sequence[Example]], rows: np.ndarray, task: Task, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """(tokens of each of `rows`, sorted numbers over all parts; words in all of them)."""
    lengths, words, batch = [], 0, []
    for text in _texts(splits, rows, task):
        words += len(text.split())
        batch.append(text)
        if len(batch) == _BATCH:
            lengths += map(len, tokenizer(batch))
            batch = []
    if batch:
        lengths += map(len, tokenizer(batch))
    return np.array(lengths, np.int64), words


def _texts(splits: Mapping[str, Sequence[Example]], rows: np.ndarray, task: Task) -> Iterator[str]:
    start = 0
    for examples in splits.values():
        inside = rows[(rows >= start) & (rows < start + len(examples))] - start
        yield from (_text(examples[int(row)], task) for row in inside)
        start += len(examples)


def _text(example: Example, task: Task) -> str:
    return prompt_text(example, task) + max((completion.text for completion in example.completions), key=len, default="")
