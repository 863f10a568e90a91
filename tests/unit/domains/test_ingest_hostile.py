"""A hundred hostile files in one batch: each contained and named, each with its exit code, and the batch goes on."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hostile_reports import INJECTION, OK, SMALL, cape, write

from knowhow.domains.malware.ingest import Opened, read_report, read_reports, shown
from knowhow.errors import UsageError

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], dict[str, list[Opened]], Path]:
    """(expected exit codes, items by file, the folder)."""
    folder = tmp_path_factory.mktemp("hostile")
    expected = write(folder)
    items: dict[str, list[Opened]] = {}
    for opened in read_reports([folder], limits=SMALL):
        assert opened.place.path is not None
        items.setdefault(opened.place.path.name, []).append(opened)
    return expected, items, folder


def test_every_file_is_named_and_ends_with_its_code(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    expected, items, _ = batch
    assert len(expected) >= 100
    assert set(items) == set(expected)
    codes = {name: next((each.exit_code for each in found if each.exit_code), OK) for name, found in items.items()}
    assert codes == expected


def test_what_fails_says_why_and_is_no_bug(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    for name, found in batch[1].items():
        for each in found:
            assert (each.report is None) == (each.error is not None)
            if each.error is not None:
                assert each.error.got
                assert "reader failed" not in each.error.text(), (name, each.error.text())
                assert not UNSAFE.search(each.error.text().replace("\n", "")), name
            assert not UNSAFE.search(each.name), name


def test_what_is_shown_cannot_move_a_terminal(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    for name, found in batch[1].items():
        for each in found:
            if each.report is not None:
                report = each.report
                texts = [report.version, report.sha256, report.family, report.label, report.end_reason, report.end_detail, *report.notes]
                texts += [*report.sections_skipped, *(text for end in report.ends for text in end)]
                texts += [text for rule in report.signatures for text in (rule.name, *rule.ttps, *rule.families, *rule.categories)]
                for event in report.events:
                    texts += [event.api, event.raw_api, event.process, event.category, *event.args, *event.args.values()]
                    assert all(value.isalpha() and value.isascii() for value in event.args.values())
                assert not any(UNSAFE.search(text) for text in texts if text), name


def test_what_is_left_out_is_listed(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    def said(name: str) -> str:
        (opened,) = batch[1][name]
        assert opened.report is not None
        return " | ".join((*opened.report.notes, *opened.report.sections_skipped))

    for name, words in {
        "deep-argument": "deeper than 64 levels", "duplicate-top": "duplicate key", "duplicate-calls": "duplicate key", "duplicate-in-call": "duplicate key",
        "nan": "NaN", "infinity": "-Infinity", "huge-integer": "digits", "long-string": "longer than", "many-calls": "after the first 5,000",
        "cut-in-call": "cut after", "malformed-later": "not JSON from", "nul-padding": "text after the report",
        "wrong-behavior": "/behavior: not an object", "wrong-calls": "/behavior/processes/4/calls: not a list", "invalid-utf8": "UTF-8",
        "trailing-text": "text after the report", "long-key": "longer than",
    }.items():  # fmt: skip
        assert words in said(name), (name, said(name))


def test_the_last_of_duplicate_keys_counts(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    for name, apis in {"duplicate-top": [], "duplicate-calls": ["B"], "duplicate-in-call": ["B"]}.items():
        (opened,) = batch[1][name]
        assert opened.report is not None
        assert [event.api for event in opened.report.events] == apis


def test_what_came_before_a_cut_is_kept(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    for name in (
        "cut-in-call",
        "malformed-later",
        "cut-after-brace",
        "nul-padding",
        "trailing-text",
        "gzip-cut",
        "utf16",
        "utf32",
        "utf16-no-mark",
        "utf8-mark",
    ):
        report = batch[1][name][0].report
        assert report is not None
        assert [event.api for event in report.events] == ["NtWriteFile"], name


def test_an_injection_is_data(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    (opened,) = batch[1]["injection-argument"]
    assert opened.report is not None
    (event,) = opened.report.events
    assert list(event.args.values()) == ["Text"]
    assert json.loads(opened.text or "")["behavior"]["processes"][0]["calls"][0]["arguments"] == {INJECTION: INJECTION}


def test_the_batch_is_the_same_again_and_writes_nothing(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    _, items, folder = batch
    before = sorted(os.listdir(folder))
    again = list(read_reports([folder], limits=SMALL))
    flat = [each for found in items.values() for each in found]
    assert [(each.name, each.exit_code, each.report) for each in again] == [(each.name, each.exit_code, each.report) for each in flat]
    assert sorted(os.listdir(folder)) == before
    assert not (folder.parent / "etc").exists()


def test_named_by_hand_they_end_alike(batch: tuple[dict[str, int], dict[str, list[Opened]], Path]) -> None:
    expected, _, folder = batch
    names = ["pipe.json", "loop.json", "dangling.json", "device.json", "empty", "gzip-bomb", "utf8-mark"]
    found = {each.place.path.name: each.exit_code for each in read_reports([folder / name for name in names], limits=SMALL) if each.place.path}
    assert found == {name: 2 if name in ("loop.json", "dangling.json") else expected[name] for name in names}
    assert [each.exit_code for each in read_reports(["a\x00b", folder / "nothing", "x" * 5000])] == [2, 2, 2]


def test_a_slow_file_is_refused() -> None:
    (opened,) = read_reports(["-"], stdin=BytesIO(cape().encode()), limits=replace(SMALL, seconds=-1.0))
    assert opened.exit_code == 4
    assert "seconds" in str(opened.error)


def test_shown_text_is_one_safe_line() -> None:
    assert shown("a\x1b[2J\n\u202e\ud800é") == "a\\x1b[2J\\x0a\\u202e\\ud800é"
    assert len(shown("x" * 10_000)) == 300
    with pytest.raises(UsageError):
        read_report({"\x1b": 1}, where="x")


@pytest.mark.large
@pytest.mark.skipif(not os.environ.get("KNOWHOW_LARGE"), reason="writes and reads a report of 1 GB: minutes; set KNOWHOW_LARGE=1 to run it")
@pytest.mark.timeout(1800)
def test_a_report_of_a_gigabyte_is_read_in_two_gigabytes(tmp_path: Path) -> None:
    path, n, started = tmp_path / "large.json", 0, time.monotonic()
    with path.open("w") as file:
        size = file.write('{"info":{"version":"2.4-CAPE"},"behavior":{"processes":[{"process_id":4,"process_name":"a.exe","calls":[')
        while size < 1_000_000_000:
            arguments = [{"name": f"arg{k}", "value": hex(0x1000 + 4 * (n * 7919 % 50_000 + k))} for k in range(4)]
            call = {"timestamp": "2024-01-01 10:00:00,123", "thread_id": "7", "api": f"Nt{n % 300:x}File", "return": "0x0", "arguments": arguments, "id": n}
            size += file.write(("," if n else "") + json.dumps(call | {"caller": "0x" + "a" * 200}))
            n += 1
        file.write("]}]}}")
    (opened,) = read_reports([path])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert opened.report is not None
    assert sum(event.records for event in opened.report.events) == n
    assert peak < 2.0, f"{peak:.2f} GB"
    print(f"{size:,} bytes, {n:,} calls, {time.monotonic() - started:.0f} s, {peak:.2f} GB")
