"""A part is where an answer is made when its mean takes the answer away, and a random change of equal size does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.places import Place, _elsewhere, _to_mean, means, place_effects, places
from knowhow.model.sites import body
from knowhow.model.taps import tap

Lively = Callable[..., torch.nn.Module]

ROWS = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [5, 11, 3, 3]]), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])}


def ask_of(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(**ROWS).logits[:, 1, 7].numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_means_are_those_of_real_tokens(lively: Lively, family: str) -> None:
    model = lively(family)
    found = means(model, [ROWS])
    with torch.no_grad(), tap(model, "layers.1.attn.z", "layers.1.mlp.out") as seen:
        model(**ROWS)
    real = ROWS["attention_mask"].bool()
    assert torch.allclose(found["layers.1.mlp.out"].double(), seen["layers.1.mlp.out"][real].mean(0), atol=1e-6)
    assert torch.allclose(found["layers.1.attn.z"].double(), seen["layers.1.attn.z"][real].mean(0), atol=1e-6)


def test_every_part_is_named_once() -> None:
    assert Place(2, "head", 3).name == "layers.2.head3"
    assert Place(2, "attn").site == "layers.2.attn.out"


def test_places_are_attention_mlp_and_heads(lively: Lively) -> None:
    model = lively("llama")
    found, parts = places(model), body(model)
    assert len(found) == len(set(found)) == parts.depth * (2 + parts.heads)
    assert {place.part for place in places(model, heads=False)} == {"attn", "mlp"}


def test_a_part_that_does_nothing_loses_nothing_and_one_that_does_everything_loses_all(lively: Lively) -> None:
    model = lively("llama")
    parts = body(model)
    with torch.no_grad():
        parts.block(0).get_submodule(parts.anatomy.mlp_out.path).weight.zero_()
    mean, wanted = means(model, [ROWS]), places(model)
    found = place_effects(model, lambda: ask_of(model), wanted, mean)
    dead = found.places.index(Place(0, "mlp"))
    assert np.abs(found.falls[dead]).max() == 0.0
    assert np.abs(found.control[dead]).max() == 0.0
    assert np.abs(found.falls[found.places.index(Place(1, "mlp"))]).max() > 1e-3
    assert found.start == pytest.approx(ask_of(model))
    again = place_effects(model, lambda: ask_of(model), wanted[:1], mean)
    assert (again.falls[0] == found.falls[0]).all(), "nothing of one part stays for the next"
    assert (again.control[0] == found.control[0]).all()


def test_the_random_change_is_as_large_as_the_way_to_the_mean(lively: Lively) -> None:
    model, sizes = lively("gpt2"), []
    mean = means(model, [ROWS])

    def ask() -> np.ndarray:
        return ask_of(model)

    with torch.no_grad(), tap(model, "layers.0.mlp.out") as seen:
        model(**ROWS)
    before = seen["layers.0.mlp.out"]
    for change in (_to_mean(mean["layers.0.mlp.out"]), _elsewhere(mean["layers.0.mlp.out"], 1)):
        sizes.append((change(before) - before).norm(dim=-1))
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-5)
    assert place_effects(model, ask, [Place(0, "mlp")], mean).falls.shape == (1, 3)


def test_nothing_to_take_out_is_an_error(lively: Lively) -> None:
    model = lively("llama")
    with pytest.raises(UsageError, match="no rows"):
        means(model, [])
    with pytest.raises(UsageError, match="no parts"):
        place_effects(model, lambda: ask_of(model), [], {})
