"""A first look at data, `knowhow init` and `knowhow inspect`: what they see is what a build then reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knowhow import reading
from knowhow.cli import main
from knowhow.commands.look import data_spec, look
from knowhow.errors import UsageError
from knowhow.recipe import Recipe


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knowhow.commands.failures._settle", lambda debug: None)


def rows(made: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in made))
    return name


FORMS: dict[str, tuple[list[dict[str, Any]], str, bool]] = {
    "labels": ([{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(9)], "classify", False),
    "numbered classes": ([{"text": f"text {n}", "label": n % 3} for n in range(90)], "classify", False),
    "many labels": ([{"text": f"text {n}", "labels": ["a", "b"][: n % 3]} for n in range(9)], "classify", True),
    "numbers": ([{"text": f"text {n}", "score": n + 0.5} for n in range(9)], "regress", False),
    "whole numbers": ([{"text": f"text {n}", "score": n} for n in range(90)], "regress", False),
    "pairs": ([{"premise": f"p {n}", "hypothesis": f"h {n}", "label": "yes" if n % 2 else "no"} for n in range(9)], "score", False),
    "answers": ([{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(9)], "generate", False),
    "preferences": ([{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(9)], "generate", False),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_the_task_is_seen(form: str) -> None:
    made, kind, many = FORMS[form]
    seen = look(data_spec(rows(made), []))
    assert (seen.kind, seen.many, seen.rows) == (kind, many, len(made))


def test_labels_are_counted() -> None:
    assert look(data_spec(rows(FORMS["labels"][0]), [])).labels == {"a": 5, "b": 4}


def test_fields_can_be_named() -> None:
    where = rows([{"one": f"first {n}", "two": f"second {n}", "what": "ab"[n % 2]} for n in range(9)])
    seen = look(data_spec(where, ["fields.text=two", "data.fields.label=what"]))
    assert (seen.columns["text"], seen.columns["label"]) == ("two", "what")
    with pytest.raises(UsageError, match="tree"):
        look(data_spec(where, ["fields.text=tree"]))
    with pytest.raises(UsageError, match=r"did you mean `fields\.text`"):
        data_spec(where, ["fields.txt=two"])


def test_without_an_answer_there_is_no_task() -> None:
    with pytest.raises(UsageError, match="label"):
        look(data_spec(rows([{"text": f"only words {n}"} for n in range(5)]), []))


@pytest.mark.parametrize("form", list(FORMS))
def test_init_writes_a_recipe_that_reads(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    made, kind, many = FORMS[form]
    assert main(["init", "--data", rows(made), "--yes", "--out", "My Recipe.yaml"]) == 0
    found = reading.read("My Recipe.yaml", environ={})
    assert isinstance(found, Recipe)
    assert (found.name, found.task.kind, found.task.many, found.base.model) == ("my-recipe", kind, many, "seedling")
    assert Path("recipe.schema.json").is_file()
    assert main(["init", "--data", "rows.jsonl", "--yes", "--out", "My Recipe.yaml"]) == 2
    assert "there already" in capsys.readouterr().err


def test_init_for_machines_and_other_folders(capsys: pytest.CaptureFixture[str]) -> None:
    Path("base").mkdir()
    words = ["init", "--data", rows(FORMS["labels"][0]), "--base", "base", "--task", "classify", "--out", "deep/r.yaml", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"] == "deep/r.yaml"
    found = reading.read("deep/r.yaml", environ={})
    assert isinstance(found, Recipe)
    assert (found.data.train, found.base.model) == ("../rows.jsonl", "../base")
    assert found.adapt[0].method == "lora", "a base that is not embedded is adapted, not rewritten"


def test_odd_names_survive_init() -> None:
    made = [{"a: b #": f"words {n}", "label": ["yes", "a, b", "{x}", "1e3", "é"][n % 5]} for n in range(20)]
    Path("odd, name.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    assert main(["init", "--data", "odd, name.jsonl", "--yes"]) in (0, 2)
    Path("recipe.yaml").unlink(missing_ok=True)
    assert main(["init", "--data", rows([{"text": row["a: b #"], "label": row["label"]} for row in made]), "--yes"]) == 0
    found = reading.read("recipe.yaml", environ={})
    assert isinstance(found, Recipe)
    assert set(found.task.labels or ()) == {"yes", "a, b", "{x}", "1e3", "é"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--yes"], "--data"),
        (["--data", "absent.csv", "--yes"], "absent.csv"),
        (["--data", "rows.jsonl", "--task", "sort", "--yes"], "classify, regress, generate, score"),
        (["--data", "rows.jsonl", "--base", "./absent", "--yes"], "base.model"),
    ],
)
def test_init_refuses(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows(FORMS["labels"][0])
    assert main(["init", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("recipe.yaml").exists(), "nothing half-written"


def test_inspect_finds_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    made = [{"text": f"some words and number {n} {n * n}", "label": "ab"[n % 2]} for n in range(40)]
    made += made[:3] + [{**made[4], "label": "b"}]
    valid = rows(made[:2] + [{"text": f"another text {n}", "label": "a"} for n in range(8)], "valid.jsonl")
    assert main(["inspect", rows(made), "--set", f"valid={valid}", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == {"train": 44, "valid": 10}
    assert report["task"] == {"kind": "classify", "many": False, "labels": ["a", "b"]}
    assert report["conflicts"]["inputs"] >= 1
    assert report["warnings"]
    assert main(["inspect", "rows.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "exact duplicates" in shown
    assert "! " in shown
