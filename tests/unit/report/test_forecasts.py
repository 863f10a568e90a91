"""Predictions on the page, on the card and in the terminal: violated ones first, in words that leave nothing out."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from knowhow.report import forecasts


def row(law: str, verdict: str = "", **more: Any) -> dict[str, Any]:
    return {"law": law, "quantity": f"{law} number", "site": "run", "value": 1.0, "low": 0.5, "high": 2.0, "measured": 1.5, "verdict": verdict, **more}


def test_a_violated_law_stands_first() -> None:
    lines = forecasts.summed([row("a", "confirmed"), row("b", "not applicable", because="the gate was shut"), row("c", "violated")])
    assert [line["law"] for line in lines] == ["c", "a", "b"]
    assert "the gate was shut" in lines[2]["why"]


def test_many_sites_are_one_line_that_counts_them() -> None:
    rows = [row("a", verdict, site=f"layers.{k}", value=float(k)) for k, verdict in enumerate(("confirmed", "violated", "confirmed"))]
    (line,) = forecasts.summed(rows)
    assert line["quantity"].endswith("(3 sites)")
    assert line["verdict"] == "1 violated, 2 confirmed"
    assert line["value"] == "0 to 2"


def test_the_terminal_says_verdicts_in_capitals_and_before_training_none() -> None:
    def shown(rows: list[dict[str, Any]]) -> str:
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(forecasts.text_table(rows))
        return console.export_text()

    after = shown([row("a", "violated")])
    assert "VIOLATED" in after
    assert "measured" in after
    before = shown([{key: value for key, value in row("a").items() if key not in ("verdict", "measured")}])
    assert "measured" not in before
    assert "predicted before training" in before


def test_rows_of_another_shape_do_not_break_it() -> None:
    (line,) = forecasts.summed([{"law": "a", "quantity": None, "value": "x", "low": None, "high": float("nan"), "verdict": 3}])
    assert line["value"] == line["measured"]
