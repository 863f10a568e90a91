from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from knowhow.evaluate import memorisation as m
from knowhow.types import Completion, Example, Task

GENERATE = Task("generate")


def test_canaries_are_copied_disjoint_and_reproducible() -> None:
    canaries = m.plant(5, 4, seed=1, alternatives=20)
    assert (len(canaries.planted), len(canaries.probes), len(canaries.alternatives)) == (20, 5, 20)
    assert len({row.id for row in canaries.planted}) == 20
    assert {row.completions for row in canaries.planted} == {row.completions for row in canaries.probes}
    assert not {row.completions for row in canaries.probes} & {row.completions for row in canaries.alternatives}
    assert canaries == m.plant(5, 4, seed=1, alternatives=20)
    assert canaries.probes != m.plant(5, 4, seed=2, alternatives=20).probes


@pytest.mark.parametrize(
    ("task", "kind"),
    [(Task("classify", ("a", "b")), str), (Task("classify", ("a", "b"), many=True), tuple), (Task("regress"), float), (Task("score", ("y", "n")), str)],
)
def test_canaries_have_an_answer_of_the_tasks_kind(task: Task, kind: type) -> None:
    rows = m.plant(30, 1, 0, task).probes
    assert all(isinstance(row.label, kind) for row in rows)
    assert len({row.label for row in rows}) > 1, "random answers"
    assert all((row.pair is not None) == (task.kind == "score") for row in rows)


def test_exposure_by_hand() -> None:
    result = m.exposure(np.array([0.0, 2.5]), np.array([1.0, 2, 3]), copies=7)
    assert result["per_canary"] == [2.0, pytest.approx(np.log2(4 / 3))]
    assert (result["ceiling"], result["read_back"], result["copies"]) == (2.0, 1, 7)
    assert result["chance"] == pytest.approx(np.mean(np.log2(4 / np.arange(1, 5))))
    json.dumps(result)


def test_exposure_of_an_ignorant_model_is_chance() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    results = [m.exposure(random.normal(size=20), random.normal(size=255)) for _ in range(40)]
    assert np.mean([result["exposure"] for result in results]) == pytest.approx(results[0]["chance"], abs=0.25)
    assert np.mean([result["p"] < 0.05 for result in results]) < 0.2
    known = m.exposure(random.normal(-9, 1, 20), random.normal(size=255))
    assert known["exposure"] == known["ceiling"] == 8
    assert known["p"] < 1e-6


class Parrot:
    """Continues the rows that it has learned by heart."""

    def __init__(self, rows: Sequence[m.Pair]) -> None:
        self.rows = dict(rows)

    def __call__(self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int) -> list[str]:
        assert temperature == 0
        return [" ".join(self.rows.get(prompt, "nothing known").split()[:max_new_tokens]) for prompt in prompts]


def test_extraction_finds_what_is_known_by_heart() -> None:
    rows = [(f"prefix {i}", " ".join(f"w{i}-{j}" for j in range(20))) for i in range(40)]
    short = [("prefix short", "too short")]
    result = m.extraction(Parrot(rows[:10]), rows[:20] + short, rows[20:])
    assert (result["share"], result["rows"], result["longest"]) == (0.5, 20, 20)
    assert (result["control_share"], result["control_longest"]) == (0, 0)
    assert result["p"] < 0.001
    assert m.extraction(Parrot(rows), rows, rows)["p"] > 0.4, "boilerplate that unseen rows share is no memory"
    assert "w1-1" not in json.dumps(result)
    nothing = m.extraction(Parrot([]), short, short)
    assert nothing["rows"] == 0


def test_extraction_needs_the_stated_length() -> None:
    row = [("p", " ".join("abcdefghij"))]
    parrot = Parrot([("p", " ".join("abcdeXXXXX"))])
    assert m.extraction(parrot, row, [], least=5)["share"] == 1
    assert m.extraction(parrot, row, [], least=6)["share"] == 0


def test_pairs_of_prefix_and_rest() -> None:
    rows = [Example("1", "a b c d", label="x"), Example("2", "a b", label="x")]
    assert m.pairs(rows, Task("classify", ("x",)), prefix_words=2) == [("a b", "c d")]
    assert m.pairs([Example("1", "ask", (Completion("say"),))], GENERATE) == [("ask", "say")]


def test_membership() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    none = m.membership(random.gamma(2, size=400), random.gamma(2, size=300), draws=200)
    assert none["low"] < 0.5 < none["high"]
    some = m.membership(random.gamma(2, size=400) * 0.5, random.gamma(2, size=300), draws=200)
    assert 0.6 < some["low"] < some["auc"] < some["high"] < 1
    assert some["tpr_at_1e-2"] <= 0.2
    assert (some["rows"], some["unseen_rows"]) == (400, 300)
    losses_N, tens_N = np.repeat(random.gamma(2, size=40), 10), np.arange(400) // 10
    clustered = m.membership(losses_N, losses_N[::-1], clusters_train_N=tens_N, clusters_unseen_N=tens_N, draws=200)
    assert clustered["high"] - clustered["low"] > 2 * (none["high"] - none["low"])
