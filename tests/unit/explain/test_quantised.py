"""A model of integer kernels is read, written, patched and taken apart like any other, and says that it has no gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.attribution import gradient_x_input, node_attribution
from knowhow.explain.edge_attribution import edge_attribution
from knowhow.explain.heads import head_scores
from knowhow.explain.places import means, place_effects, places
from knowhow.explain.spectra import spectra
from knowhow.explain.sweep import sweep
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]

BASE, SOURCE = {"input_ids": torch.tensor([[5, 6, 7, 8]])}, {"input_ids": torch.tensor([[5, 6, 13, 8]])}


def said(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 7]


@pytest.fixture(params=["llama", "gpt2", "bert"])
def model(request: pytest.FixtureRequest, lively: Lively) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that its own int8 tensors will go
        return torch.ao.quantization.quantize_dynamic(lively(request.param, dtype=torch.float32), {torch.nn.Linear}, dtype=torch.qint8)


@torch.no_grad()
def test_reading_changes_no_bit_and_writing_changes_the_answer(model: torch.nn.Module) -> None:
    before = model(**BASE).logits
    with tap(model, "*") as seen:
        assert torch.equal(model(**BASE).logits, before)
    assert torch.equal(seen["logits"], before)
    with tap(model, edits=[Edit("layers.1.attn.z", torch.zeros_like, At(heads=[1]))]):
        assert not torch.equal(model(**BASE).logits, before)
    assert torch.equal(model(**BASE).logits, before)


def test_sweeps_parts_roles_and_spectra(model: torch.nn.Module) -> None:
    found = sweep(model, BASE, SOURCE, metric=said)
    # 1 but for kernels that scale each call anew, so a pass of fewer positions rounds otherwise
    assert found.effect[0, 0, 2] > 0.5
    mean = means(model, [BASE, SOURCE])
    falls = place_effects(model, lambda: said(model(**BASE).logits[:, -1]).numpy(), places(model), mean).falls
    assert abs(falls).max() > 0
    assert head_scores(model, BASE).means["sink"].shape == spectra(model).ov_LHR.shape[:2]


def test_gradients_are_refused_with_what_to_do_instead(model: torch.nn.Module) -> None:
    for call in (
        lambda: gradient_x_input(model, BASE, said),
        lambda: node_attribution(model, BASE, SOURCE, said),
        lambda: edge_attribution(model, BASE, SOURCE, said),
    ):
        with pytest.raises(UsageError, match=r"integer kernels|norms what they add"):
            call()
