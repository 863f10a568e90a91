"""Models compiled from RASP programs, whose circuits are known exactly (tracr, Lindner et al. 2023, arXiv 2301.05062).

One program is three files: NAME.json (vocabulary, sizes, labels of the stream's dimensions), NAME.npz (haiku weights and the compiler's own
activations), NAME.circuit.json (which variables each part reads and writes). The weights become a BERT without norms, zero-padded to a width
that its heads divide; its logits are the last stream itself. Shape letters: B rows, T tokens (BOS first), D stream, H heads, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForTokenClassification

from knowhow.errors import UsageError
from knowhow.files import read_json
from knowhow.model.quiet import quiet


@dataclass(frozen=True, slots=True)
class Compiled:
    """`variables`: name → dimensions of the stream; `reads`: (part, port) → variables it reads, a part being `a1.h0` (ports q, k, v) or `m0` (port mlp),
    with parts outside the circuit reading nothing; `writes`: part → variables; `output`: the program's own variable; `shown`: the compiler's own pass."""

    name: str
    model: torch.nn.Module
    ids: Mapping[str, int]
    words: tuple[str, ...]
    longest: int
    variables: Mapping[str, tuple[int, ...]]
    reads: Mapping[tuple[str, str], frozenset[str]]
    writes: Mapping[str, tuple[str, ...]]
    output: str
    test_input: tuple[str, ...]
    shown: Mapping[str, np.ndarray]

    def tokens(self, rows: Sequence[Sequence[str]]) -> torch.Tensor:
        """Ids BT of rows of equal length, BOS before each."""
        return torch.tensor([[self.ids["BOS"], *(self.ids[word] for word in row)] for row in rows])


def programs(folder: Path) -> list[str]:
    """Names of the programs in a folder."""
    return sorted(path.name.removesuffix(".circuit.json") for path in folder.glob("*.circuit.json"))


def read(folder: Path, name: str) -> Compiled:
    """One program. Raises UsageError when a file is missing or is not of this format."""
    paths = [folder / f"{name}{ending}" for ending in (".json", ".circuit.json", ".npz")]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"no file {path.name}", allowed=", ".join(programs(folder)) or "a folder of compiled programs", where=str(folder))
    try:
        about, circuit = read_json(paths[0]), read_json(paths[1])
        with np.load(paths[2], allow_pickle=False) as arrays:
            weights = {key: arrays[key] for key in arrays.files}
        return _built(about, circuit, weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UsageError(f"the program {name} cannot be read: {error}", allowed="tracr weights, labels and circuit", where=str(folder)) from error


def _built(about: dict[str, Any], circuit: dict[str, Any], weights: Mapping[str, np.ndarray]) -> Compiled:
    dimensions: dict[str, list[int]] = {}
    for at, label in enumerate(about["residual_labels"]):
        dimensions.setdefault(label.split(":")[0], []).append(at)
    parts = {row["node"]: row for row in circuit["components"]}
    reads: dict[tuple[str, str], frozenset[str]] = {}
    for layer in range(about["num_layers"]):
        for head in range(about["num_heads"]):
            part = f"a{layer}.h{head}"
            reads |= {(part, port): frozenset(parts.get(part, {}).get(port, ())) for port in ("q", "k", "v")}
        reads[f"m{layer}", "mlp"] = frozenset(parts.get(f"m{layer}", {}).get("reads", ()))
    writes = {"embed": tuple(circuit["embed_writes"]), **{name: tuple(row["writes"]) for name, row in parts.items()}}
    shown = {key: value for key, value in weights.items() if key.startswith("_")}
    variables = {name: tuple(where) for name, where in dimensions.items()}
    last = circuit["components"][-1]["writes"]
    output = next((name for name in last if name.startswith(about["name"].split("_")[0])), last[0])
    return Compiled(
        about["name"], _bert(about, weights), about["input_encoding"], tuple(about["vocab"]), about["max_seq_len"], variables, reads, writes, output,
        tuple(about["test_input"]), shown,
    )  # fmt: skip


def _bert(about: dict[str, Any], weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
    heads, size = about["num_heads"], about["key_size"]
    wide = max(size, math.ceil(about["d_model"] / heads))
    width, hidden = wide * heads, about["mlp_hidden"]
    config = BertConfig(
        vocab_size=weights["token_embed/embeddings"].shape[0], hidden_size=width, num_hidden_layers=about["num_layers"], num_attention_heads=heads,
        intermediate_size=hidden, hidden_act=about["activation"], max_position_embeddings=weights["pos_embed/embeddings"].shape[0], type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, is_decoder=bool(about["causal"]), num_labels=width,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        model = BertForTokenClassification(config)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    _fill(state["bert.embeddings.word_embeddings.weight"], weights["token_embed/embeddings"])
    _fill(state["bert.embeddings.position_embeddings.weight"], weights["pos_embed/embeddings"])
    for layer in range(about["num_layers"]):
        ours, theirs = f"bert.encoder.layer.{layer}", f"transformer/layer_{layer}"
        for kind in ("query", "key", "value"):
            scale = math.sqrt(wide / size) if kind == "query" else 1.0
            matrix, bias = weights[f"{theirs}/attn/{kind}/w"] * scale, weights[f"{theirs}/attn/{kind}/b"] * scale
            for head in range(heads):
                rows, here = slice(head * wide, head * wide + size), slice(head * size, (head + 1) * size)
                _fill(state[f"{ours}.attention.self.{kind}.weight"][rows], matrix[:, here].T)
                _fill(state[f"{ours}.attention.self.{kind}.bias"][rows], bias[here])
        for head in range(heads):
            columns, here = slice(head * wide, head * wide + size), slice(head * size, (head + 1) * size)
            _fill(state[f"{ours}.attention.output.dense.weight"][:, columns], weights[f"{theirs}/attn/linear/w"][here].T)
        _fill(state[f"{ours}.attention.output.dense.bias"], weights[f"{theirs}/attn/linear/b"])
        for name, path in (("linear_1", "intermediate.dense"), ("linear_2", "output.dense")):
            _fill(state[f"{ours}.{path}.weight"], weights[f"{theirs}/mlp/{name}/w"].T)
            _fill(state[f"{ours}.{path}.bias"], weights[f"{theirs}/mlp/{name}/b"])
    state["classifier.weight"] = torch.eye(width)
    model.load_state_dict(state)
    model.bert.embeddings.LayerNorm = torch.nn.Identity()
    for block in model.bert.encoder.layer:
        block.attention.output.LayerNorm = block.output.LayerNorm = torch.nn.Identity()
    return model.eval()


def _fill(into: torch.Tensor, values: np.ndarray) -> None:
    """Values in the first rows and columns; what is beyond stays 0."""
    into[tuple(slice(0, size) for size in values.shape)] = torch.from_numpy(np.ascontiguousarray(values))
