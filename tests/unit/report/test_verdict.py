from __future__ import annotations

import io

from rich.console import Console

from knowhow.report.numbers import duration, number, signed, size, span, sure, words
from knowhow.report.tables import text_table, verdict_line
from knowhow.report.verdict import gaps, headline_metric, judge, ranked
from knowhow.types import EvalResult, Interval


def result(model: str, value: float, metric: str = "macro_f1", paired: dict[str, tuple[float, float, float]] | None = None, slice: str = "all") -> EvalResult:
    differences = {name: Interval(*numbers, 500) for name, numbers in (paired or {}).items()}
    return EvalResult("classify", metric, value, value - 0.02, value + 0.02, 500, slice, model, differences)


def test_beats_only_when_every_interval_is_above_zero() -> None:
    rows = [result("specialist", 0.7, paired={"majority": (0.5, 0.4, 0.6), "tfidf-lr": (0.05, 0.01, 0.09)}), result("tfidf-lr", 0.65), result("majority", 0.2)]
    told = judge(rows, "macro_f1")
    assert told.state == "beats"
    assert told.gaps[0].baseline == "tfidf-lr"
    assert "+0.050 (95% interval +0.010 to +0.090) against tfidf-lr" in told.sentence


def test_an_interval_that_touches_zero_means_do_not_train() -> None:
    rows = [result("specialist", 0.7, paired={"majority": (0.5, 0.4, 0.6), "retrieval": (0.05, 0.0, 0.1)})]
    told = judge(rows, "macro_f1")
    assert (told.state, told.title) == ("enough", "Do not train: retrieval is enough")
    assert "is not shown to be better than retrieval" in told.sentence


def test_worse_than_a_baseline_is_said() -> None:
    told = judge([result("specialist", 0.4, paired={"lightgbm": (-0.1, -0.15, -0.05), "base": (-0.01, -0.03, 0.01)})], "macro_f1")
    assert told.title == "Do not train: lightgbm and base are enough"
    assert "is worse than lightgbm" in told.sentence


def test_less_is_better_turns_the_signs() -> None:
    rows = [result("specialist", 1.0, "nll", {"base": (-0.5, -0.6, -0.4)}), result("base", 1.5, "nll")]
    assert judge(rows, "nll").state == "beats"
    assert [row.model for row in ranked(rows, "nll")] == ["specialist", "base"]
    assert gaps(result("specialist", 1.0, "nll", {"base": (0.5, 0.4, 0.6)}))[0].worse


def test_without_results_there_is_no_verdict() -> None:
    assert judge([], "accuracy").state == "unknown"
    assert judge([result("specialist", 0.5)], "macro_f1").state == "unknown"
    assert headline_metric([result("specialist", 0.5, "accuracy")], "macro_f1") == "accuracy"


def test_numbers_as_people_read_them() -> None:
    assert (signed(-0.0004), signed(0.0), signed(0.05), span(-0.1, 0.2, sign=True)) == ("0.000", "0.000", "+0.050", "−0.100 to +0.200")
    assert (sure(0.9996), sure(1.0), sure(0.5)) == ("over 99%", "100%", "50%")
    assert (size(13_420_000), duration(5_000), words(["a", "b", "c"])) == ("13.4 MB", "83.3 min", "a, b and c")
    assert number({"a": {"b": 3}}, "a", "b") == 3
    assert number({"a": [3]}, "a", "b") is None
    assert number({"a": float("nan")}, "a") is None
    assert number({"a": 10**400}, "a") is None
    assert number({"a": True}, "a") is None


def test_terminal_table_shows_each_model_with_interval_and_difference() -> None:
    rows = [result("specialist", 0.7, paired={"majority": (0.5, 0.4, 0.6)}), result("majority", 0.2), result("[red]base\x1b[31m", 0.3)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(text_table(rows))
    text = console.export_text()
    for shown in ("0.700", "+0.500 (+0.400 to +0.600)", "0.180 to 0.220"):
        assert shown in text
    assert "[red]base\\u001b[31m" in text, "markup and control characters of names are shown, never obeyed"
    assert text.index("majority") < text.index("specialist", text.index("majority")), "the best stands last, next to the prompt"
    assert verdict_line(rows).startswith("The specialist beats every baseline.")
