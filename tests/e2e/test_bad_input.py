"""Bad input of every kind, through the command line: one screen that says got / allowed / do, the right exit code, nothing half-written, no traceback.

The cases are tables: bad_data, bad_recipes, bad_models, bad_use. What needs a process of its own (memory, disk, signals, pipes) is in test_bad_world.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import bad_data
import bad_models
import bad_recipes
import bad_use
import pytest
from bad_place import Case, Outcome, Place, judge, machine_readable, play, tree

TABLES = {"data": bad_data.CASES, "recipe": bad_recipes.CASES, "model": bad_models.CASES, "use": bad_use.CASES}
CASES = [pytest.param(case, id=f"{table}: {case.name}") for table, cases in TABLES.items() for case in cases]
REFUSED = [pytest.param(case, id=f"{table}: {case.name}") for table, cases in TABLES.items() for case in cases[::4] if case.code and case.leaves == "nothing"]


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words = case.given(place)
    capfd.readouterr()
    judge(case, play(words, place.folder, capfd.readouterr))


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_for_machines(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*case.given(place), "--json"]
    capfd.readouterr()
    machine_readable(case, play(words, place.folder, capfd.readouterr))


def test_there_are_enough_cases_and_none_twice() -> None:
    names = [case.name for cases in TABLES.values() for case in cases]
    assert len(names) == len(set(names))
    assert len(names) >= 200
    assert {case.code for cases in TABLES.values() for case in cases} == {0, 2, 3, 4, 5}


def test_the_rules_can_fail(tmp_path: Path) -> None:
    """A judge that lets everything pass would hide every fault."""
    good = "knowhow: error\n     got: zebra\n allowed: horse\n"
    case = Case("one", lambda place: [], ("zebra",))
    judge(case, Outcome(2, "", good))
    other, bare = good.replace("zebra", "mule"), good.replace(" allowed: horse\n", "")
    for code, err in ((1, good), (2, good + "Traceback"), (2, other), (2, bare), (2, good + "x\n" * 30), (2, good + "x" * 3000)):
        with pytest.raises(AssertionError):
            judge(case, Outcome(code, "", err))
    (tmp_path / "run").mkdir()
    left = tree(tmp_path)
    with pytest.raises(AssertionError):
        judge(case, Outcome(2, "", good, {}, left))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / ".x.part").write_text("")
    with pytest.raises(AssertionError):
        judge(Case("two", lambda place: [], ("zebra",), leaves="more"), Outcome(2, "", good, {}, tree(tmp_path)))
