"""Data parallelism: one process, or `torchrun --nproc-per-node N` (gloo on CPUs, nccl on accelerators)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes files and draws progress."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add gradients over all processes, in one flat message per type."""
        if self.size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters if p.requires_grad]
        flat = torch.cat([grad.reshape(-1).float() for grad in grads])
        dist.all_reduce(flat)
        for parameter, part in zip([p for p in parameters if p.requires_grad], flat.split([grad.numel() for grad in grads])):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def sum_values(self, values: dict[str, float]) -> dict[str, float]:
        """Add named numbers over all processes; every process must bring the same names."""
        if self.size == 1:
            return values
        flat = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(flat)
        return dict(zip(sorted(values), flat.tolist()))

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def start_world() -> World:
    """Join the processes that torchrun started; a single process otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size())
