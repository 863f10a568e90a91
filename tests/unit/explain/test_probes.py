"""Probes: a planted direction is found where it is, the control is not, and rows pooled by hand agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from knowhow.errors import UsageError
from knowhow.explain.probes import Rows, control_labels, gather, probe, separation
from knowhow.model import toys
from knowhow.model.quiet import quiet
from knowhow.model.taps import tap

TYPES = 30


def planted(rows: int, seed: int, *, strength: float = 3.0) -> Rows:
    """Two layers of noise; in the second the label stands along one direction. Types say nothing about labels; three rows make a cluster."""
    draw = np.random.default_rng(seed)
    labels_N, values_LND = draw.integers(0, 2, rows), draw.normal(size=(2, rows, 12))
    direction_D = np.random.default_rng(99).normal(size=12)
    values_LND[1] += np.outer(labels_N - 0.5, direction_D / np.linalg.norm(direction_D)) * 2 * strength
    return Rows(values_LND.astype(np.float32), labels_N, draw.integers(0, TYPES, rows), np.arange(rows) // 3)


TRAIN, VALID, TEST = planted(400, 0), planted(150, 1), planted(300, 2)


def test_a_planted_direction_is_found_and_its_control_is_not() -> None:
    empty, full = probe(TRAIN, VALID, TEST, draws=200)
    assert full.accuracy.value > 0.97
    assert full.selectivity.low > 0.3
    assert 0.35 < full.control.value < 0.65
    assert full.selectivity.value == pytest.approx(full.accuracy.value - full.control.value)
    assert 0.4 < empty.accuracy.value < 0.6
    assert empty.selectivity.low < 0 < empty.selectivity.high
    direction_D = np.random.default_rng(99).normal(size=12)
    cosine = full.weights_CD[0] @ direction_D / np.linalg.norm(direction_D) / np.linalg.norm(full.weights_CD[0])
    assert cosine > 0.9
    assert full.accuracy.n == 100
    assert full.seen == 1.0
    assert full.majority == pytest.approx(max((TEST.labels_N == label).mean() for label in (0, 1)), abs=0.1)


def test_a_reader_that_knows_types_by_heart_is_not_selective() -> None:
    def known(rows: Rows) -> Rows:
        labels_N = np.random.default_rng(7).integers(0, 2, TYPES)[rows.types_N]
        return replace(rows, values_LND=np.eye(TYPES, dtype=np.float32)[rows.types_N][None], labels_N=labels_N)

    (found,) = probe(known(TRAIN), known(VALID), known(TEST), draws=100)
    assert found.accuracy.value == 1.0
    assert found.control.value == 1.0
    assert found.selectivity.value == 0.0


def test_strength_is_chosen_on_validation_alone() -> None:
    chosen = probe(TRAIN, VALID, TEST, draws=10)
    shuffled = replace(TEST, labels_N=np.random.default_rng(5).permutation(TEST.labels_N))
    assert [found.strength for found in probe(TRAIN, VALID, shuffled, draws=10)] == [found.strength for found in chosen]
    alone = [probe(TRAIN, VALID, VALID, strengths=(strength,), draws=10)[0].accuracy.value for strength in (1e-4, 10.0)]
    both = probe(TRAIN, VALID, VALID, strengths=(1e-4, 10.0), draws=10)[0]
    assert both.accuracy.value == max(alone)


def test_units_of_the_features_do_not_matter() -> None:
    def scaled(rows: Rows) -> Rows:
        return replace(rows, values_LND=(rows.values_LND * np.logspace(-2, 3, 12) + 50).astype(np.float64))

    plain, other = probe(TRAIN, VALID, TEST, draws=10)[1], probe(scaled(TRAIN), scaled(VALID), scaled(TEST), draws=10)[1]
    assert other.accuracy.value == plain.accuracy.value
    np.testing.assert_allclose(other.weights_CD * np.logspace(-2, 3, 12), plain.weights_CD, rtol=1e-2, atol=1e-3)


def test_control_labels_hold_for_a_type_and_follow_the_frequencies() -> None:
    types_N = np.array(["b", "a", "b", "c", "a"])
    once = control_labels(types_N, np.array([0, 1, 2]), seed=3)
    assert once[0] == once[2]
    assert once[1] == once[4]
    assert (once == control_labels(types_N, np.array([0, 1, 2]), seed=3)).all()
    many = control_labels(np.arange(4000), np.array([0, 0, 0, 1]))
    assert 0.22 < many.mean() < 0.28


def test_separation_is_the_share_between_classes() -> None:
    values_LND = np.array([[[0.0], [0.0], [1.0], [1.0]], [[0.0], [1.0], [0.0], [1.0]], [[2.0], [2.0], [2.0], [2.0]]])
    np.testing.assert_allclose(separation(values_LND, np.array([0, 0, 1, 1])), [1.0, 0.0, np.nan])
    with pytest.raises(UsageError, match="LND and N"):
        separation(values_LND, np.array([0, 1]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"labels_N": TRAIN.labels_N * 0}, "at least two"),
        ({"types_N": TRAIN.types_N + TYPES}, "occur in both"),
        ({"types_N": TRAIN.types_N[1:]}, r"types_N \(399,\)"),
        ({"clusters_N": TRAIN.clusters_N[:5]}, r"clusters_N \(5,\)"),
        ({"values_LND": TRAIN.values_LND * np.nan}, "not finite"),
        ({"values_LND": TRAIN.values_LND[:, :, :5]}, "5 features"),
    ],
)
def test_rows_that_do_not_fit_are_refused(wrong: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probe(replace(TRAIN, **wrong), VALID, TEST)


def test_empty_splits_and_wrong_strengths_are_refused() -> None:
    none = Rows(VALID.values_LND[:, :0], VALID.labels_N[:0], VALID.types_N[:0], VALID.clusters_N[:0])
    with pytest.raises(UsageError, match="no rows in valid"):
        probe(TRAIN, none, TEST)
    for strengths in ((), (0.0, 1.0)):
        with pytest.raises(UsageError, match="positive numbers"):
            probe(TRAIN, VALID, TEST, strengths=strengths)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=64, **toys.FAMILIES["llama"])).eval()


def batches() -> list[dict[str, torch.Tensor]]:
    rows = torch.randint(5, 60, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    return [{"input_ids": rows[:2], "attention_mask": mask[:2]}, {"input_ids": rows[2:], "attention_mask": mask[2:]}]


def test_rows_are_what_stands_at_the_real_tokens(model: torch.nn.Module) -> None:
    last, first, mean, everything = (gather(model, batches(), pool=pool) for pool in ("last", "first", "mean", "all"))
    ids = torch.cat([batch["input_ids"] for batch in batches()])
    assert last.tokens_N.tolist() == [int(ids[0, 3]), int(ids[1, 5]), int(ids[2, 4])]
    assert first.tokens_N.tolist() == [int(ids[0, 0]), int(ids[1, 0]), int(ids[2, 2])]
    assert mean.tokens_N.tolist() == [-1, -1, -1]
    assert everything.inputs_N.tolist() == [0] * 4 + [1] * 6 + [2] * 3
    assert everything.values_LND.shape == (2, 13, 32)
    np.testing.assert_array_equal(everything.values_LND[:, [3, 9, 12]], last.values_LND)
    np.testing.assert_array_equal(everything.values_LND[:, [0, 4, 10]], first.values_LND)
    np.testing.assert_allclose(mean.values_LND[:, 0], everything.values_LND[:, :4].mean(1), atol=1e-6)
    with torch.no_grad(), tap(model, "layers.1.attn.z") as seen:
        model(**batches()[0])
    heads = gather(model, batches()[:1], kind="attn.z")
    np.testing.assert_array_equal(heads.values_LND[1, 0], seen["layers.1.attn.z"][0, 3].flatten().numpy())


def test_what_cannot_be_gathered_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(UsageError, match="last, first, mean, all"):
        gather(model, batches(), pool="max")
    with pytest.raises(UsageError, match="one value for each position"):
        gather(model, batches(), kind="attn.pattern")
    with pytest.raises(UsageError, match="no batches"):
        gather(model, [])
    nothing = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}
    with pytest.raises(UsageError, match="input 1 without a real token"):
        gather(model, [nothing])
