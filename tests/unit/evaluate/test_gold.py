from __future__ import annotations

import numpy as np
import pytest

from knowhow.errors import UsageError
from knowhow.evaluate.gold import gold_of, input_key, text_of
from knowhow.types import Completion, Example, Message, Task

ONE = Task("classify", ("a", "b"))
MANY = Task("classify", ("a", "b", "c"), many=True)


def test_each_kind_of_answer() -> None:
    assert gold_of([Example("1", "x", label="b"), Example("2", "y", label="a")], ONE).values.tolist() == [1, 0]
    many = gold_of([Example("1", "x", label=("c", "a")), Example("2", "y", label=()), Example("3", "z", label="b")], MANY)
    assert many.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert gold_of([Example("1", "x", label=2)], Task("regress")).values.tolist() == [2.0]
    rows = [Example("1", "x", (Completion("no", "rejected"), Completion("yes", "chosen"))), Example("2", "y", (Completion("t"),))]
    assert gold_of(rows, Task("generate")).values == ["yes", "t"]


def test_copies_are_weights_and_equal_inputs_one_cluster() -> None:
    rows = [Example("1", "x  y", label="a", weight=3), Example("2", "x y", label="b"), Example("3", "z", label="a")]
    gold = gold_of(rows, ONE)
    assert gold.weights_N.tolist() == [3, 1, 1]
    assert gold.clusters_N.tolist() == [0, 0, 1]
    grouped = gold_of([Example(str(i), f"t{i}", label="a", group="gh"[i // 2]) for i in range(4)], ONE)
    assert grouped.clusters_N.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("example", "task", "says"),
    [
        (Example("r7", "x", label="zzz"), ONE, "r7 has label 'zzz'"),
        (Example("r7", "x"), ONE, "None"),
        (Example("r7", "x", label=("a", "q")), MANY, "'q'"),
        (Example("r7", "x", label=1.0), MANY, "1.0"),
        (Example("r7", "x", label=float("nan")), Task("regress"), "nan"),
        (Example("r7", "x", label="high"), Task("regress"), "'high'"),
        (Example("r7", "x"), Task("generate"), "no answer"),
    ],
)
def test_a_row_without_a_right_answer_is_named(example: Example, task: Task, says: str) -> None:
    with pytest.raises(UsageError, match="row r7") as error:
        gold_of([example], task)
    assert says in str(error.value)
    assert error.value.allowed


def test_text_of_messages_and_pairs() -> None:
    assert text_of(Example("1", (Message("system", "be brief"), Message("user", "hi")))) == "be brief\nhi"
    assert text_of(Example("1", "claim", pair="source")) == "claim\n\nsource"
    assert input_key(Example("1", "claim", pair="source")) != input_key(Example("1", "claim"))
    assert len(input_key(Example("1", "lone \ud800 surrogate"))) == 32
    assert np.unique([input_key(Example("1", text)) for text in ("a b", "a\nb ", "ab")]).size == 2
