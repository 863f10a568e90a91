"""Claims of a reader whose rule is known: the label holds when two calls are both there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from knowhow.team.answer import Reader, answers
from knowhow.team.near import Cases
from knowhow.types import Item

LABELS = ("pair", "never")


class Words:
    """A tokenizer of one token a word."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(range(len(text.split()))) for text in texts]}


def reader(rule: Callable[[str], bool], context: int = 400) -> Reader:
    def logits(texts: Sequence[str]) -> np.ndarray:
        return np.array([[3.0 if rule(text) else -3.0, -5.0] for text in texts])

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        return 1 / (1 + np.exp(-logits(texts)))

    asked: Any = SimpleNamespace(
        context=context, before="", loaded=SimpleNamespace(tokenizer=Words()), scorer=lambda: lambda texts, label: logits(texts)[:, label]
    )
    return Reader("rule", asked, LABELS, probabilities, (0.5, 0.5))


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knowhow.team.answer.infer.encode", lambda tokenizer, texts, context: [[] for _ in texts])


def case(count: int, *marked: int) -> Item:
    lines = [f"{'Mark' if at in marked else 'Call'} a" for at in range(count)]
    ranges, at = [], 0
    for line in lines:
        ranges.append((at, at + len(line)))
        at += len(line) + 1
    return Item("x", "\n".join(lines) + "\n", tuple(ranges), tuple(at in marked for at in range(count)))


def both(text: str) -> bool:
    return text.count("Mark") >= 2


@pytest.mark.parametrize("count", [12, 150])
def test_the_evidence_is_the_two_calls_and_one_of_them_is_enough_to_change_the_answer(count: int) -> None:
    (found,) = answers(reader(both), [case(count, 3, 7)])
    (one,) = found.claims
    assert found.given == ("pair",)
    assert one.units == (3, 7)
    assert one.flips
    assert one.held
    assert one.random_flips == 0
    assert one.enough is not None
    assert len(one.enough[0]) == 1
    assert one.probability > 0.9 > 0.1 > one.without
    assert one.alone == pytest.approx(one.probability)


def test_what_lies_further_apart_than_a_window_is_found_in_the_digest() -> None:
    (found,) = answers(reader(both, context=40), [case(200, 3, 190)])
    assert found.views > 10
    assert found.claims[0].units == (3, 190)


def test_an_answer_that_any_deletion_changes_is_not_held() -> None:
    (found,) = answers(reader(lambda text: len(text.split()) >= 24), [case(12, 3)])
    assert found.claims[0].flips
    assert found.claims[0].random_flips == 1
    assert not found.claims[0].held


def test_nothing_given_is_nothing_claimed_and_evidence_can_be_left_out() -> None:
    few, none = answers(reader(both), [case(5, 1), Item("empty", "", ())])
    assert (few.given, few.claims, none.views, none.given) == ((), (), 0, ())
    (bare,) = answers(reader(both), [case(5, 1, 2)], evidence=False)
    assert bare.given == ("pair",)
    assert bare.claims == ()


def test_the_nearest_case_is_found_past_its_names_and_its_differences_are_told() -> None:
    cases = Cases(("one", "two"), ("Open xaa\nRead xaa\nClose xaa\n", "Ring bell\n"), (("a",), ()), lambda line: line.replace("xbb", "x").replace("xaa", "x"))
    item = Item("new", "Open xbb\nSend xbb\nClose xbb\n", ((0, 8), (9, 17), (18, 27)))
    first, *_ = cases.nearest(item)
    assert (first.id, first.labels, first.same, first.here, first.there) == ("one", ("a",), False, (1,), ("Read xaa",))
    twin = Item("same", "Open xbb\nRead xbb\nClose xbb\n", ((0, 8), (9, 17), (18, 27)))
    assert cases.nearest(twin)[0].same
