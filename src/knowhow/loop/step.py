"""The only training loop: a generator that yields after each optimizer step, so a notebook or a test can stop, look and go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from knowhow.loop.machine import has_bf16, quick_attention
from knowhow.loop.optim import Optim, Schedule
from knowhow.loop.world import World
from knowhow.protocols import Batches, Objective, Observer
from knowhow.types import Batch, StepInfo

Precision = Literal["auto", "float32", "bf16"]
Attention = Literal["auto", "torch"]


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """`steps` is the last step's number; `start` the last one already done; `attention` torch: never ours (bf16 on a CPU rounds a little differently)."""

    steps: int
    start: int = 0
    tokens_seen: int = 0
    clip: float = 1.0
    precision: Precision = "auto"
    attention: Attention = "auto"
    world: World = field(default_factory=World)


def train(
    model: torch.nn.Module,
    objective: Objective,
    batches: Batches,
    optim: Optim,
    factor: Schedule,
    spec: LoopSpec,
    observers: Sequence[Observer] = (),
) -> Iterator[StepInfo]:
    """Steps start+1 … steps. The loss of a step is the sum over its microbatches divided by its supervised units, never a mean of means.

    Raises FloatingPointError at a loss or a gradient that is not finite, before the update: the weights are still the last good ones.
    """
    model.train()
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    seen = spec.tokens_seen
    stream = iter(batches)
    for step in range(spec.start + 1, spec.steps + 1):
        micro = next(stream)
        units = sum(objective.units(batch) for batch in micro)
        optim.clear()
        sums = _accumulate(model, objective, [to_device(batch, device) for batch in micro[spec.world.rank :: spec.world.size]], units, spec)
        spec.world.sum_gradients(parameters)
        sums = spec.world.sum_values(sums)
        loss = sums.pop("loss") / units
        if loss != loss or abs(loss) == float("inf"):
            raise FloatingPointError(f"the loss is {loss} at step {step}")
        seen += sum(int(batch.mask_BT.sum()) for batch in micro)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not norm < float("inf"):
            raise FloatingPointError(f"the gradient is {norm} at step {step}")
        lr = optim.scale(factor(step))
        info = StepInfo(step, seen, loss, {name: value / units for name, value in sums.items()}, lr, norm, model, micro, objective, units)
        watching = [observer for observer in observers if observer.due(step)]
        info.rates = optim.rates(model) if watching else {}
        for observer in watching:
            observer.before(info)
        if norm > spec.clip:
            info.clipped = spec.clip / (norm + 1e-6)
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], info.clipped)
        optim.step()
        for observer in watching:
            observer.after(info)
        yield info


def _accumulate(model: torch.nn.Module, objective: Objective, micro: Sequence[Batch], units: float, spec: LoopSpec) -> dict[str, float]:
    sums: dict[str, float] = {"loss": 0.0}
    device = next(model.parameters()).device.type
    # leaving the outermost autocast forgets the bf16 copies of the weights: inside this one they are made once a step, not once a microbatch
    with torch.autocast(device, enabled=False):
        for batch in micro:
            with autocast(device, spec.precision), quick_attention(device) if spec.attention == "auto" else nullcontext():
                loss, metrics = objective(model, batch)
            (loss / units).backward()
            sums["loss"] += float(loss.detach())
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def autocast(device: str, precision: Precision) -> AbstractContextManager[None]:
    """bf16 autocast where `uses_bf16`."""
    return torch.autocast(device, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()


def uses_bf16(device: str, precision: Precision) -> bool:
    """On request, or on `auto` where the device multiplies bf16 in hardware: elsewhere it is a hundred times slower than float32."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch

    def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    return replace(
        batch,
        tokens_BT=batch.tokens_BT.to(device, non_blocking=True),
        mask_BT=batch.mask_BT.to(device, non_blocking=True),
        targets_BT=moved(batch.targets_BT),
        labels=moved(batch.labels),
        onset_BK=moved(batch.onset_BK),
        weight_B=moved(batch.weight_B),
        rewards=moved(batch.rewards),
        teacher_logits=moved(batch.teacher_logits),
    )
