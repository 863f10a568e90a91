"""Edges: gradients equal small exact ablations, and the edges of compiled programs are found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from knowhow.errors import UsageError
from knowhow.explain.edge_attribution import contributions, edge_attribution
from knowhow.explain.edges import edge_effects, readers, removed
from knowhow.explain.recovery import recover
from knowhow.model import compiled, toys
from knowhow.model.replay import record
from knowhow.model.taps import tap

Lively = Callable[..., torch.nn.Module]
BASE = {"input_ids": torch.tensor([[7, 90, 41, 260, 33], [12, 200, 9, 77, 8]]), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
SOURCE = {**BASE, "input_ids": torch.tensor([[8, 90, 140, 26, 34], [12, 21, 9, 7, 80]])}
TRACR = Path(__file__).parents[2] / "data" / "tracr"
NORMED = ("gemma2", "gemma3_text", "olmo2", "bert", "roberta")


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


@pytest.mark.parametrize("family", [family for family in toys.FAMILIES if family not in NORMED])
def test_edge_attribution_is_the_slope_of_the_exact_edge(lively: Lively, family: str) -> None:
    model, small = lively(family), 5e-4
    found = edge_attribution(model, BASE, SOURCE, metric)
    with torch.no_grad():
        recorded = record(model, BASE)
    start, end = contributions(model, BASE), contributions(model, SOURCE)

    def sender(name: str) -> Callable[[int, bool], torch.Tensor]:
        return lambda layer, middle: (end[name] - start[name]) * small

    senders = {name: sender(name) for name in start}
    for sign in (1, -1):
        slopes = edge_effects(recorded, senders, readers(recorded.parts), lambda a, b, s=sign: s * metric((a - b)[:, -1]) / small, backups=False)
        want = (sign * found.scores[:, :-1]).clamp(min=0).permute(1, 0, 2).double()
        possible = found.possible[:, :-1].T
        torch.testing.assert_close(slopes.double()[possible], want[possible], atol=2e-3, rtol=5e-2)
    assert found.scores.abs().max() > 1e-3
    assert not found.scores[~found.possible].any()


def test_contributions_add_up_to_the_stream(lively: Lively) -> None:
    model = lively("gpt2")
    parts = contributions(model, BASE)
    with torch.no_grad(), tap(model, "layers.1.resid_post") as seen:
        model(**BASE)
    biases = sum(block.attn.c_proj.bias for block in model.transformer.h)
    torch.testing.assert_close(sum(parts.values()) + biases, seen["layers.1.resid_post"])


def test_averaged_gradients_come_nearer_to_the_whole_change(lively: Lively) -> None:
    model = lively("llama")
    with torch.no_grad():
        change = metric(model(**SOURCE).logits[:, -1]) - metric(model(**BASE).logits[:, -1])
    errors = []
    for steps in (1, 32):
        found = edge_attribution(model, BASE, SOURCE, metric, steps=steps)
        errors.append((found.scores[:, -1].sum(0) - change).abs().sum())
    assert errors[1] < errors[0]


def test_families_that_norm_what_heads_add_are_refused(lively: Lively) -> None:
    with pytest.raises(UsageError, match="norms what they add"):
        edge_attribution(lively("gemma2"), BASE, SOURCE, metric)


def test_a_removed_direction_is_gone_for_its_reader_alone(lively: Lively) -> None:
    model = lively("llama")
    with torch.no_grad():
        recorded = record(model, BASE)
    basis = torch.linalg.qr(torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    effects = edge_effects(recorded, {"two directions": removed(recorded, basis)}, readers(recorded.parts), lambda a, b: (a - b)[:, -1].abs().amax(1))
    assert (effects > 0).float().mean() > 0.9
    with pytest.raises(UsageError, match="one number per row"):
        edge_effects(recorded, {"x": removed(recorded, basis)}, readers(recorded.parts)[:1], lambda a, b: a - b)


@pytest.mark.parametrize("name", compiled.programs(TRACR))
def test_known_edges_are_found_and_sizes_alone_do_not_find_them(name: str) -> None:
    found = recover(compiled.read(TRACR, name), rows=6)
    assert 0 < found.truth.sum() < len(found.truth)
    auc = {method: roc_auc_score(found.truth, scores) for method, scores in found.scores.items()}
    assert auc["ablation"] >= 0.95
    assert auc["ablation"] > auc["norm"] + 0.1


@pytest.mark.slow
def test_every_known_circuit(shared_data: Path) -> None:
    folder = shared_data / "ground_truth" / "tracr"
    if not folder.is_dir():
        pytest.skip(f"no compiled programs at {folder}")
    found = [recover(compiled.read(folder, name)) for name in compiled.programs(folder)]
    scored = [one for one in found if 0 < one.truth.sum() < len(one.truth)]
    assert min(roc_auc_score(one.truth, one.scores["ablation"]) for one in scored) >= 0.95
    truth, scores = np.concatenate([one.truth for one in scored]), {m: np.concatenate([one.scores[m] for one in scored]) for m in ("ablation", "norm")}
    assert roc_auc_score(truth, scores["ablation"]) >= max(0.98, roc_auc_score(truth, scores["norm"]))
