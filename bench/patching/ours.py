"""Our side, in a process of its own: `python ours.py ARGUMENTS.json` prints one line of JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from side import answer, keep, measured, rows
from transformers import AutoModelForCausalLM, PreTrainedModel

from knowhow.explain.sweep import sweep
from knowhow.model.taps import At, Edit, tap

ROUNDS = 7


def load(asked: Mapping[str, Any]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()


def difference(asked: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits BV → B."""
    first, second = asked["pair"]
    return lambda logits_BV: logits_BV[:, first] - logits_BV[:, second]


def swept(model: PreTrainedModel, asked: Mapping[str, Any], positions: list[int] | None = None) -> torch.Tensor:
    """Metric LP."""
    base, source = rows(asked)
    return sweep(model, {"input_ids": base}, {"input_ids": source}, metric=difference(asked), positions=positions).values[0]


def parity(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model, (base, source), patch = load(asked), rows(asked), asked["patch"]
    depth, metric = model.config.num_hidden_layers, difference(asked)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        if asked["kinds"]:
            with tap(model, *(f"layers.*.{kind}" for kind in asked["kinds"])) as seen:
                found["logits"] = model(input_ids=base).logits
            found |= {f"layers.{layer}.{kind}": seen[f"layers.{layer}.{kind}"] for layer in range(depth) for kind in asked["kinds"]}
            found["sweep"] = swept(model, asked)
        with tap(model, "layers.*.resid_pre", "layers.*.attn.z") as given:
            model(input_ids=source)
        stream, z = f"layers.{patch['layer']}.resid_pre", f"layers.{patch['layer']}.attn.z"
        at, head = [patch["position"]], [patch["head"]]
        with tap(model, edits=[Edit(stream, lambda _: given[stream][:, at], At(positions=at))]):
            found["patched stream"] = model(input_ids=base).logits
        with tap(model, edits=[Edit(z, lambda _: given[z][:, :, head], At(heads=head))]):
            found["patched z"] = model(input_ids=base).logits
    if asked["kinds"]:
        names = [f"layers.{layer}.resid_pre" for layer in range(depth)]
        with tap(model, *names, grad=True) as run:
            total = metric(model(input_ids=base).logits[:, -1]).sum()
        slopes = torch.autograd.grad(total, [run[name] for name in names])
        found["attribution"] = torch.stack([((given[name] - run[name]) * slope).sum(-1)[0] for name, slope in zip(names, slopes, strict=True)])
    return keep(asked, found)


def speed(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model = load(asked)
    swept(model, asked, [0])
    return measured(lambda: swept(model, asked))


@torch.no_grad()
def taps(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Processor seconds of forward passes of a model never tapped, of one tapped before, and of one whose stream is being captured."""
    bare, used = load(asked), load(asked)
    base, _ = rows(asked)

    def capture() -> torch.Tensor:
        with tap(used, "layers.*.resid_pre", "layers.*.resid_post"):
            return used(input_ids=base, use_cache=False).logits

    captured = capture()
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in used.modules()), "a hook stayed"
    runs = {"bare": lambda: bare(input_ids=base, use_cache=False).logits, "unarmed": lambda: used(input_ids=base, use_cache=False).logits, "captured": capture}
    assert torch.equal(captured, runs["bare"]()), "capturing changed the logits"
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS):
        for name in sorted(runs, key=lambda name: (list(runs).index(name) + turn) % len(runs)):
            begun = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - begun)
    return {"seconds": seconds}


if __name__ == "__main__":
    answer({"parity": parity, "speed": speed, "taps": taps})
