"""The gap between a model and its linearisation, where it is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from knowhow.diagnose import bending
from knowhow.model import load, toys
from knowhow.types import Batch


class Squares(torch.nn.Module):
    """Features w² times the token: the gap over a way Δ is |Δ| / 2|w|."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))

    @property
    def base_model(self) -> Squares:
        return self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=(self.weight.square() * input_ids)[..., None])


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 99]])
BATCH = Batch(TOKENS, torch.tensor([[True, True, True], [True, True, False]]))


def test_the_gap_of_squares_is_half_the_relative_way() -> None:
    before, after = Squares(2.0), Squares(2.5)
    assert bending.between(before, after, [BATCH]) == pytest.approx(0.5 / (2 * 2.0), rel=1e-4)
    assert before.weight.item() == 2.0
    found = bending.gaps(before, [before.weight], [torch.ones(1)], (0.01, 0.1), 0.01, [BATCH])
    assert found == pytest.approx([0.01 / 4, 0.1 / 4], rel=1e-3)


def test_padding_is_not_read() -> None:
    assert bending.features_ND(Squares(1.0), [BATCH]).flatten().tolist() == [1, 2, 3, 4, 5]


def test_a_decoder_bends_in_proportion_to_a_short_way_and_wholly_on_a_long_one(tmp_path) -> None:
    model = load.load(str(toys.twin("llama", tmp_path / "llama"))).model.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=generator).sign() for p in weights]
    batch = Batch(torch.arange(20)[None] + 5, torch.ones(1, 20, dtype=torch.bool))
    short, double, long = bending.gaps(model, weights, ways, (1e-3, 2e-3, 1.0), 1e-4, [batch])
    assert double == pytest.approx(2 * short, rel=0.1)
    assert long > 0.5
