"""Networks whose rows are scale-invariant, and the same network without that, on labels from a noisy teacher.

Shape letters: B batch, D inputs, H hidden, C classes.
"""

from __future__ import annotations

import torch

from knowhow.experiments.system import CrossEntropy, Drawn, System, numbers
from knowhow.types import Batch, Measurement


class RowNormalised(torch.nn.Module):
    """A layer without bias, each of its outputs standardised over the batch (`normalised`), tanh, a linear head: rows of `hidden.weight` HD matter by
    their direction alone. Without standardisation their length matters too."""

    def __init__(self, width: int, hidden: int, classes: int, normalised: bool) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(width, hidden, bias=False)
        self.normal = torch.nn.BatchNorm1d(hidden, affine=False, track_running_stats=False) if normalised else torch.nn.Identity()
        self.head = torch.nn.Linear(hidden, classes)

    def forward(self, inputs_BD: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.head(torch.tanh(self.normal(self.hidden(inputs_BD))))
        return logits_BC


def row_normalised(
    seed: int, *, width: int = 64, hidden: int = 32, classes: int = 4, rows: int = 32, noise: float = 0.5, normalised: bool = True, gain: float = 1.0
) -> System:
    """`noise`: share of labels drawn at random; `gain`: the hidden rows' length at the start, in units of the layer's default. Site `hidden.weight`
    holds `invariant_fan_in`: entries of each scale-invariant row."""
    torch.manual_seed(seed)
    teacher_DC = torch.randn(width, classes)
    model = RowNormalised(width, hidden, classes, normalised)
    with torch.no_grad():
        model.hidden.weight.mul_(gain)

    def draw(generator: torch.Generator) -> Batch:
        inputs_BD = torch.randn(rows, width, generator=generator)
        random_B = torch.randint(classes, (rows,), generator=generator)
        labels_B = torch.where(torch.rand(rows, generator=generator) < noise, random_B, (inputs_BD @ teacher_DC).argmax(-1))
        return numbers(inputs_BD, labels_B)

    site = Measurement("hidden.weight", "invariant_fan_in", float(width), "entries", hidden)
    return System(model, CrossEntropy(), Drawn(draw, seed), {}, (site,))
