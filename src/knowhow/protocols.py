"""The verbs: what an extension must be able to do. Classes elsewhere are final or one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from knowhow.types import Batch, Diagnosis, Example, Prediction, Predictions, Scored, StepInfo, Trace

if TYPE_CHECKING:
    import numpy as np
    import torch

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`; `total` 0 when unknown. Stages call it often; whoever passes it in decides what to draw."""


@runtime_checkable
class Objective(Protocol):
    """A loss. Returns the *sum* over supervised units and metrics that are sums too; the loop divides by `units` over the whole step."""

    name: str

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]: ...

    def units(self, batch: Batch) -> float:
        """Supervised tokens, or the weight of the examples."""


@runtime_checkable
class Observer(Protocol):
    """Looks, never touches: weights and random state are bit-identical with and without it."""

    name: str

    def due(self, step: int) -> bool: ...

    def before(self, info: StepInfo) -> None:
        """Weights, batch and gradients before clipping."""

    def after(self, info: StepInfo) -> None:
        """After the update."""

    def rows(self) -> Sequence[Mapping[str, float]]:
        """What it kept, oldest first."""


@runtime_checkable
class Batches(Protocol):
    """An endless, resumable stream: each item is the list of microbatches of one optimizer step."""

    def __iter__(self) -> Iterator[Sequence[Batch]]: ...

    def state(self) -> dict[str, int]: ...

    def restore(self, state: Mapping[str, int]) -> None: ...


@runtime_checkable
class Law(Protocol):
    """Reads numbers, never a model: predictions from what was measured before a run, verdicts from what observers kept of it."""

    name: str
    statement: str

    def predict(self, diagnosis: Diagnosis) -> Sequence[Prediction]: ...

    def score(self, predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]: ...


@runtime_checkable
class Compressor(Protocol):
    name: str

    def __call__(self, model: torch.nn.Module, calibration: Iterable[Batch]) -> torch.nn.Module: ...


@runtime_checkable
class Scorer(Protocol):
    """One metric over predictions. `gold`: see evaluate/scorers; weights count copies of a row."""

    name: str
    higher_is_better: bool

    def __call__(self, gold: Any, predictions: Predictions, weights_N: np.ndarray) -> float: ...


@runtime_checkable
class Source(Protocol):
    """Where rows come from: streams raw records, never holding two copies."""

    def rows(self) -> Iterator[Mapping[str, Any]]: ...


@runtime_checkable
class Tokenizer(Protocol):
    """What data needs of a tokenizer: texts in, token ids out (no special tokens added)."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]: ...


@runtime_checkable
class Generator(Protocol):
    def __call__(self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int) -> list[str]: ...


@runtime_checkable
class Embedder(Protocol):
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → ND float32, rows of unit length."""


@runtime_checkable
class Domain(Protocol):
    """A field of work (malware, claims): sources, event model, synthesiser, vocabulary; found by entry point `knowhow.domains`."""

    name: str

    def generate(self, options: Mapping[str, Any], *, seed: int, n: int) -> Iterable[Example]: ...

    def read(self, path: Path, options: Mapping[str, Any]) -> Iterable[Example]: ...

    def vocabulary(self) -> Sequence[str]:
        """Words that should cost one token each."""
        ...

    def stressors(self) -> Mapping[str, Callable[[Example, int], Example | None]]:
        """Rewrites that leave the answer what it is: name → (example, seed) → the example rewritten, None where it cannot be."""
