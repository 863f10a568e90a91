"""Attribution: complete, the same alone as in a batch, and equal to differences where these are small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.attribution import gradient_x_input, integrated_gradients, node_attribution
from knowhow.model import toys
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]
TOKENS = torch.tensor([[7, 90, 41, 260, 33, 12, 14], [12, 200, 9, 77, 8, 0, 0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
ALONE = {"input_ids": TOKENS[1:, :5], "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_integrated_gradients_are_complete_and_rows_do_not_see_each_other(lively: Lively, family: str) -> None:
    model = lively(family)
    found = integrated_gradients(model, INPUTS, metric, answer=4)
    assert (found.gap <= 0.02 * found.span.abs() + 1e-4).all()
    assert not found.scores[1, 5:].any()
    alone = integrated_gradients(model, ALONE, metric, answer=4, steps=found.steps, most=found.steps)
    torch.testing.assert_close(found.scores[1:, :5], alone.scores, atol=1e-5, rtol=1e-5)
    simple = gradient_x_input(model, INPUTS, metric, answer=4)
    torch.testing.assert_close(simple[1:, :5], gradient_x_input(model, ALONE, metric, answer=4), atol=1e-5, rtol=1e-5)


def test_an_incomplete_integral_says_so(lively: Lively) -> None:
    found = integrated_gradients(lively("llama"), INPUTS, metric, answer=4, baseline=torch.zeros(1), steps=2, most=4)
    assert found.steps == 4
    assert (found.gap > 0.02 * found.span.abs()).any()
    with pytest.raises(UsageError, match="broadcasts"):
        integrated_gradients(lively("llama"), INPUTS, metric, baseline=torch.zeros(3, 5, 32))


def test_node_attribution_is_the_slope_of_patching(lively: Lively) -> None:
    model, small = lively("llama"), 1e-3
    base, source = ({"input_ids": TOKENS.roll(shift, 1)} for shift in (0, 1))
    found = node_attribution(model, base, source, metric, "layers.*.attn.z", "layers.0.attn.pattern")
    assert found["layers.0.attn.pattern"].shape == (2, 4, 7)
    name, at = "layers.0.attn.z", At(positions=3, heads=2)
    with torch.no_grad():
        with tap(model, name, at=at) as theirs:
            model(**source)
        with tap(model, edits=[Edit(name, lambda value: value + small * (theirs[name] - value), at)]):
            moved = metric(model(**base).logits[:, -1])
        slope = (moved - metric(model(**base).logits[:, -1])) / small
    torch.testing.assert_close(found[name][:, 3, 2], slope, atol=1e-3, rtol=1e-2)
    with pytest.raises(UsageError, match="same shape"):
        node_attribution(model, base, {"input_ids": TOKENS[:, :5]}, metric, "layers.*.attn.z")
    with pytest.raises(UsageError, match="at least 1"):
        node_attribution(model, base, source, metric, "layers.*.attn.z", steps=0)
