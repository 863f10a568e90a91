"""Recipes: overrides, migration, paths, and errors that name line, key, allowed values and the nearest key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from knowhow.errors import UsageError
from knowhow.reading import data_folder, dump, expanded, locate, located, migrate, read, schema
from knowhow.reading.text import parse
from knowhow.recipe import PretrainRecipe, Recipe

GOOD = """\
schema_version: 1
name: demo
data:
  train: rows.csv
adapt:
  - lr: 1e-3
    epochs: 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,label\n")
    path = tmp_path / "demo.yaml"
    path.write_text(GOOD)
    return path


def specialist(path: Path, *sets: str, **environ: str) -> Recipe:
    found = read(path, sets, environ=environ)
    assert isinstance(found, Recipe)
    return found


def complaint(path: Path, text: str | None = None, *sets: str, **environ: str) -> UsageError:
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(path, sets, environ=environ)
    assert str(caught.value).count("\n") < 22, "an error fits one screen"
    return caught.value


def test_reads_what_was_said(recipe: Path) -> None:
    found = specialist(recipe)
    assert (found.name, found.adapt[0].lr, found.adapt[0].epochs, found.seed) == ("demo", 1e-3, 2.0, 0)


def test_last_said_wins(recipe: Path) -> None:
    assert specialist(recipe, KNOWHOW_SEED="4").seed == 4
    assert specialist(recipe, KNOWHOW_SEED="4", KNOWHOW_SET="seed=5; adapt.0.lr=2").seed == 4
    assert specialist(recipe, "seed=6", "seed=7", KNOWHOW_SEED="4").seed == 7


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("adapt.0.lr=1e-4", ("adapt", 0, "lr"), 1e-4),
        ("adapt.0.lr=[1e-4, 3e-4]", ("adapt", 0, "lr"), [1e-4, 3e-4]),
        ("task.labels=[yes, no]", ("task", "labels"), ["yes", "no"]),
        ("data.split={by: time}", ("data", "split", "by"), "time"),
        ("data.fields.text=body", ("data", "fields", "text"), "body"),
        ("adapt.0.epochs=", ("adapt", 0, "epochs"), None),
        ("description=a=b", ("description",), "a=b"),
        ("task.instruction=Is it: yes # or no?", ("task", "instruction"), "Is it: yes # or no?"),
        ("task.instruction='3'", ("task", "instruction"), "3"),
    ],
)
def test_set(recipe: Path, override: str, path: tuple[str | int, ...], value: object) -> None:
    found: Any = specialist(recipe, override).model_dump()
    for part in path:
        found = found[part]
    assert found == value


def test_set_makes_the_first_phase(recipe: Path) -> None:
    recipe.write_text("name: demo\ndata: {train: rows.csv}\n")
    assert specialist(recipe, "adapt.0.lr=0.5").adapt[0].lr == 0.5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "key.path=value"),
        ("=3", "key.path=value"),
        ("adapt..lr=3", "key.path=value"),
        ("adapt.1.lr=3", "which has 1"),
        ("adapt.lr=3", "number of an item"),
        ("name.x=3", "key of a section"),
        ("lr=3", "adapt.0.lr"),
        ("adapt.0.learning_rate=3", "adapt.0.lr"),
        ("adapt.0.lr=fast", "a number above 0"),
        ("task.labels=[yes, no", "quotes"),
        ("name=a\x07b", "control character"),
        ("seed=1\n2", "whole number"),
    ],
)
def test_set_refused_with_its_origin(recipe: Path, override: str, said: str) -> None:
    error = complaint(recipe, None, override)
    assert said in str(error)
    assert error.where.startswith("--set")


def test_environment_is_named_in_errors(recipe: Path) -> None:
    assert complaint(recipe, None, KNOWHOW_SET="sed=3").where.startswith("KNOWHOW_SET")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD + "sed: 3\n", 8, ["`sed`", "did you mean `seed`", "seed"]),
        (GOOD + "lr: 3\n", 8, ["did you mean `adapt.0.lr`"]),
        (GOOD.replace("epochs: 2", "epoch: 2"), 7, ["did you mean `adapt.0.epochs`"]),
        (GOOD.replace("demo", "My Demo"), 2, ["My Demo", "small letters"]),
        (GOOD.replace("demo", "../demo"), 2, ["../demo"]),
        (GOOD.replace("1e-3", "[1, -1]"), 6, ["adapt.0.lr.1", "-1", "above 0"]),
        (GOOD.replace("1e-3", ".nan"), 6, ["adapt.0.lr", "above 0"]),
        (GOOD.replace("1e-3", ".inf"), 6, ["adapt.0.lr"]),
        (GOOD.replace("1e-3", "true"), 6, ["true", "above 0"]),
        (GOOD.replace("epochs: 2", "steps: 1.5"), 7, ["whole number"]),
        (GOOD.replace("epochs: 2", "steps: 3\n    epochs: 2"), 6, ["steps and epochs"]),
        (GOOD + "task: {labels: [0, 1]}\n", 8, ["2 problems"]),
        (GOOD + "task: {labels: [a, 1]}\n", 8, ["quotes"]),
        (GOOD + "task: {kind: clasify}\n", 8, ["clasify", "classify, regress, generate, score"]),
        (GOOD.replace("  train: rows.csv", "  limit: 5"), 3, ["train", "generate"]),
        (GOOD.replace("rows.csv", "row.csv"), 4, ["row.csv", "did you mean", "rows.csv"]),
        (GOOD.replace("adapt:\n", "adapt: 3\nbudget:\n"), 5, ["adapt"]),
        ("data: {train: rows.csv}\n", 1, ["no `name`", "add `name:`"]),
        ("schema_version: 9\n" + GOOD[18:], 1, ["up to 1", "upgrade"]),
        ("schema_version: new\n" + GOOD[18:], 1, ["whole number"]),
    ],
)
def test_errors_name_line_key_and_cure(recipe: Path, text: str, line: int, words: list[str]) -> None:
    error = complaint(recipe, text)
    shown = str(error)
    assert f"demo.yaml:{line}" in shown
    assert not [word for word in words if word not in shown], shown
    assert "Traceback" not in shown
    assert "pydantic" not in shown


def test_every_problem_in_one_error(recipe: Path) -> None:
    shown = str(complaint(recipe, GOOD.replace("demo", "A B") + "sed: 3\nbudgt: {}\n"))
    assert shown.index("demo.yaml:2") < shown.index("demo.yaml:8") < shown.index("demo.yaml:9")


def test_many_problems_still_fit_a_screen(recipe: Path) -> None:
    assert "and 92 more" in str(complaint(recipe, GOOD + "".join(f"key{n}: {n}\n" for n in range(100))))


@pytest.mark.parametrize(("text", "said"), [("", "empty recipe"), ("# nothing\n", "empty recipe"), ("- a\n", "a list"), ("hello\n", "one value")])
def test_what_is_no_recipe(recipe: Path, text: str, said: str) -> None:
    assert said in str(complaint(recipe, text))


def test_version_0_is_migrated(recipe: Path) -> None:
    recipe.write_text("name: demo\nmodel: seedling\nepochs: 3\ndata: {train: rows.csv}\n")
    found = specialist(recipe)
    assert (found.schema_version, found.base.model, found.adapt[0].epochs) == (1, "seedling", 3.0)


def test_migration_keeps_lines_and_what_is_there(recipe: Path) -> None:
    assert "demo.yaml:2" in str(complaint(recipe, "name: demo\nepochs: -3\ndata: {train: rows.csv}\n"))
    assert migrate({"name": "x", "model": "a", "base": {"model": "b"}})["base"] == {"model": "b"}
    assert migrate({"schema_version": 0, "epochs": 3}) == {"schema_version": 1, "adapt": [{"epochs": 3}]}
    raw = {"epochs": 3, "adapt": [{"lr": 1.0}]}
    assert migrate(raw)["adapt"] == [{"lr": 1.0, "epochs": 3}]
    assert raw["adapt"] == [{"lr": 1.0}], "the raw recipe is not changed"


def test_current_version_does_not_migrate(recipe: Path) -> None:
    assert "`epochs`" in str(complaint(recipe, GOOD + "epochs: 3\n"))


def test_paths(recipe: Path, tmp_path: Path) -> None:
    environ = {"KNOWHOW_DATA": str(tmp_path / "data")}
    assert locate("rows.csv", tmp_path) == str(tmp_path / "rows.csv")
    assert locate("../other.csv", tmp_path) == str(tmp_path.parent / "other.csv")
    assert locate("$KNOWHOW_DATA/a.csv", tmp_path, environ) == str(tmp_path / "data" / "a.csv")
    assert locate("${KNOWHOW_DATA}/a.csv", tmp_path, environ) == str(tmp_path / "data" / "a.csv")
    assert locate("org/name", tmp_path) == "org/name"
    assert locate("seedling", tmp_path) == "seedling"
    assert data_folder(environ) == tmp_path / "data"
    found = specialist(recipe)
    assert found.data.train == "rows.csv", "a recipe keeps its paths as written"
    assert located(found, tmp_path).data.train == str(tmp_path / "rows.csv")
    assert expanded(found).data.train == "rows.csv"
    inside = found.model_copy(update={"data": found.data.model_copy(update={"train": "$KNOWHOW_DATA/a.csv"})})
    assert expanded(inside, environ).data.train == str(tmp_path / "data" / "a.csv")


def test_unset_data_folder_is_named(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knowhow.reading.paths.data_folder", lambda environ: None)
    error = complaint(recipe, GOOD.replace("rows.csv", "$KNOWHOW_DATA/rows.csv"))
    assert "KNOWHOW_DATA is not set" in str(error)
    assert "export KNOWHOW_DATA" in str(error)
    assert error.where == "demo.yaml:4"


def test_corpora_make_a_base_recipe(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text("name: base\ntokens: 100000\ncorpora: {a: {files: [a.jsonl]}}\nvalid: {a: {files: [a.jsonl]}}\n")
    (tmp_path / "a.jsonl").write_text("")
    assert isinstance(read(path), PretrainRecipe)
    path.write_text("name: base\ntokens: 100000\ncorpora: {a: {files: [b.jsonl]}}\nvalid: {a: {files: [a.jsonl]}}\n")
    assert complaint(path).where == "base.yaml:3"
    assert isinstance(read(path, must_exist=False), PretrainRecipe)


def test_dump_reads_back(recipe: Path) -> None:
    found = specialist(recipe, "task.labels=[yes, no]", "description=a b")
    recipe.write_text(dump(found))
    assert specialist(recipe) == found


def test_schema_says_what_the_reader_says() -> None:
    check = jsonschema.Draft202012Validator(schema())
    check.check_schema(schema())
    assert not list(check.iter_errors(parse(GOOD, "r").value))
    for wrong in ("sed: 3\n", "task: {kind: clasify}\n", "seed: -1\n"):
        assert list(check.iter_errors(parse(GOOD + wrong, "r").value)), wrong
    assert not list(check.iter_errors({"name": "b", "tokens": 5, "corpora": {}, "valid": {}}))
    assert json.dumps(schema()) == json.dumps(schema())
