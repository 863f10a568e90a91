"""What general English did the model lose? The rise of its NLL on a text sample that ships with the project.

The sample: passages of public-domain novels (1840–1920) that no base of this project was trained on; the first row of `general.jsonl.xz`
says where it is from. Shape letters: N passages.
"""

from __future__ import annotations

import json
import lzma
from importlib import resources
from typing import Any

import numpy as np

from knowhow.maths.statistics import bootstrap, ratio
from knowhow.types import Interval


def general_text() -> list[str]:
    """The passages, about 250 words each."""
    return [row["text"] for row in _rows()[1:]]


def general_sources() -> list[str]:
    """The book each passage is from, in the same order (clusters for an interval over books)."""
    return [row["source"] for row in _rows()[1:]]


def provenance() -> dict[str, Any]:
    """Source, licence and how the sample was drawn."""
    return _rows()[0]


def forgetting(
    nll_before_N: np.ndarray,
    nll_after_N: np.ndarray,
    counts_N: np.ndarray,
    clusters_N: np.ndarray | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Rise of the mean NLL, nats per token: (Σ after − Σ before) / Σ tokens, with a paired cluster-bootstrap interval.

    NLLs are sums per passage in nats under the same tokenizer, `counts_N` its tokens; each passage is a unit unless `clusters_N` says more."""
    rise_N = np.asarray(nll_after_N, dtype=np.float64) - np.asarray(nll_before_N, dtype=np.float64)
    tokens_N = np.asarray(counts_N, dtype=np.float64)
    units_N = np.arange(len(rise_N)) if clusters_N is None else np.asarray(clusters_N)
    return bootstrap(lambda w_DN: ratio(w_DN @ rise_N, w_DN @ tokens_N), units_N, draws=draws, seed=seed, confidence=confidence, vectorised=True)


def _rows() -> list[dict[str, Any]]:
    packed = resources.files("knowhow.evaluate").joinpath("general.jsonl.xz").read_bytes()
    return [json.loads(line) for line in lzma.decompress(packed).decode().splitlines()]
