from __future__ import annotations

import io
import json
import math
from pathlib import Path

import fake_run
import pytest
from rich.console import Console
from scipy import stats

from knowhow.report import page
from knowhow.report.diff import mcnemar
from knowhow.report.tables import diff_table


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path / "a")
    found = page.diff(run, run)
    assert (found["recipe"], found["data"], found["stages"], found["cost"]) == ([], [], [], [])
    assert all(row["difference"] == 0 and row["better"] is None for row in found["results"])
    assert found["same_rows"]["only_a_right"] == found["same_rows"]["only_b_right"] == 0
    assert found["same_rows"]["p"] == 1


def test_differences_of_recipe_data_results_and_cost(tmp_path: Path) -> None:
    a = fake_run.write_run(tmp_path / "a")
    b = fake_run.write_run(tmp_path / "b", models=fake_run.MODELS | {"specialist": 0.712})
    recipe = json.loads((b / "recipe.json").read_text())
    recipe["adapt"][1]["lr"] = 0.5
    recipe["base"]["model"] = "other"
    fake_run.save(b / "recipe.json", recipe)
    measured = json.loads((b / "measured.json").read_text())
    fake_run.save(b / "measured.json", measured | {"bytes": measured["bytes"] * 2})
    found = page.diff(a, b)
    assert found["recipe"] == [{"key": "base.model", "a": "seedling", "b": "other"}, {"key": "adapt[1].lr", "a": 0.0002, "b": 0.5}]
    assert found["cost"] == [{"key": "bytes", "a": 13_420_000, "b": 26_840_000, "change": 1.0}]
    row = next(row for row in found["results"] if (row["model"], row["metric"], row["slice"]) == ("specialist", "macro_f1", "all"))
    assert row["difference"] == pytest.approx(0.1)
    assert (row["low"], row["high"]) == (pytest.approx(0.1 - math.hypot(0.021, 0.021)), pytest.approx(0.1 + math.hypot(0.021, 0.021)))
    assert row["better"] == "b"
    json.dumps(found, allow_nan=False)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(diff_table(found))
    assert "+0.100" in console.export_text()


def test_examples_are_listed_nowhere_in_a_diff(tmp_path: Path) -> None:
    a, b = fake_run.write_run(tmp_path / "a"), fake_run.write_run(tmp_path / "b", hostile=True)
    assert not [row["key"] for row in page.diff(a, b)["data"] if "examples" in row["key"]]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 9), (10, 10), (0, 25), (400, 460)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    wanted = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(wanted, rel=1e-9)
