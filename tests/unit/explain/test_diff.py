"""The whole difference of two tiny models; roles, outliers and circuits against what was put there."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from knowhow.errors import UsageError
from knowhow.explain.diff.compare import Budget, Difference, diff
from knowhow.explain.diff.parts import components
from knowhow.explain.diff.roles import circuits, outliers, roles
from knowhow.explain.diff.setting import setting
from knowhow.explain.diff.swap import weights
from knowhow.explain.edge_attribution import EdgeScores, edge_attribution
from knowhow.explain.heads import head_scores, kurtosis
from knowhow.maths.statistics import holm
from knowhow.model import toys
from knowhow.model.quiet import quiet
from knowhow.model.replay import record

Models = tuple[torch.nn.Module, torch.nn.Module]
DRAW = torch.Generator().manual_seed(3)
ROWS = [torch.randint(5, 40, (size,), generator=DRAW).tolist() for size in (9, 7, 12, 9, 8, 11)]


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]


@pytest.fixture(scope="module")
def models() -> Models:
    """A language model and a classifier that differs from it in layer 1's MLP and, in layer 0, in the queries of head 2."""
    settings = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, **toys.FAMILIES["llama"]}
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=96, **settings)).eval()
        specialist = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", vocab_size=98, num_labels=2, **settings)).eval()
        for parameter in [*base.parameters(), *specialist.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        known = weights(base)
        for name, value in weights(specialist).items():
            value[: len(known[name])] = known[name]
        specialist.model.layers[0].self_attn.q_proj.weight[16:24] *= 8
        specialist.model.layers[1].mlp.up_proj.weight.add_(torch.randn(48, 32) * 0.3)
    return base, specialist


@pytest.fixture(scope="module")
def found(models: Models) -> Difference:
    return diff(*models, ROWS, score, budget=Budget(fewer=4, points=3))


def test_what_was_changed_is_what_is_found(found: Difference, models: Models) -> None:
    moved = {cell.name for cell in found.components if cell.size.norm}
    assert moved == {"layers.0.attn", "layers.1.mlp", "layers.0.head.2"}
    drops = {cell.name: abs(cell.effect.drop.value) for cell in found.components if cell.effect is not None}
    assert len(drops) == len(found.components) == 6 + 8
    assert {name for name, drop in drops.items() if drop > 1e-6} == moved | {f"layers.1.head.{head}" for head in range(4)}
    assert {change.name for change in found.weights if change.size.norm} == {"layers.0.attn.q", "layers.0.attn.q.2", "layers.1.mlp.up"}
    assert found.fresh == 2
    assert found.gap.value == pytest.approx(found.specialist.value - found.base.value)
    assert found.depth[-1].drop.value == pytest.approx(found.gap.value, abs=1e-5)
    assert [one.order for one in found.curves] == ["weights", "effect", "random 0", "random 1"]
    assert set(found.curves[0].names[:2]) == {"layers.0.attn", "layers.1.mlp"}
    parts = [cell for cell in found.components if cell.kind != "head" and cell.effect is not None]
    ordered = sorted(parts, key=lambda cell: -cell.effect.drop.value if cell.effect is not None else 0.0)
    assert found.curves[1].names == tuple(cell.name for cell in ordered)
    assert found.left_out == ()
    first = next(one for one in found.roles.moved if one.change.value) if found.roles else None
    assert first is not None
    assert (first.layer == 0 and first.head == 2) or first.layer == 1
    still = [one for one in found.roles.moved if one.layer == 0 and one.head != 2] if found.roles else []
    assert len(still) == 12
    assert all(one.change.value == 0 and not one.sure for one in still)


def test_the_row_is_plain_and_the_same_again(found: Difference, models: Models) -> None:
    before = copy.deepcopy(models[1].state_dict())
    text = json.dumps(found.row(), allow_nan=False)
    assert json.dumps(diff(*models, ROWS, score, budget=Budget(fewer=4, points=3)).row(), allow_nan=False) == text
    assert json.loads(text)["layers"]["0"][0] + json.loads(text)["layers"]["1"][0] == pytest.approx(1.0)
    assert all(torch.equal(value, before[name]) for name, value in models[1].state_dict().items())


def test_a_budget_leaves_out_and_says_so(found: Difference, models: Models) -> None:
    hasty = diff(*models, ROWS, score, budget=Budget(seconds=0.0, fewer=4, points=3))
    assert hasty.weights == ()
    assert hasty.roles is None
    assert {"weights", "layers.0.attn", "layers.1.head.3", "curve weights", "roles", "outliers"} <= set(hasty.left_out)
    assert hasty.gap == found.gap
    assert all(cell.effect is None for cell in hasty.components)
    few = diff(*models, ROWS, score, budget=Budget(rows=3, points=1))
    assert few.gap.n == 3
    assert few.gap == diff(*models, ROWS[:3], score, budget=Budget(points=1)).gap
    with pytest.raises(UsageError, match="at least 1"):
        diff(*models, ROWS, score, budget=Budget(rows=0))
    with pytest.raises(UsageError, match="one cluster per row"):
        diff(*models, ROWS, score, clusters=[1])


def test_other_architectures_are_one_clear_error(models: Models) -> None:
    with quiet():
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=96, **toys.FAMILIES["gpt2"])).eval()
    with pytest.raises(UsageError, match="two checkpoints of one architecture"):
        diff(other, models[1], ROWS, score)


def test_roles_are_the_scores_of_each_model_alone(models: Models) -> None:
    base, specialist = models
    known = setting(base, specialist, ROWS, score)
    got = {(one.layer, one.head, one.score): one for one in roles(known).moved}
    for row_scores, which in ((base, "before"), (specialist, "after")):
        alone = [head_scores(row_scores, {"input_ids": torch.tensor([row])}).values for row in ROWS]
        for name in alone[0]:
            want_LH = torch.cat([values[name] for values in alone]).nanmean(0)
            for layer, head in np.ndindex(2, 4):
                one = got[layer, head, name]
                assert (one.before if which == "before" else one.after) == pytest.approx(float(want_LH[layer, head]), abs=1e-5)


def test_outliers_are_those_of_each_model_alone(models: Models) -> None:
    base, specialist = models
    got = outliers(setting(base, specialist, ROWS, score))
    for model, tails in ((base, got.kurtosis_before), (specialist, got.kurtosis_after)):
        want_L = torch.cat([kurtosis(record(model, {"input_ids": torch.tensor([row])})) for row in ROWS]).mean(0)
        torch.testing.assert_close(torch.tensor(tails), want_L.double(), atol=1e-3, rtol=1e-4, check_dtype=False)
    assert got.massive_before == (0, 0)
    assert got.kurtosis_change[0].value == pytest.approx(got.kurtosis_after[0] - got.kurtosis_before[0], abs=1e-6)
    loud = copy.deepcopy(specialist)
    with torch.no_grad():
        loud.model.layers[1].mlp.down_proj.weight[5] *= 1e6
    many = outliers(setting(base, loud, ROWS, score))
    assert many.massive_before == (0, 0)
    assert many.massive_after[0] == 0
    assert many.massive_after[1] > 0


def test_holm_s_procedure_stops_at_the_first_that_fails() -> None:
    assert holm([0.03, 0.01, 0.2, 0.012]) == [False, True, False, True]
    assert holm([0.04, 0.04]) == [False, False]


def scores_of(values_SRB: torch.Tensor) -> EdgeScores:
    senders, readers = (tuple(f"{letter}{at}" for at in range(size)) for letter, size in zip("sr", values_SRB.shape))
    possible = torch.ones(values_SRB.shape[:2], dtype=torch.bool)
    possible[-1, 0] = False
    return EdgeScores(values_SRB * possible[..., None], senders, readers, possible)


def test_equal_circuits_agree_and_a_grown_edge_is_found() -> None:
    draw = torch.Generator().manual_seed(0)
    means_SR1 = torch.randn(8, 9, 1, generator=draw) ** 3
    before = means_SR1 + torch.randn(8, 9, 12, generator=draw) * 0.05
    after = 3.0 * (means_SR1 + torch.randn(8, 9, 12, generator=draw) * 0.05)
    after[2, 3] += 40.0
    got = circuits(scores_of(before), scores_of(after), top=10)
    assert got.correlation.value > 0.9
    strong = [one.mean(2).abs()[scores_of(before).possible] for one in (before, after)]
    assert got.correlation.value == pytest.approx(float(stats.spearmanr(*(one.numpy() for one in strong)).statistic), abs=1e-6)
    tops = [set(one.topk(10).indices.tolist()) for one in strong]
    assert got.overlap.value == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    assert got.overlap.value > 4 * got.overlap_random
    assert got.overlap_random == pytest.approx(10 / (2 * 71 - 10), abs=0.03)
    assert got.p < 0.01
    assert 0.8 < got.ceiling <= 1
    assert (got.grew[0].sender, got.grew[0].reader) == ("s2", "r3")
    assert got.grew[0].change.low > 0
    assert all(edge.change.value < 0 for edge in got.shrank)
    assert json.dumps(got.row(), allow_nan=False)


def test_unlike_circuits_are_at_chance() -> None:
    first, second = (torch.randn(8, 9, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    got = circuits(scores_of(first), scores_of(second), top=10)
    assert abs(got.correlation.value) < 0.3
    assert got.p > 0.05
    for other, top in ((scores_of(second[..., :5]), 10), (scores_of(second[:5]), 10), (scores_of(second), 71)):
        with pytest.raises(UsageError):
            circuits(scores_of(first), other, top=top)


def test_circuits_of_two_models_are_asked_in_one_frame(models: Models) -> None:
    base, specialist = models
    known = setting(base, specialist, ROWS, score)
    inputs = [{"input_ids": torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(seed))} for seed in (0, 1)]
    after = edge_attribution(specialist, *inputs, score)
    with known.as_base():
        before = edge_attribution(specialist, *inputs, score)
    assert circuits(before, before, top=20).overlap.value == 1.0
    got = circuits(before, after, top=20)
    assert got.correlation.value < 1
    assert {piece.tensor for part in components(specialist) for piece in part.pieces} == set(weights(specialist))
