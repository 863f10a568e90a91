"""Faithfulness, its areas, p-values and single edges against what they are by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.circuits.curves import SHARES, Measured, areas, chance, control, curve, measure, minimality
from knowhow.explain.circuits.graph import Circuit, circuit_of, connected
from knowhow.explain.circuits.run import Runs, prepare

Lively = Callable[..., torch.nn.Module]
BASE = {"input_ids": torch.tensor([[7, 9, 90, 41, 33], [12, 5, 200, 9, 8], [3, 4, 50, 61, 8], [8, 8, 8, 9, 1]])}
SOURCE = {"input_ids": torch.tensor([[7, 9, 90, 140, 34], [12, 5, 21, 9, 80], [3, 4, 51, 61, 9], [8, 5, 7, 9, 10]])}


def metric(logits_BV: torch.Tensor) -> torch.Tensor:
    return logits_BV[:, 17] - logits_BV[:, 19]


@pytest.fixture
def runs(lively: Lively) -> Runs:
    return prepare(lively("llama"), BASE, SOURCE)


def half(runs: Runs, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return connected(torch.rand(count, *runs.graph.possible.shape, generator=random) < 0.6, runs.graph)


def test_faithfulness_is_the_share_of_the_mean_gap() -> None:
    measured = Measured(np.array([[3.0, 1.0], [5.0, 7.0]]), np.array([5.0, 5.0]), np.array([1.0, 0.0]), np.arange(2))
    np.testing.assert_allclose(measured.faithfulness, [1.5 / 4.5, 5.5 / 4.5])
    np.testing.assert_allclose(measured.statistic()(np.array([[2.0, 0.0]])), [[2 / 4], [4 / 4]])
    found = measured.intervals(measured.statistic(), draws=500)
    for interval, ends in zip(found, ([1 / 5, 2 / 4], [4 / 4, 7 / 5]), strict=True):
        assert (interval.low, interval.high, interval.n) == (pytest.approx(ends[0]), pytest.approx(ends[1]), 2)
    flat = Measured(measured.values, measured.nothing, measured.nothing, np.arange(2))
    assert np.isnan(flat.faithfulness).all()


def test_pairs_of_one_cluster_are_drawn_together() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(1, 40)).repeat(5, 1)
    wide, narrow = (
        Measured(values, np.ones(200), np.zeros(200), names).intervals(lambda w: (w @ values.T / w.sum(1, keepdims=True)).T)[0]
        for names in (np.arange(200) // 5, np.arange(200))
    )
    assert wide.n == 40
    assert (wide.high - wide.low) > 1.8 * (narrow.high - narrow.low)


def test_areas_are_mibs() -> None:
    own = np.array([0.0, 0.1, 0.2, 0.5, 0.4, 0.8, 1.3, 1.1, 0.9, 1.0])
    cpr = cmd = 0.0
    for at in range(len(SHARES) - 1):
        width = SHARES[at + 1] - SHARES[at]
        cpr += width * (own[at] + own[at + 1]) / 2
        cmd += width * (abs(1 - own[at]) + abs(1 - own[at + 1])) / 2
    found = areas(SHARES, own[:, None])
    np.testing.assert_allclose([found[0][0], found[1][0]], [cpr, cmd])
    measured = Measured(np.stack([own, own], 1), np.ones(2), np.zeros(2), np.arange(2))
    drawn = curve(SHARES, range(10), measured)
    assert (drawn.cpr.value, drawn.cpr.low, drawn.cmd.high) == (pytest.approx(cpr), pytest.approx(cpr), pytest.approx(cmd))
    assert [point["value"] for point in json.loads(json.dumps(drawn.row()))["points"]] == pytest.approx(own)


def test_a_random_circuit_as_near_to_one_counts_against() -> None:
    beside = control((0.1, 1.0), np.array([[0.2, 1.0], [0.4, 1.0]]), 0.9, np.array([0.2, 0.4, 1.05, 1.2]))
    assert (beside.p, beside.draws, beside.curves) == (2 / 5, 4, 2)
    assert (beside.mean, beside.low, beside.high) == (pytest.approx((0.3, 1.0)), (0.2, 1.0), (0.4, 1.0))
    assert chance(np.zeros(19, dtype=bool)) == 0.05
    assert json.loads(json.dumps(beside.row()))["p"] == 0.4


def test_measured_circuits_are_those_of_their_runs(runs: Runs) -> None:
    masks = half(runs, 3)
    measured = measure(runs, masks, metric, clusters=["a", "a", "b", "b"])
    np.testing.assert_allclose(measured.values, runs.values(masks, metric))
    np.testing.assert_allclose(measured.model, runs.values(runs.graph.possible[None], metric)[0])
    assert measured.intervals(measured.statistic())[0].n == 2
    with pytest.raises(UsageError, match="2 clusters"):
        measure(runs, masks, metric, clusters=["a", "b"])


def test_each_edges_own_share_is_what_is_lost_without_it(runs: Runs) -> None:
    mask = half(runs, 1)[0]
    circuit = circuit_of(mask, runs.graph)
    found = minimality(runs, metric, circuit, most=12, draws=9, seed=1)
    assert (len(found.edges), len(found.random)) == (12, 9)
    assert set(found.edges) <= set(circuit.edges)
    clean, nothing, whole = (runs.values(one[None], metric)[0].mean() for one in (runs.graph.possible, torch.zeros_like(mask), mask))
    for (sender, reader), fall, p in zip(found.edges, found.falls, found.p, strict=True):
        without = mask.clone()
        without[runs.graph.senders.index(sender), runs.graph.readers.index(reader)] = False
        want = (whole - runs.values(without[None], metric)[0].mean()) / (clean - nothing)
        assert fall.value == pytest.approx(float(want), abs=1e-9)
        assert fall.low <= fall.value <= fall.high
        assert p == (1 + sum(abs(one) >= abs(fall.value) for one in found.random)) / 10
    assert any(abs(fall.value) > 1e-3 for fall in found.falls)
    assert len(set(found.random)) == 9
    floor = np.quantile(np.abs(found.random), 0.95)
    assert found.needed == pytest.approx(np.mean([abs(fall.value) > floor for fall in found.falls]))
    assert json.loads(json.dumps(found.row()))["edges"][0]["sender"] == found.edges[0][0]


def test_a_circuit_of_all_edges_has_no_random_ones_and_one_of_none_is_refused(runs: Runs) -> None:
    every = minimality(runs, metric, circuit_of(runs.graph.possible, runs.graph), most=2)
    assert (every.random, every.p) == ((), (1.0, 1.0))
    with pytest.raises(UsageError, match="0 edges"):
        minimality(runs, metric, Circuit((), 1))
