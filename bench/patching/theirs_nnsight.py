"""nnsight's side, in an environment of its own that knows nothing of knowhow: `python theirs_nnsight.py ARGUMENTS.json` prints one line of JSON."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import nnsight
import torch
from nnsight.modeling.transformers import TransformersModel
from side import answer, keep, measured, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

PARTS = {"gpt2": ("attn", "ln_2", "attn.c_proj"), "llama": ("self_attn", "post_attention_layernorm", "self_attn.o_proj")}
"""Below a block: attention, the norm before the MLP, what z goes through."""


def load(asked: Mapping[str, Any], attention: str = "sdpa") -> TransformersModel:
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation=attention).eval()
    return TransformersModel(model, tokenizer=AutoTokenizer.from_pretrained(asked["model"]))


def blocks_of(model: TransformersModel, asked: Mapping[str, Any]) -> Sequence[Any]:
    return model.transformer.h if asked["family"] == "gpt2" else model.model.layers


def part(block: Any, path: str) -> Any:
    return block.get(path)


@torch.no_grad()
def swept(model: TransformersModel, asked: Mapping[str, Any], invokes: int, last: bool, cells: int | None = None) -> torch.Tensor:
    """Metric LP, flat. The layer × position map of nnsight's documentation: the source run cached once, `invokes` patches in one pass.

    `last`: the head computes logits of the last position alone; `cells`: only so many."""
    base, source = rows(asked)
    blocks, (first, second) = blocks_of(model, asked), asked["pair"]
    options: dict[str, Any] = {"use_cache": False} | ({"logits_to_keep": 1} if last else {})
    with model.trace(source, **options):
        given = nnsight.save([block.input.detach().clone() for block in blocks])
    every = list(itertools.product(range(len(blocks)), range(base.shape[1])))[:cells]
    found = []
    for begin in range(0, len(every), invokes):
        chunk = every[begin : begin + invokes]
        with model.trace(**options) as tracer:
            values = nnsight.save(torch.zeros(len(chunk)))
            for index, (layer, position) in enumerate(chunk):
                with tracer.invoke(base):
                    blocks[layer].input[:, position, :] = given[layer][:, position, :]
                    logits = model.output.logits[0, -1]
                    values[index] = logits[first] - logits[second]
        found.append(values)
    return torch.cat(found)


def parity(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model, (base, source), patch = load(asked, "eager"), rows(asked), asked["patch"]
    blocks, (_, _, head_out) = blocks_of(model, asked), PARTS[asked["family"]]
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        if asked["kinds"]:
            found |= activations(model, asked)
            found["sweep"] = swept(model, asked, 4, True).view(len(blocks), -1)
        block, at = blocks[patch["layer"]], patch["position"]
        size = model.config.head_dim if asked["family"] == "llama" else model.config.n_embd // model.config.n_head
        columns = slice(patch["head"] * size, (patch["head"] + 1) * size)
        with model.trace(source):
            stream = block.input.detach().clone().save()
            z = part(block, head_out).input.detach().clone().save()
        with model.trace(base):
            block.input[:, at, :] = stream[:, at, :]
            found["patched stream"] = model.output.logits.save()
        with model.trace(base):
            part(block, head_out).input[:, :, columns] = z[:, :, columns]
            found["patched z"] = model.output.logits.save()
    if asked["kinds"]:
        found["attribution"] = attribution(model, asked)
    return keep(asked, found)


def activations(model: TransformersModel, asked: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Values at every site, read in the order in which they are computed."""
    attention, norm, _ = PARTS[asked["family"]]
    blocks, found = blocks_of(model, asked), {}
    with model.trace(rows(asked)[0]):
        kept = nnsight.save([])
        for block in blocks:
            pre = block.input.clone()
            product = part(block, attention).source.attention_interface_1
            query, key, value = product.inputs[0][1:4]
            z, pattern = product.output
            mid = part(block, norm).input.clone()
            out = block.mlp.output.clone()
            kept.append([pre, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), pattern, z, mid, out, block.output.clone()])
        logits = model.output.logits.save()
    found["logits"] = logits
    for layer, values in enumerate(kept):
        found |= {f"layers.{layer}.{kind}": value for kind, value in zip(asked["kinds"], values, strict=True)}
    return found


def attribution(model: TransformersModel, asked: Mapping[str, Any]) -> torch.Tensor:
    """Gradient × (source - base) of the stream, LT."""
    base, source = rows(asked)
    blocks, (first, second) = blocks_of(model, asked), asked["pair"]
    with torch.no_grad(), model.trace(source):
        given = nnsight.save([block.input.detach().clone() for block in blocks])
    with model.trace(base):
        values = nnsight.save([block.input for block in blocks])
        slopes = nnsight.save([])
        logits = model.output.logits[:, -1]
        with (logits[:, first] - logits[:, second]).sum().backward():
            for value in reversed(values):
                slopes.append(value.grad)
    return torch.stack([((there - here) * slope).sum(-1)[0] for there, here, slope in zip(given, values, reversed(slopes), strict=True)])


def probe(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Seconds of a patch under each setting, from so many patches."""
    model, seconds = load(asked), {}
    for name, (invokes, last) in asked["settings"].items():
        swept(model, asked, invokes, last, min(invokes, asked["cells"]))
        begun = time.perf_counter()
        swept(model, asked, invokes, last, asked["cells"])
        seconds[name] = (time.perf_counter() - begun) / asked["cells"]
    return {"seconds": seconds}


def speed(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model, (invokes, last) = load(asked), asked["setting"]
    swept(model, asked, invokes, last, 2 * invokes)
    return measured(lambda: swept(model, asked, invokes, last).view(-1, len(asked["base"])))


if __name__ == "__main__":
    answer({"parity": parity, "speed": speed, "probe": probe})
