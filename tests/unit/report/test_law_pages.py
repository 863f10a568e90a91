"""Pages and figures of laws: what was judged is said, what was not is said too, and docs/laws is in step with the registry."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from knowhow import laws
from knowhow.laws.answers import ANSWERS
from knowhow.laws.judged import FRESH, committed
from knowhow.laws.law import QUESTIONS
from knowhow.laws.rows import of_law
from knowhow.report.law_figures import axis, svg
from knowhow.report.laws import IN_BUILDS, NOT_YET, grid, index, page, points, verdict

DOCS = Path(__file__).resolve().parents[3] / "docs" / "laws"


def there(name: str) -> bool:
    return importlib.util.find_spec(f"knowhow.laws.{name.replace('-', '_')}") is not None


NAMES = [pytest.param(name, marks=[] if there(name) else pytest.mark.skip(reason=f"{name} is not written yet")) for name in laws.NAMES]


def row(measured: float | None, *, verdict: str = "confirmed", value: float = 0.0, high: float | None = 1.0, **more: Any) -> dict[str, Any]:
    found = {"quantity": "error | of it", "site": "run", "value": value, "low": value - 0.5, "high": high, "measured": measured, "residual": measured}
    return {**found, "verdict": verdict, "because": "so", "inside": 0.75, "experiment": 1, **more}


def lines(*measured: float) -> list[dict[str, Any]]:
    return [{"seed": seed, "scored": [row(value)], "controls": {"wrong": [row(9.0, verdict="violated")]}} for seed, value in enumerate(measured)]


JUDGED = {
    "verdict": "confirmed",
    "because": "at 5 of 5 seeds",
    "seeds": {str(seed): "confirmed" for seed in FRESH},
    "controls": {"wrong": True},
    "inside": 0.75,
    "residual": 0.25,
    "figures": [{"experiment": 1, "quantity": "error", "n": 5, "confirmed": 5, "value": 0.0, "low": -0.5, "high": 1.0, "measured": 0.25, "residual": 0.25}],
}
LAW = of_law(laws.law("one-step"))


def test_a_page_holds_the_whole_law() -> None:
    made = page(LAW, JUDGED, lines(0.1, 0.2), lines(0.3), "one-step.svg")
    for section in ("Statement", "Derivation", "Assumptions", "Where it fails", "Source"):
        assert LAW["sections"][section] in made
    assert "**CONFIRMED**, at 5 of 5 seeds" in made
    assert "![prediction against measurement](one-step.svg)" in made
    assert '{"system": "markov-decoder"' in made
    assert "control: first order alone" in made
    assert re.search(r"\| 1 \| error \| 5 \| 5 \| 0 \| -0.5 \| 1 \| 0.25 \|", made)


def test_what_was_not_judged_is_said() -> None:
    made = page(LAW, None, [], lines(0.3), "one-step.svg")
    assert f"It is **{NOT_YET}**" in made
    assert "CONFIRMED" not in made
    assert "gates and tolerances were fixed on" in made
    assert verdict(LAW, None) == NOT_YET
    assert verdict({**LAW, "experiments": []}, None) == IN_BUILDS
    assert IN_BUILDS in page({**LAW, "experiments": [], "controls": []}, None, [], [], "")


def test_a_change_since_and_a_second_judgement_are_said() -> None:
    made = page(LAW, {**JUDGED, "verdict": "violated", "changed": True, "again": "a sign was wrong"}, [], [], "")
    assert "**VIOLATED**" in made
    assert "Judged again: a sign was wrong." in made
    assert "changed since" in made


def test_a_control_that_did_not_fail_stands_out() -> None:
    passed = [{"seed": 0, "scored": [row(0.1)], "controls": {"first order alone": [row(0.2)]}}]
    assert "did NOT fail" in page(LAW, JUDGED, passed, [], "")
    assert "not run" in page(LAW, JUDGED, lines(0.1), [], "")


def test_the_index_links_each_answer_to_its_laws() -> None:
    made = index([LAW], {"one-step": JUDGED}, QUESTIONS, {"dynamics": "Because of [one-step] and [nobody]."})
    assert "[one-step](one-step.md) (confirmed)" in made
    assert "and [nobody]." in made
    assert "How these follow" in made
    assert "1 laws" in made


def test_cells_do_not_break_the_table() -> None:
    assert grid(("a",), [("|cos|\nof it",)]) == "| a |\n| --- |\n| \\|cos\\| of it |"


def test_figures_are_the_same_text_and_hold_every_mark() -> None:
    drawn = svg(points(lines(0.1, 0.2, 0.3)))
    assert drawn == svg(points(lines(0.1, 0.2, 0.3)))
    tree = ElementTree.fromstring(drawn)
    text = "".join(tree.itertext())
    assert "error | of it" in text
    assert "experiment 1" in text
    assert "control: wrong" in text
    assert drawn.count("#1f5fa8") >= 3
    assert svg(points([{"seed": 0, "scored": [row(None, verdict="not applicable")], "controls": {}}])) == ""


def test_many_predictions_are_drawn_against_what_was_measured() -> None:
    many = [{"seed": 0, "scored": [row(k + 0.1, value=float(k), high=k + 0.5, site=f"mode.{k}") for k in range(9)], "controls": {}}]
    text = "".join(ElementTree.fromstring(svg(points(many))).itertext())
    assert "predicted" in text
    assert "mode.3" not in text


@pytest.mark.parametrize("high", [None, 1e9])
def test_open_ends_and_wide_ranges_are_drawn(high: float | None) -> None:
    assert "<svg" in svg(points([{"seed": 0, "scored": [row(0.25, high=high)], "controls": {}}]))


def test_axes_are_logarithmic_where_orders_differ_and_nothing_is_negative() -> None:
    def kind(*numbers: float) -> Any:
        return axis([{"measured": number, "value": 0.0, "low": 0.0, "high": None} for number in numbers]).to_dict().get("type")

    assert kind(1e-5, 1.0) == "log"
    assert kind(0.5, 1.0) is None
    assert kind(-1.0, 1e-5, 1.0) is None
    assert all(map(math.isfinite, axis([{"measured": 0.0, "value": 0.0, "low": 0.0, "high": 0.0}]).to_dict()["domain"]))


@pytest.mark.parametrize("name", NAMES)
def test_docs_are_in_step_with_the_registry(name: str) -> None:
    """`make docs` writes them anew."""
    law, text = of_law(laws.law(name)), (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert f"# {law['title']}\n" in text
    for section, said in law["sections"].items():
        assert f"## {section}\n\n{said}" in text, f"{section} differs from the law's: make docs"
    assert f"Tolerance: {law['tolerance']}." in text
    for one in (*law["experiments"], *(control["experiment"] for control in law["controls"] if control["experiment"])):
        assert json.dumps(one, ensure_ascii=False) in text
    said = committed().get(name)
    assert (f"**{said['verdict'].upper()}**" in text) if said else (NOT_YET in text or IN_BUILDS in text)
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    assert f"| [{name}]({name}.md) | {law['title'].replace('|', chr(92) + '|')} | {law['asks']} |" in listed
    assert verdict(law, said) in listed


@pytest.mark.skipif(not all(map(there, laws.NAMES)), reason="not all laws are written yet")
def test_there_are_no_other_pages() -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == {*laws.NAMES, "README"}
    assert {path.stem for path in DOCS.glob("*.svg")} <= set(laws.NAMES)
    listed = (DOCS / "README.md").read_text(encoding="utf-8")
    for question in ANSWERS:
        assert f"## {QUESTIONS[question][0].upper()}{QUESTIONS[question][1:]}" in listed
