"""The life of a language model in log-spaced looks: losses by corpus and position, spectra of the weights, roles of the heads.

Shapes: B batch, T tokens, H heads, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from knowhow.data.batch import IGNORE
from knowhow.loop.step import Precision, autocast
from knowhow.maths.spectra import spread
from knowhow.model.loaded import device_of, hidden_matrices, site_of
from knowhow.types import Batch, StepInfo

EARLY, LATE = 50, 500


class Life:
    """Satisfies Observer. Rows hold {step, tokens, train_loss, valid.<corpus>, in_context.<corpus>, <site>.norm, <site>.stable_rank, heads…}."""

    name = "life"

    def __init__(self, steps: int, valid: Mapping[str, Sequence[Batch]], precision: Precision = "auto", looks: int = 20) -> None:
        spaced = {round(steps ** (k / (looks - 1))) for k in range(looks)}
        self.steps = spaced | {1, steps}
        self.valid = valid
        self.precision = precision
        self._rows: list[dict[str, float]] = []

    def due(self, step: int) -> bool:
        return step in self.steps

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        row = {"step": info.step, "tokens": info.tokens_seen, "train_loss": info.loss, "grad_norm": info.grad_norm}
        row |= self.validation(info.model) | spectra(info.model) | head_roles(info.model)
        self._rows.append({name: round(value, 6) for name, value in row.items()})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows

    def validation(self, model: torch.nn.Module) -> dict[str, float]:
        """Mean validation loss per corpus (nats per token), and the in-context score: loss late in the window minus loss early (Olsson 2022)."""
        row = {}
        for name, batches in self.valid.items():
            total_T, count_T = position_losses(model, batches, self.precision)
            row[f"valid.{name}"] = float(total_T.sum() / count_T.sum())
            loss_T = total_T / count_T
            if len(loss_T) > LATE + 10 and bool((count_T > 0).all()):
                row[f"in_context.{name}"] = float(loss_T[LATE - 10 : LATE + 10].mean() - loss_T[EARLY - 10 : EARLY + 10].mean())
        return row


def position_losses(model: torch.nn.Module, batches: Sequence[Batch], precision: Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of −log p of the next token at each position of the rows, in nats, and the number of targets there: T float64 each, T the longest row."""
    device = device_of(model)
    longest = max(batch.tokens_BT.shape[1] for batch in batches)
    total_T, count_T = torch.zeros(longest, dtype=torch.float64), torch.zeros(longest, dtype=torch.float64)
    with torch.inference_mode(), autocast(device.type, precision):
        for batch in batches:
            logits, targets_BT = model(input_ids=batch.tokens_BT.to(device)).logits, batch.targets_BT.to(device)
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction="none", ignore_index=IGNORE)
            width = targets_BT.shape[1]
            total_T[:width] += nll.view_as(targets_BT).double().sum(0).cpu()
            count_T[:width] += (targets_BT != IGNORE).sum(0).cpu()
    return total_T, count_T


def mean_loss(model: torch.nn.Module, batches: Sequence[Batch], precision: Precision) -> float:
    """Mean −log p of the next token over all targets, in nats."""
    total_T, count_T = position_losses(model, batches, precision)
    return float(total_T.sum() / count_T.sum())


def spectra(model: torch.nn.Module) -> dict[str, float]:
    """Frobenius norm and stable rank of every hidden matrix (see maths/spectra.py)."""
    row = {}
    for name, weight in hidden_matrices(model).items():
        found = spread(weight)
        row |= {f"{site_of(name)}.norm": found.norm, f"{site_of(name)}.stable_rank": found.stable_rank}
    return row


def head_roles(model: torch.nn.Module, length: int = 64) -> dict[str, float]:
    """Per head, on random tokens repeated once: mean attention to the previous token, to the token after the first occurrence
    (induction, Olsson 2022) and to the first token (sink, Gu 2024)."""
    reader = copy.deepcopy(model).eval()
    reader.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(0)
    half = torch.randint(4, model.config.vocab_size, (4, length), generator=random).to(device_of(model))
    with torch.inference_mode():
        patterns = reader(input_ids=torch.cat([half, half], 1), output_attentions=True).attentions
    row = {}
    for layer, pattern_BHTT in enumerate(patterns):
        pattern_HTT = pattern_BHTT.float().mean(0)
        previous = pattern_HTT.diagonal(-1, 1, 2).mean(-1)
        induction = pattern_HTT.diagonal(-(length - 1), 1, 2)[:, 1:].mean(-1)
        sink = pattern_HTT[:, 4:, 0].mean(-1)
        for head in range(len(pattern_HTT)):
            site = f"layers.{layer}.heads.{head}"
            row |= {f"{site}.previous": float(previous[head]), f"{site}.induction": float(induction[head]), f"{site}.sink": float(sink[head])}
    return row
