"""Splits: nothing that belongs together is parted, labels are spread, time goes forward, the seed decides the rest."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from knowhow.data.split import split
from knowhow.errors import UsageError
from knowhow.types import Example


def rows(count: int, seed: int = 0, groups: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    label = rng.choice(list("aaaaaabbbc"), count)
    return [Example(str(n), f"t{n}", label=str(label[n]), group=f"g{rng.integers(groups)}" if groups else None) for n in range(count)]


def checked(parts: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all((np.diff(part) > 0).all() for part in parts.values())
    return parts


@pytest.mark.parametrize("by", ["auto", "random", "group"])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_and_labels_come_out_as_asked(by: str, seed: int) -> None:
    examples = rows(2000, groups=300 if by != "random" else 0)
    parts = checked(split(examples, by=by, valid=0.1, test=0.2, seed=seed, clusters=np.arange(2000)), 2000)
    whole = Counter(example.label for example in examples)
    for name, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        assert abs(len(parts[name]) / 2000 - share) < 0.01
        counts = Counter(examples[row].label for row in parts[name])
        assert all(abs(counts[label] - share * whole[label]) <= max(3, 0.05 * whole[label]) for label in whole)


def test_groups_and_clusters_stay_together_also_through_each_other() -> None:
    examples = rows(600, groups=80)
    clusters = np.random.default_rng(2).integers(0, 580, 600)
    parts = checked(split(examples, by="auto", valid=0.1, test=0.1, seed=3, clusters=clusters), 600)
    part_of = {row: name for name, part in parts.items() for row in part.tolist()}
    for keys in ([example.group for example in examples], clusters.tolist()):
        homes: dict[object, set[str]] = {}
        for row, key in enumerate(keys):
            homes.setdefault(key, set()).add(part_of[row])
        assert all(len(home) == 1 for home in homes.values())


def test_random_parts_what_belongs_together() -> None:
    clusters = np.repeat(np.arange(100), 5)
    parts = split(rows(500), by="random", valid=0.0, test=0.3, seed=0, clusters=clusters)
    assert len(set(clusters[parts["test"]]) & set(clusters[parts["train"]])) > 50
    assert len(parts["valid"]) == 0


def test_the_seed_decides() -> None:
    examples = rows(300)
    one, same, other = (split(examples, by="auto", valid=0.1, test=0.1, seed=seed, clusters=None) for seed in (4, 4, 5))
    assert all((one[name] == same[name]).all() for name in one)
    assert any(len(one[name]) != len(other[name]) or (one[name] != other[name]).any() for name in one)


def test_time_goes_forward_and_a_cluster_stays_with_its_earliest_row() -> None:
    times = np.random.default_rng(0).permutation(300)
    examples = [Example(str(n), "t", label="ab"[n % 2], time=float(times[n])) for n in range(300)]
    parts = checked(split(examples, by="auto", valid=0.1, test=0.2, seed=0, clusters=None), 300)
    assert [len(part) for part in parts.values()] == [210, 30, 60]
    assert times[parts["train"]].max() < times[parts["valid"]].min() <= times[parts["valid"]].max() < times[parts["test"]].min()
    first, last = int(np.argmin(times)), int(np.argmax(times))
    clusters = np.arange(300)
    clusters[last] = clusters[first]
    assert last in split(examples, by="time", valid=0.1, test=0.2, seed=0, clusters=clusters)["train"]


def test_equal_times_are_not_parted() -> None:
    examples = [Example(str(n), "t", label="ab"[n % 2], time=float(n // 50)) for n in range(200)]
    parts = split(examples, by="time", valid=0.0, test=0.4, seed=0, clusters=None)
    assert {examples[row].time for row in parts["train"]} & {examples[row].time for row in parts["test"]} == set()
    assert len(parts["valid"]) == 0


def test_a_rare_label_is_in_training_first() -> None:
    examples = [*rows(200), Example("rare", "t", label="rare"), Example("two", "t", label="two"), Example("2", "t", label="two")]
    parts = split(examples, by="auto", valid=0.3, test=0.3, seed=0, clusters=None)
    taught = {examples[row].label for row in parts["train"]}
    assert {"rare", "two"} <= taught


def test_numbers_and_sets_of_labels_are_split_too() -> None:
    numbers = [Example(str(n), "t", label=n / 7) for n in range(100)]
    assert len(split(numbers, by="auto", valid=0.1, test=0.1, seed=0, clusters=None)["test"]) == 10
    sets = [Example(str(n), "t", label=(("a",), ("a", "b"), ())[n % 3]) for n in range(90)]
    assert len(split(sets, by="auto", valid=0.1, test=0.1, seed=0, clusters=None)["train"]) == 72


LATE = [Example(str(n), "t", label="late" if n > 90 else "ab"[n % 2], time=float(n)) for n in range(100)]
BAD = {
    "one label": ([Example(str(n), "t", label="a") for n in range(50)], {}, "one label only"),
    "label only in test": (LATE, {"by": "time"}, "never see: late"),
    "one group": ([Example(str(n), "t", label="ab"[n % 2], group="g") for n in range(50)], {}, "1 independent groups for 3 parts"),
    "one cluster": (rows(50), {"clusters": np.zeros(50, int)}, "1 independent groups"),
    "no times": (rows(50), {"by": "time"}, "50 of 50 rows have none"),
    "no groups": (rows(50), {"by": "group"}, "no row has one"),
    "two rows": (rows(2), {}, "2 rows to split"),
    "shares": (rows(50), {"valid": 0.6, "test": 0.6}, "valid 0.6 and test 0.6"),
    "one time": ([Example(str(n), "t", label="ab"[n % 2], time=1.0) for n in range(50)], {"by": "time"}, "nothing left for"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_splits_are_named(case: str) -> None:
    examples, options, match = BAD[case]
    asked = {"by": "auto", "valid": 0.1, "test": 0.1, "seed": 0, "clusters": None} | options
    with pytest.raises(UsageError, match=match) as caught:
        split(examples, **asked)
    assert caught.value.fix
