"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from knowhow.loop.machine import has_bf16
from knowhow.loop.muon import Muon
from knowhow.types import Rate

Schedule = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class OptimSpec:
    """`lr` for all, `head_lr` for parameters whose name holds one of `head_names`, `muon_lr` for hidden matrices under Muon (Jordan 2024; None: AdamW).

    `rule` sgd: W ← W − lr·velocity, velocity ← momentum·velocity + gradient + decay·W; what laws about plain gradient descent are checked with.
    `decayed` all: vectors and embeddings are decayed too."""

    lr: float
    weight_decay: float = 0.0
    rule: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0
    decayed: Literal["matrices", "all"] = "matrices"
    betas: tuple[float, float] = (0.9, 0.95)
    head_lr: float | None = None
    head_names: tuple[str, ...] = ("score", "classifier", "modules_to_save")
    muon_lr: float | None = None


def facts(spec: OptimSpec) -> dict[str, float]:
    """What laws read of an optimizer before a run, but its rate: `adam` 1 where AdamW moves every weight; momentum is β₁ then."""
    adam = spec.rule == "adamw"
    return {
        "weight_decay": spec.weight_decay,
        "momentum": spec.betas[0] if adam else spec.momentum,
        "beta2": spec.betas[1] if adam else 0.0,
        "adam": float(adam and spec.muon_lr is None),
    }


class Optim:
    """One or two torch optimizers behind one step; learning rates are the group's `initial_lr` × the schedule's factor."""

    def __init__(self, model: torch.nn.Module, spec: OptimSpec) -> None:
        """Vectors (norms, biases) and embeddings are not decayed unless told. Raises ValueError when nothing is trainable."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("no trainable parameter")
        table = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        muon = [p for name, p in named if spec.muon_lr and p.ndim == 2 and id(p) not in table and not _is_head(name, spec)]
        rest = [(name, p) for name, p in named if all(p is not other for other in muon)]
        groups = []
        for head in (False, True):
            for decay in (False, True):
                chosen = [p for name, p in rest if _is_head(name, spec) == head and (spec.decayed == "all" or (p.ndim >= 2 and id(p) not in table)) == decay]
                lr = spec.head_lr if head and spec.head_lr else spec.lr
                if chosen:
                    groups.append({"params": chosen, "lr": lr, "weight_decay": spec.weight_decay if decay else 0.0})
        self.parts: list[torch.optim.Optimizer] = []
        if groups:
            self.parts.append(_made(groups, spec))
        if muon:
            quick = torch.bfloat16 if has_bf16(muon[0].device.type) else torch.float32
            self.parts.append(Muon(muon, lr=spec.muon_lr, weight_decay=spec.weight_decay, dtype=quick))
        for part in self.parts:
            for group in part.param_groups:
                group["initial_lr"] = group["lr"]

    def scale(self, factor: float) -> float:
        """Set every learning rate to initial × factor; returns the first group's."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["initial_lr"] * factor
        return float(self.parts[0].param_groups[0]["lr"])

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def clear(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def rates(self, model: torch.nn.Module) -> dict[str, Rate]:
        """How each trained parameter of `model` moves at this step, by name; a tied one stands under its first name."""
        rules = {torch.optim.AdamW: "adamw", torch.optim.SGD: "sgd", Muon: "muon"}
        found = {}
        for part in self.parts:
            for group in part.param_groups:
                momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
                rate = Rate(float(group["lr"]), float(group["weight_decay"]), rules[type(part)], float(momentum))
                found |= {id(parameter): rate for parameter in group["params"]}
        return {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}

    def state(self) -> dict[str, torch.Tensor]:
        """Flat tensors `part.parameter.name`, ready for safetensors."""
        flat = {}
        for at, part in enumerate(self.parts):
            for index, values in part.state_dict()["state"].items():
                for name, value in values.items():
                    flat[f"{at}.{index}.{name}"] = value if isinstance(value, torch.Tensor) else torch.tensor(float(value))
        return flat

    def restore(self, flat: Mapping[str, torch.Tensor]) -> None:
        for at, part in enumerate(self.parts):
            whole: dict[str, Any] = part.state_dict()
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in flat.items():
                where, index, name = key.split(".", 2)
                if int(where) == at:
                    state.setdefault(int(index), {})[name] = value.clone()
            whole["state"] = state
            part.load_state_dict(whole)


def schedule(kind: Literal["cosine", "wsd", "constant"], steps: int, *, warmup: float, decay: float = 0.2, floor: float = 0.0) -> Schedule:
    """Factor of the base rate at step 1…steps. Warm-up is linear; cosine falls over the rest (Loshchilov 2017); wsd holds, then falls
    linearly over the last `decay` share (Hu 2024, Hägele 2024)."""
    warm = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        if kind == "constant":
            return 1.0
        if kind == "wsd":
            left = (steps - step + 1) / max(1, round(decay * steps))
            return floor + (1 - floor) * min(1.0, left)
        share = (step - warm) / max(1, steps - warm)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return factor


def _made(groups: list[dict[str, Any]], spec: OptimSpec) -> torch.optim.Optimizer:
    if spec.rule == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum)
    return torch.optim.AdamW(groups, betas=spec.betas, eps=1e-8, fused=True)


def _is_head(name: str, spec: OptimSpec) -> bool:
    return any(part in name.split(".") for part in spec.head_names)
