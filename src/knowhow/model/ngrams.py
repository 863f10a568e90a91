"""A linear model of n-grams that answers beside a transformer: its logits are added to the transformer's.

Shape letters: N texts, F n-grams, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from knowhow.errors import SafetyError
from knowhow.files import read_json, write_atomic

WEIGHTS, WORDS = "ngrams.safetensors", "ngrams.json"
WORD = r"(?u)<\w+>|\w(?:[\w.:/\\@#$+-]*\w)?|[^\w\s]"
"""A word keeps what joins names inside it (kernel32.createfilea, 0x4012ac, C:\\temp, a@b.org), <marks> stay whole; other signs stand alone."""
ANALYSERS: Mapping[str, Mapping[str, Any]] = {
    "word": {"token_pattern": WORD, "ngram_range": (1, 3)},
    "char_wb": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}
"""Words in their order; letters within words, for what words that nobody has seen are made of."""
LIMIT = 30_000
"""n-grams of one kind, the commonest first: what a label is told by occurs more than a few times."""


@dataclass(frozen=True, slots=True)
class Block:
    """n-grams of one kind (a key of ANALYSERS) and their inverse document frequencies F."""

    analyser: str
    grams: tuple[str, ...]
    idf_F: np.ndarray

    def features(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Sublinear TF-IDF with unit rows, NF float32."""
        vectoriser = CountVectorizer(**ANALYSERS[self.analyser], vocabulary=self.grams, dtype=np.float32)
        counts_NF = sparse.csr_matrix(vectoriser.transform(texts))
        counts_NF.data = 1 + np.log(counts_NF.data)
        return normalize(counts_NF @ sparse.diags(self.idf_F), copy=False).tocsr()


@dataclass(frozen=True, slots=True)
class NGrams:
    """`weight_FC`: float16, as stored, over the blocks' n-grams in their order; `bias_C`, float32."""

    blocks: tuple[Block, ...]
    weight_FC: np.ndarray
    bias_C: np.ndarray
    labels: tuple[str, ...]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """NC float32."""
        return np.asarray(features(self.blocks, texts) @ self.weight_FC.astype(np.float32) + self.bias_C, dtype=np.float32)

    def ordered(self, labels: Sequence[str]) -> NGrams:
        """The same with its columns in the order of `labels`."""
        order = [self.labels.index(label) for label in labels]
        return replace(self, weight_FC=self.weight_FC[:, order], bias_C=self.bias_C[order], labels=tuple(labels))


def features(blocks: Sequence[Block], texts: Sequence[str]) -> sparse.csr_matrix:
    """The blocks' features side by side, NF."""
    return sparse.hstack([block.features(texts) for block in blocks], format="csr")


def blocks(texts: Sequence[str], analysers: Sequence[str], limit: int = LIMIT) -> tuple[Block, ...]:
    """n-grams that occur in at least two of the texts, the commonest `limit` of each kind."""
    return tuple(found for analyser in analysers if (found := _block(texts, analyser, limit)) is not None)


def _block(texts: Sequence[str], analyser: str, limit: int) -> Block | None:
    vectoriser = CountVectorizer(**ANALYSERS[analyser], min_df=2, dtype=np.float32)
    try:
        counts_NF = sparse.csr_matrix(vectoriser.fit_transform(texts))
    except ValueError:  # no n-gram occurs twice
        return None
    frequency_F = np.bincount(counts_NF.indices, minlength=counts_NF.shape[1])
    kept = np.sort(np.argsort(-frequency_F, kind="stable")[:limit])
    idf_F = np.log((1 + len(texts)) / (1 + frequency_F[kept])) + 1
    return Block(analyser, tuple(vectoriser.get_feature_names_out()[kept].tolist()), idf_F.astype(np.float32))


def save(ngrams: NGrams, folder: Path) -> None:
    document = {"labels": ngrams.labels, "blocks": [{"analyser": block.analyser, "grams": block.grams} for block in ngrams.blocks]}
    write_atomic(folder / WORDS, json.dumps(document, ensure_ascii=True) + "\n")
    save_file({"weight": ngrams.weight_FC, "bias": ngrams.bias_C, **{f"idf.{at}": block.idf_F for at, block in enumerate(ngrams.blocks)}}, folder / WEIGHTS)


def load(folder: Path) -> NGrams | None:
    """What stands in a model's folder; None where nothing does. Raises SafetyError where words and weights do not fit together."""
    if not (folder / WORDS).is_file():
        return None
    try:
        document, arrays = read_json(folder / WORDS), load_file(folder / WEIGHTS)
        labels = tuple(map(str, document["labels"]))
        found = tuple(Block(str(row["analyser"]), tuple(map(str, row["grams"])), arrays[f"idf.{at}"]) for at, row in enumerate(document["blocks"]))
        made = NGrams(found, arrays["weight"], arrays["bias"], labels)
        if made.weight_FC.shape != (sum(len(block.grams) for block in found), len(labels)) or made.bias_C.shape != (len(labels),):
            raise ValueError("sizes differ")
        if any(block.analyser not in ANALYSERS or block.idf_F.shape != (len(set(block.grams)),) or len(block.idf_F) != len(block.grams) for block in found):
            raise ValueError("n-grams twice, or of an unknown kind")
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise SafetyError(f"{WORDS} and {WEIGHTS} do not fit together", fix="get both again from where they came", where=str(folder)) from error
    return made
