"""A running mean of the weights (Polyak & Juditsky 1992; exponential form): less noisy than the last ones, for the price of one copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """Exponential mean of a model's trainable parameters. Early on the mean is over all steps so far: decay never exceeds (1 + n) / (10 + n)."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._named.items()}

    def update(self) -> None:
        """Call after each optimizer step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._mean.values()), [p.detach() for p in self._named.values()], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the mean weights; outside, its own."""
        own = {name: p.detach().clone() for name, p in self._named.items()}
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, torch.Tensor]:
        return {**self._mean, "steps": torch.tensor(float(self.steps))}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.steps = int(state["steps"])
        for name, mean in self._mean.items():
            mean.copy_(state[name])

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])
