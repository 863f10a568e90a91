"""What an experiment works on, and where each system is made.

Systems of numbers, not tokens, hold their inputs BD in `Batch.tokens_BT` and ones in `mask_BT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.protocols import Batches, Objective
from knowhow.types import Batch, Measurement


@dataclass(frozen=True, slots=True)
class System:
    """A model at its start, its objective, an endless stream of steps, and what is known before the run: facts of the run (name → number) and
    measurements at sites."""

    model: torch.nn.Module
    objective: Objective
    batches: Batches
    facts: Mapping[str, float] = field(default_factory=dict)
    sites: Sequence[Measurement] = ()


MAKERS = {
    "yours": "knowhow.experiments.yours:yours",
    "markov-decoder": "knowhow.experiments.language:markov_decoder",
    "bigram-chain": "knowhow.experiments.chains:bigram_chain",
    "copying": "knowhow.experiments.copying:copying",
    "modular-sum": "knowhow.experiments.modular:modular_sum",
    "backcopy": "knowhow.experiments.backcopy:backcopy",
    "charges": "knowhow.experiments.charges:charges",
    "deep-linear": "knowhow.experiments.linear:deep_linear",
    "in-context-regression": "knowhow.experiments.linear:in_context_regression",
    "perceptron": "knowhow.experiments.perceptron:perceptron",
    "row-normalised": "knowhow.experiments.normalised:row_normalised",
    "lora-decoder": "knowhow.experiments.lora:lora_decoder",
    "scaled-net": "knowhow.experiments.lazy:scaled_net",
    "lazy-decoder": "knowhow.experiments.lazy:lazy_decoder",
    "batch-race": "knowhow.experiments.race:batch_race",
    "clusters": "knowhow.experiments.clusters:clusters",
    "reduced-rank": "knowhow.experiments.regression:reduced_rank",
    "linear-regression": "knowhow.experiments.regression:linear",
    "sparse-features": "knowhow.experiments.features:sparse_features",
}
"""Name → the function that makes it: (seed, **options) → System. The model and the rows depend on the seed alone."""


def system(name: str, options: Mapping[str, Any], seed: int) -> System:
    """A system by name. Raises UsageError for a name that is not known."""
    if name not in MAKERS:
        raise UsageError(f"the system {name!r}", allowed=", ".join(MAKERS))
    where, made = MAKERS[name].split(":")
    maker: Callable[..., System] = vars(import_module(where))[made]
    return maker(seed, **options)


class Drawn:
    """Satisfies Batches: step k's microbatch is `draw(generator)` with a generator seeded by (seed, k); the same step, the same rows."""

    def __init__(self, draw: Callable[[torch.Generator], Batch], seed: int) -> None:
        self._draw, self._seed, self._step = draw, seed, 0

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        while True:
            self._step += 1
            yield [self._draw(torch.Generator().manual_seed(self._seed * 1_000_003 + self._step))]

    def state(self) -> dict[str, int]:
        return {"step": self._step}

    def restore(self, state: Mapping[str, int]) -> None:
        self._step = state["step"]


def fixed(batch: Batch) -> Drawn:
    """The same batch at every step (full-batch descent)."""
    return Drawn(lambda _: batch, 0)


def numbers(inputs_BD: torch.Tensor, labels: torch.Tensor) -> Batch:
    """A batch of a system of numbers."""
    return Batch(inputs_BD, torch.ones(len(inputs_BD), 1, dtype=torch.long), labels=labels)


@dataclass(frozen=True)
class MeanSquare:
    """½|f(x) − y|² summed over outputs and rows; `half` False: without the ½."""

    name: str = "mean-square"
    half: bool = True

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        loss = (model(batch.tokens_BT) - batch.labels).square().sum()
        return loss / 2 if self.half else loss, {}

    def units(self, batch: Batch) -> float:
        return float(len(batch.tokens_BT))


@dataclass(frozen=True)
class CrossEntropy:
    """−log p(class) summed over rows; the model gives logits BC."""

    name: str = "cross-entropy"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        logits_BC = model(batch.tokens_BT)
        right = (logits_BC.argmax(-1) == batch.labels).float().sum()
        return torch.nn.functional.cross_entropy(logits_BC, batch.labels, reduction="sum"), {"accuracy": right.detach()}

    def units(self, batch: Batch) -> float:
        return float(len(batch.tokens_BT))
