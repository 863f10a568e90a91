"""The sweep equals one patched pass per place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.sweep import STREAM, sweep
from knowhow.model import toys
from knowhow.model.replay import CHANGEABLE
from knowhow.model.sites import find
from knowhow.model.taps import At, Edit, tap

Lively = Callable[..., torch.nn.Module]
BASE = {"input_ids": torch.tensor([[7, 90, 41, 260, 33], [12, 200, 9, 77, 8]]), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
SOURCE = {**BASE, "input_ids": torch.tensor([[8, 90, 140, 26, 34], [12, 21, 9, 7, 80]])}


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


@torch.no_grad()
def one_by_one(model: torch.nn.Module, kind: str, layer: int, position: int, head: int | None) -> torch.Tensor:
    name = f"layers.{layer}.{kind}"
    with tap(model, name, at=At(positions=position, heads=head)) as seen:
        model(**SOURCE)
    with tap(model, edits=[Edit(name, lambda _: seen[name], At(positions=position, heads=head))]):
        return metric(model(**BASE).logits[:, -1])


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_every_place_equals_its_own_pass(lively: Lively, family: str) -> None:
    model = lively(family)
    kinds = [kind for kind in (*STREAM, *CHANGEABLE) if not (kind == "resid_mid" and family in ("phi", "gpt_neox"))]
    for kind in kinds:
        found = sweep(model, BASE, SOURCE, metric=metric, kind=kind)
        axes = find(model, f"layers.0.{kind}")[0].axes
        heads = range(found.values.shape[3]) if "heads" in axes else [None]
        for layer, position in ((0, 1), (1, 3), (1, 4)):
            for head in heads:
                got = found.values[:, layer, position] if head is None else found.values[:, layer, position, head]
                torch.testing.assert_close(got, one_by_one(model, kind, layer, position, head), atol=1e-10, rtol=1e-8, msg=kind)
        assert (found.values - found.base.view(-1, *[1] * (found.values.ndim - 1))).abs().max() > 1e-6, kind


def test_patching_the_whole_first_stream_at_the_last_position_alone_moves_part_of_the_way(lively: Lively) -> None:
    found = sweep(lively("llama"), BASE, SOURCE, metric=metric, kind="resid_post")
    torch.testing.assert_close(found.effect[:, 1, 4], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found.effect[:, 1, :4], torch.zeros(2, 4, dtype=torch.float64))
    together = sweep(lively("llama"), BASE, SOURCE, metric=metric, kind="resid_post", positions=[-1, 0])
    assert together.positions == (4, 0)
    torch.testing.assert_close(together.values[:, :, 0], found.values[:, :, 4])


def test_bad_questions(lively: Lively) -> None:
    model = lively("llama")
    for options, words in (
        ({"kind": "mlp.act"}, "resid_pre"),
        ({"positions": [5]}, "-5 to 4"),
    ):
        with pytest.raises(UsageError, match=words):
            sweep(model, BASE, SOURCE, metric=metric, **options)
    with pytest.raises(UsageError, match="same shape"):
        sweep(model, BASE, {"input_ids": SOURCE["input_ids"][:, :4]}, metric=metric)
