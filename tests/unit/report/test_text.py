from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from knowhow.report.text import SHOWN, UNSAFE, clean, pieces, short_names, tones, valid_spans


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_clean_text_holds_nothing_that_hides_or_reorders_and_encodes(text: str) -> None:
    cleaned = clean(text)
    assert not UNSAFE.search(cleaned)
    cleaned.encode("utf-8")


def test_clean_keeps_what_is_readable() -> None:
    assert clean("שלום\tעולם\r\n✓ naïve") == "שלום\tעולם\n✓ naïve"
    assert clean("a\ud800b\u202ec\x00") == "a\\ud800b\\u202ec\\u0000"
    assert clean("abcdef", 4) == "abc…"


def test_short_names_stay_distinct() -> None:
    names = [f"{'long' * 20}{i}" for i in range(4)]
    shown = short_names(names, 20)
    assert len(set(shown.values())) == 4
    assert all(len(name) <= 20 for name in shown.values())


def test_pieces_mark_evidence_and_lose_nothing_of_a_short_text() -> None:
    text = "open write close"
    evidence = [{"start": 5, "end": 10, "kind": "io"}, {"start": 0, "end": 16, "kind": "all"}, {"start": 9, "end": 3, "kind": "x"}, {"start": "0"}, None]
    spans = valid_spans(text, evidence)
    parts = pieces(text, spans, tones(["io", "all"]))
    assert "".join(part.text for part in parts) == text
    assert [(part.text, part.kind, part.tone) for part in parts] == [("open ", "all", "tone-1"), ("write", "io", "tone-0"), (" close", "all", "tone-1")]


def test_long_text_keeps_its_evidence_and_counts_what_it_leaves_out() -> None:
    text = "x" * 9_000 + "EVIDENCE" + "y" * 1_000
    parts = pieces(text, [(9_000, 9_008, "here")], {"here": "tone-0"})
    assert [part.text for part in parts if part.kind] == ["EVIDENCE"]
    shown = sum(len(part.text) for part in parts if not part.gap)
    left_out = sum(int(part.text.split()[1].replace(",", "")) for part in parts if part.gap)
    assert shown + left_out == len(text)
    assert shown <= SHOWN + 8


def test_spans_of_wrong_kinds_are_passed_over() -> None:
    assert valid_spans("abc", json.loads('[{"start": true, "end": 2}, {"start": 0, "end": 99}, 3]')) in ([], [(1, 2, "")])
    assert valid_spans("abc", "not a list") == []
