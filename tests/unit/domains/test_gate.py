"""The anti-shortcut gate: on tier F nothing but following values from call to call tells a behaviour from its decoy."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
from sklearn.feature_selection import chi2
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from trace_attacks import Sample, average_precision, is_variable, lines, matrices, sample

from knowhow.domains.malware import oracle
from knowhow.domains.malware.generate import traces

N = 4000
MARGIN = 0.02
SHORTCUTS = ("bag", "1-3-grams", "api 1-3-grams", "positions", "repeats", "skip-bigrams")


@pytest.fixture(scope="module")
def flow() -> tuple[Sample, Sample]:
    return sample({"tier": "F"}, 101, N), sample({"tier": "F"}, 102, N)


@pytest.fixture(scope="module")
def flow_of_all() -> tuple[Sample, Sample]:
    options = {"tier": "F", "behaviours": "all"}
    return sample(options, 103, N), sample(options, 104, N)


@pytest.mark.parametrize("name", SHORTCUTS)
def test_no_shortcut_on_flow(flow: tuple[Sample, Sample], name: str) -> None:
    got, base = average_precision(name, *flow)
    assert got <= base + MARGIN


@pytest.mark.parametrize("name", ["bag", "skip-bigrams"])
def test_no_shortcut_on_flow_of_any_behaviour(flow_of_all: tuple[Sample, Sample], name: str) -> None:
    got, base = average_precision(name, *flow_of_all)
    assert got <= base + MARGIN


@pytest.mark.parametrize("name", ["repeats", "skip-bigrams"])
def test_trees_find_no_shortcut_on_flow(flow: tuple[Sample, Sample], name: str) -> None:
    train, test = flow
    one, two = matrices(name, train, test)
    areas = []
    for b in range(len(train.names)):
        seen, unseen = train.present_NB[:, b], test.present_NB[:, b]
        best = np.argsort(-np.nan_to_num(chi2(one[seen], train.real_NB[seen, b])[0]))[:200]
        trees = lightgbm.LGBMClassifier(n_estimators=30, num_leaves=15, n_jobs=1, verbose=-1)
        trees.fit(one[seen][:, best].toarray(), train.real_NB[seen, b])
        scores = trees.booster_.predict(two[unseen][:, best].toarray())
        areas.append(roc_auc_score(test.real_NB[unseen, b], scores))
    assert np.mean(areas) <= 0.5 + MARGIN


def test_presence_is_half_of_the_traces_and_half_of_it_is_real(flow: tuple[Sample, Sample]) -> None:
    for part in flow:
        assert part.present_NB.mean() == pytest.approx(0.5, abs=0.01)
        assert part.real_NB.mean() == pytest.approx(0.25, abs=0.01)
        assert np.abs(part.real_NB.sum(axis=0) / part.present_NB.sum(axis=0) - 0.5).max() <= 0.04
        everything = np.mean([f1_score(column, np.ones_like(column)) for column in part.real_NB.T])
        assert everything == pytest.approx(0.40, abs=0.02)


def test_flow_can_be_learned_from_flow(flow: tuple[Sample, Sample]) -> None:
    got, base = average_precision("edges", *flow)
    assert got >= base + 0.08


def test_the_gate_sees_order_and_bags_do_not() -> None:
    train, test = sample({"tier": "O"}, 105, N), sample({"tier": "O"}, 106, N)
    got, base = average_precision("skip-bigrams", train, test)
    assert got >= 0.9 > base + MARGIN
    bag, _ = average_precision("bag", train, test)
    assert bag <= base + MARGIN


def test_the_gate_sees_presence() -> None:
    got, _ = average_precision("bag", sample({"tier": "P"}, 107, 1000), sample({"tier": "P"}, 108, 1000))
    assert got >= 0.9


@pytest.mark.parametrize(("tier", "n"), [("P", 400), ("S", 1000), ("O", 600), ("F", 1000), ("L", 60), ("X", 1000), ("N", 400)])
def test_the_rule_oracle_is_right_everywhere(tier: str, n: int) -> None:
    for report, truth, example in traces({"tier": tier, "behaviours": "all"}, seed=109, n=n):
        assert oracle.behaviours(report.events) == truth.behaviours == example.label


@pytest.mark.parametrize("tier", ["P", "S", "O", "F", "L", "X"])
def test_twins_differ_by_one_edit_that_flips_one_behaviour(tier: str) -> None:
    both = list(traces({"tier": tier}, seed=110, n=100))
    for (_, first, one), (_, second, two) in zip(both[::2], both[1::2], strict=True):
        assert one.group == two.group
        assert len(set(first.behaviours) ^ set(second.behaviours)) == 1
        left, right = one.prompt.splitlines(), two.prompt.splitlines()
        differ = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
        assert tuple(differ) == tuple(sorted(first.edit[1])) == tuple(sorted(second.edit[1]))
        assert len(differ) == (1 if tier in "PS" else 2)
        if tier not in "PS":
            assert sorted(one.prompt.split()) == sorted(two.prompt.split()), "an exchange: the same words, elsewhere"


def test_the_flow_edit_exchanges_two_variables_and_nothing_else() -> None:
    both = [example for _, _, example in traces({"tier": "F"}, seed=111, n=200)]
    for one, two in zip(both[::2], both[1::2], strict=True):
        words = [(a, b) for left, right in zip(lines(one.prompt), lines(two.prompt), strict=True) for a, b in zip(left, right, strict=True) if a != b]
        assert len(words) == 2
        assert words[0] == words[1][::-1]
        assert all(map(is_variable, words[0]))


def test_lengths_say_nothing(flow: tuple[Sample, Sample]) -> None:
    part = flow[0]
    assert {len(text.splitlines()) for text in part.texts} == {30}
    letters = np.array([len(text) for text in part.texts], dtype=float)
    for b in range(len(part.names)):
        seen = part.present_NB[:, b]
        assert abs(roc_auc_score(part.real_NB[seen, b], letters[seen]) - 0.5) <= 0.03
    assert average_precision_score(part.real_NB[:, 0], letters) <= 0.35
