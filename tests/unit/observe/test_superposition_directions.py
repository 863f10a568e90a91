"""Lengths and cosines of a layer's columns."""

from __future__ import annotations

import pytest
import torch

from knowhow.experiments.features import Toy
from knowhow.observe.superposition import Superposition
from knowhow.types import StepInfo


def test_lengths_and_cosines() -> None:
    model = Toy(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, -1.0]]))
    before, random = model.weight.detach().clone(), torch.get_rng_state()
    observer = Superposition(lambda _: True)
    observer.after(StepInfo(4, 0, 0.0, {}, 0.1, 0.0, model, []))
    (row,) = observer.rows()
    assert [row[f"superposition.norm.{i}"] for i in range(3)] == [3.0, 2.0, 1.0]
    assert (row["superposition.cosine.0.1"], row["superposition.cosine.1.2"]) == (0.0, -1.0)
    assert set(row) == {"step", *(f"superposition.norm.{i}" for i in range(3)), *(f"superposition.cosine.{pair}" for pair in ("0.1", "0.2", "1.2"))}
    assert torch.equal(before, model.weight)
    assert torch.equal(random, torch.get_rng_state())


def test_a_weight_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        Superposition(lambda _: True, weight="nowhere").after(StepInfo(4, 0, 0.0, {}, 0.1, 0.0, Toy(3, 2), []))
