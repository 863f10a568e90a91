"""YAML text: values, places, and everything that is refused with its line."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from knowhow.errors import UsageError
from knowhow.reading.text import MAX_BYTES, parse, parse_file, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("+2", 2),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
    ]
    + [("~", None), ("", None), ("null", None), ("2024-05-01", "2024-05-01"), ("1:30", "1:30"), ("0x1F", "0x1F"), ("1_000", "1_000"), ("1.2.3", "1.2.3")],
)
def test_plain_words_follow_the_core_schema(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_special_numbers() -> None:
    assert scalar("-.inf") == -math.inf
    assert math.isnan(scalar(".nan"))
    assert isinstance(scalar("9" * 400), str | float)  # never the error that int() raises on very long digits


def test_values_remember_their_lines() -> None:
    document = parse("a: 1\nb:\n  - x: '5'\n  - [1, two]\n", "r.yaml")
    assert document.value == {"a": 1, "b": [{"x": "5"}, [1, "two"]]}
    assert document.place(("b", 0, "x")) == "r.yaml:3"
    assert document.place(("b", 1, 1)) == "r.yaml:4"
    assert document.place(("b", 0, "missing")) == "r.yaml:3"


@pytest.mark.parametrize(
    ("text", "said", "place"),
    [
        ("a: 1\na: 2", "twice", "r:2"),
        ("a: &x [1]\nb: *x", "alias", "r:2"),
        ("a: !!python/object/apply:os.system ['true']", "tag", "r:1"),
        ("a: !custom 1", "tag", "r:1"),
        ("? [a]\n: 1", "not a word", "r:1"),
        ("a: 1\n---\nb: 2", "second document", "r:2"),
        ("a:\n\tb: 1", "tabs", "r:2"),
        ("a: b: c", "quotes", "r:1"),
        ("a: [1, 2", "not YAML", "r:"),
        ('a: "\\ud800"', "", "r"),
        ('a: "\\0"', "control character", "r:1"),
        ("a: \x07", "character", "r"),
        ("[" * 100 + "]" * 100, "deep", "r:1"),
    ],
)
def test_refused_with_the_line(text: str, said: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "r")
    assert said in str(caught.value)
    assert caught.value.where.startswith(place)


def test_deep_nesting_is_refused_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match="deep"):
        parse("[" * 400_000, "r")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff\xfea\x00", "UTF-16"), (b"a: 1\nb: \xe9\n", "0xe9"), (b"#" * (MAX_BYTES + 1), "1,000,001 bytes"), (b"a: \xed\xa0\x80", "not UTF-8")],
)
def test_bytes_that_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=said):
        parse_file(path)


def test_bytes_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: \xe2\x82\xac\r\n")
    assert parse_file(path).value == {"a": 1, "b": "€"}
    path.write_bytes(b"")
    assert parse_file(path).value is None


def test_missing_and_folder_name_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match=r"good\.yaml"):
        parse_file(tmp_path / "bad.yaml")
    with pytest.raises(UsageError, match="a folder"):
        parse_file(tmp_path)
