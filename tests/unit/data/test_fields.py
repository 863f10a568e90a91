"""Fields: formats recognised from their names and values, rows turned into examples, bad cells refused with their row."""

from __future__ import annotations

from typing import Any

import pytest

from knowhow.data import cells
from knowhow.data.fields import FieldMap, examples, infer_labels, recognise
from knowhow.data.sources import open_source
from knowhow.errors import UsageError
from knowhow.types import Completion, Example, Message, Task

CLASSIFY, GENERATE, SCORE, REGRESS = (Task(kind) for kind in ("classify", "generate", "score", "regress"))
USER, BOT = Message("user", "hi"), Message("assistant", "hello")


def one(row: dict[str, Any], task: Task = CLASSIFY, fields: FieldMap | None = None) -> Example:
    return next(examples([row], fields or recognise([row]), task, origin="a.jsonl"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "t", "label": "a"}, FieldMap(text="text", label="label")),
        ({"Sentence": "t", "Intent": 3}, FieldMap(text="Sentence", label="Intent")),
        ({"claim": "c", "evidence": "e", "label": "x", "question": "q"}, FieldMap(text="claim", pair="evidence", label="label")),
        ({"premise": "c", "hypothesis": "e", "label": 0}, FieldMap(text="premise", pair="hypothesis", label="label")),
        ({"text": "t", "question": "q", "context": "c", "label": "x"}, FieldMap(text="text", label="label")),
        ({"instruction": "i", "input": "x", "output": "o"}, FieldMap(text="instruction", pair="input", completion="output")),
        ({"prompt": "i", "completion": "o"}, FieldMap(text="prompt", completion="completion")),
        ({"prompt": "i", "chosen": "o", "rejected": "p"}, FieldMap(text="prompt", chosen="chosen", rejected="rejected")),
        ({"messages": [{"role": "user", "content": "hi"}]}, FieldMap(messages="messages")),
        ({"conversations": [{"from": "human", "value": "hi"}], "label": True}, FieldMap(messages="conversations", label="label")),
        ({"text": "t", "label": 1, "date": "2024-03-31", "weight": 2, "group": "g", "id": "7", "slice": "s"},
         FieldMap(text="text", label="label", time="date", weight="weight", group="group", id="id", slice="slice")),
        ({"text": "t", "label": 1, "date": "spring", "weight": "heavy"}, FieldMap(text="text", label="label")),
    ],
)  # fmt: skip
def test_formats_are_recognised(row: dict[str, Any], expected: FieldMap) -> None:
    assert recognise([row]) == expected


def test_a_table_without_header_is_recognised_by_its_content() -> None:
    rows = [{"column1": "spam" if n % 3 else "ham", "column2": f"a longer text with number {n}"} for n in range(20)]
    assert recognise(rows) == FieldMap(text="column2", label="column1")
    assert recognise([{"column1": f"id {n}", "column2": f"a longer text with number {n}"} for n in range(20)]) == FieldMap(text="column2")


def test_what_the_user_names_is_taken() -> None:
    rows = [{"text": "t", "body": "b", "label": "x", "kind": "y"}]
    assert recognise(rows, FieldMap(text="body", label="kind")) == FieldMap(text="body", label="kind")
    with pytest.raises(UsageError, match=r"data\.fields\.label is 'lable'.*did you mean 'label'"):
        recognise(rows, FieldMap(label="lable"))
    with pytest.raises(UsageError, match="no column that reads like a text among: a, b"):
        recognise([{"a": 1, "b": 2}])


def test_chat_forms_become_messages() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    share = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    for row in (chat, share):
        assert one(row, GENERATE) == Example("a.jsonl#1", (USER,), (Completion("hello"),), origin="a.jsonl")
    assert one(chat | {"label": "greeting"}).prompt == (USER, BOT), "a task of labels reads the whole conversation"
    tools = {"messages": [{"role": "system", "content": "be kind"}, *chat["messages"]], "tools": '[{"name": "f"}]'}
    assert one(tools, GENERATE).prompt[0] == Message("system", 'be kind\n\n[{"name": "f"}]')
    called = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]}
    assert one(called, GENERATE).completions == (Completion('[{"name": "f"}]'),)


def test_preferences() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    good, bad = {"role": "assistant", "content": "hello"}, {"from": "gpt", "value": "no"}
    both = (Completion("hello", "chosen"), Completion("no", "rejected"))
    for chosen, rejected in (("hello", "no"), (good, bad), ([good], [bad]), ([*prompt, good], [*prompt, bad])):
        found = one({"messages": prompt, "chosen": chosen, "rejected": rejected}, GENERATE)
        assert (found.prompt, found.completions) == ((USER,), both)
    found = one({"prompt": "hi", "chosen": "hello", "rejected": "no"}, GENERATE)
    assert (found.prompt, found.completions) == ("hi", both)
    kto = {"messages": [*prompt, good], "label": False}
    assert one(kto, GENERATE).completions == (Completion("hello", "rejected", 0.0),)
    with pytest.raises(UsageError, match="answer different prompts"):
        one({"messages": prompt, "chosen": [{"role": "user", "content": "other"}, good], "rejected": "no"}, GENERATE)
    with pytest.raises(UsageError, match="ends with a user message"):
        one({"messages": prompt, "chosen": prompt, "rejected": "no"}, GENERATE)


@pytest.mark.parametrize(
    ("cell", "task", "expected"),
    [
        (" spam ", CLASSIFY, "spam"),
        (3, CLASSIFY, "3"),
        (3.0, CLASSIFY, "3"),
        (True, CLASSIFY, "true"),
        (True, Task("classify", ("False", "True")), "True"),
        ("b|a", Task("classify", many=True), ("a", "b")),
        ("b, a", Task("classify", ("b", "a"), many=True), ("b", "a")),
        (["x", "y", "x"], Task("classify", many=True), ("x", "y")),
        ('["x"]', Task("classify", many=True), ("x",)),
        ("", Task("classify", many=True), ()),
        ("2.5", REGRESS, 2.5),
        ("0.5", SCORE, 0.5),
        ("Supports", SCORE, "Supports"),
        ("1", Task("score", ("0", "1")), "1"),
    ],
)
def test_labels(cell: Any, task: Task, expected: Any) -> None:
    assert cells.label(cell, task, "label", "here") == expected


NAN = float("nan")
BAD: dict[str, tuple[list[dict[str, Any]], Task, str]] = {
    "no label": ([{"text": "t", "label": None}], CLASSIFY, "row 1\n.*no label"),
    "blank label": ([{"text": "t", "label": "x"}, {"text": "t", "label": " "}], CLASSIFY, "row 2\n.*no label"),
    "NaN label": ([{"text": "t", "label": NAN}], CLASSIFY, "no label"),
    "NaN as text": ([{"text": "t", "label": "NaN"}], CLASSIFY, "no label"),
    "NaN number": ([{"text": "t", "label": "nan"}], REGRESS, "no label"),
    "infinite number": ([{"text": "t", "label": "inf"}], REGRESS, "finite number"),
    "number of words": ([{"text": "t", "label": "many"}], REGRESS, "holds 'many'"),
    "fraction as class": ([{"text": "t", "label": 0.5}], CLASSIFY, "the number 0.5 as a class"),
    "unknown label": ([{"text": "t", "label": "spma"}], Task("classify", ("ham", "spam")), r"did you mean 'spam'\?"),
    "list as class": ([{"text": "t", "label": ["a"]}], CLASSIFY, "one label"),
    "mixed labels": ([{"text": "t", "label": "a"}, {"text": "t", "label": 1}], CLASSIFY, "row 2\n.*a number .*row 1 holds text"),
    "no text": ([{"text": None, "label": "a"}], CLASSIFY, "no text"),
    "blank text": ([{"text": " \n", "label": "a"}], CLASSIFY, "an empty text"),
    "number as text": ([{"text": "t", "label": "a"}, {"text": 7, "label": "a"}], CLASSIFY, "row 2\n.*a number '7'"),
    "object as text": ([{"text": {"a": 1}, "label": "a"}], CLASSIFY, "an object"),
    "field gone": ([{"text": "t", "label": "a"}, {"texd": "t", "label": "a"}], CLASSIFY, r"row 2\n.*no field 'text' \(did you mean 'texd'\?\)\n.*texd, label"),
    "no pair": ([{"text": "t", "label": "a"}], SCORE, "second text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case: str) -> None:
    rows, task, match = BAD[case]
    with pytest.raises(UsageError, match=match) as caught:
        list(examples(rows, FieldMap(text="text", label="label"), task, origin="a.jsonl"))
    assert "a.jsonl" in caught.value.where
    assert caught.value.fix


def test_weights_times_and_ids() -> None:
    fields = FieldMap(text="text", label="label", weight="n", time="at", id="key", group="who")
    row = {"text": "t", "label": "a", "n": "3", "at": "1970-01-02T00:00:00Z", "key": 12.0, "who": 5}
    found = one(row, fields=fields)
    assert (found.weight, found.time, found.id, found.group) == (3.0, 86400.0, "12", "5")
    assert one(row | {"at": "1970-01-02"}, fields=fields).time == 86400.0
    assert one(row | {"at": 17}, fields=fields).time == 17.0
    assert one(row | {"at": None, "key": None}, fields=fields).id == "a.jsonl#1"
    for bad, match in (({"n": 0}, "weight of 0"), ({"n": "x"}, "finite number"), ({"at": "soon"}, "ISO 8601")):
        with pytest.raises(UsageError, match=match):
            one(row | bad, fields=fields)


def test_labels_are_inferred_in_order() -> None:
    rows = [Example("1", "t", label=label) for label in ("b", "a", ("c", "a"), None)]
    assert infer_labels(rows) == ("a", "b", "c")
    assert infer_labels([Example("1", "t", label=label) for label in ("10", "9", "-1")]) == ("-1", "9", "10")
    with pytest.raises(UsageError, match="no row has a label"):
        infer_labels([Example("1", "t")])


def test_training_needs_a_label_column_and_prediction_does_not() -> None:
    assert one({"text": "t"}).label is None
    with pytest.raises(UsageError, match="reads like a label"):
        list(examples([{"text": "t"}], FieldMap(text="text"), CLASSIFY, origin="a.csv", need_label=True))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("alpaca_en_demo", {("target",)}),
        ("dpo_en_demo", {("chosen", "rejected")}),
        ("kto_en_demo", {("chosen",), ("rejected",)}),
        ("glaive_toolcall_en_demo", {("target",)}),
    ],
)
def test_real_instruction_and_preference_files(shared_data: Any, name: str, roles: set[tuple[str, ...]]) -> None:
    rows = list(open_source(shared_data / "tasks" / "demos" / f"{name}.json").rows())
    found = list(examples(rows, recognise(rows[:50]), GENERATE, origin=name))
    assert len(found) == len(rows) >= 300
    assert {tuple(completion.role for completion in example.completions) for example in found} == roles
    assert all(completion.text.strip() for example in found for completion in example.completions)


def test_real_pairs_and_tables(shared_data: Any) -> None:
    rows = list(open_source(shared_data / "tasks" / "healthver" / "healthver_dev.csv").rows())
    pairs = list(examples(rows, recognise(rows[:50]), SCORE, origin="dev"))
    assert infer_labels(pairs) == ("Neutral", "Refutes", "Supports")
    assert pairs[0].pair.startswith("Covid19 infection")
    rows = list(open_source(shared_data / "tasks" / "banking77" / "train.tsv").rows())
    assert len(infer_labels(examples(rows, recognise(rows[:50]), CLASSIFY, origin="train"))) == 77
