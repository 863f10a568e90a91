"""A document streamed in small pieces is the document parsed whole; what formats say comes through; files of all kinds are opened."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from knowhow.domains.malware.events import Report
from knowhow.domains.malware.ingest import LIMITS, read_report, read_reports, records, resolve
from knowhow.domains.malware.ingest.cursor import Broken, Cursor
from knowhow.domains.malware.ingest.limits import Notes
from knowhow.domains.malware.ingest.pointers import escaped
from knowhow.domains.malware.ingest.values import api_name
from knowhow.errors import KnowhowError, UsageError

KEYS = ("behavior", "processes", "calls", "api", "arguments", "name", "value", "timestamp", "status", "return", "process_id", "pid", "summary", "files",
        "entry_points", "apis", "events", "event", "pos", "args", "api_name", "error", "type", "file_access", "network_events", "dns", "signatures", "ttps",
        "sha256", "target", "file", "info", "version", "tokens", "a/b~c", "")  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=40)
CALLS = st.lists(
    st.fixed_dictionaries({"api": st.sampled_from(["NtClose", "a.B", "x.ordinal_3", ""])}, optional={"arguments": VALUES, "return": VALUES}), max_size=4
)
PROCESS = st.fixed_dictionaries({"calls": CALLS | VALUES}, optional={"process_id": VALUES, "process_name": VALUES, "pid": VALUES})
POINT = st.fixed_dictionaries({}, optional={"apis": VALUES | CALLS, "events": VALUES, "error": VALUES, "file_access": VALUES, "start_addr": VALUES})
REPORTS = st.one_of(
    VALUES,
    st.fixed_dictionaries({"behavior": st.fixed_dictionaries({"processes": st.lists(PROCESS, max_size=3)})}, optional={"info": VALUES, "signatures": VALUES}),
    st.fixed_dictionaries({"entry_points": st.lists(POINT | VALUES, max_size=3)}, optional={"sha256": VALUES, "family": VALUES}),
    st.lists(POINT, max_size=3),
)  # fmt: skip


def streamed(data: bytes, chunk: int = 1 << 20) -> Report:
    (opened,) = read_reports(["-"], stdin=io.BytesIO(data), limits=replace(LIMITS, chunk=chunk))
    if opened.error is not None:
        raise opened.error
    assert opened.report is not None
    return opened.report


@settings(max_examples=80, deadline=None)
@given(REPORTS.filter(lambda value: isinstance(value, dict | list)), st.integers(1, 40), st.sampled_from([None, 1]))
def test_streamed_and_parsed_are_the_same(value: Any, chunk: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    try:
        whole = read_report(json.loads(text))
    except UsageError:
        with pytest.raises(UsageError):
            streamed(text.encode(), chunk)
        return
    pieces = streamed(text.encode(), chunk)
    assert pieces == whole
    for event in pieces.events:
        resolve(json.loads(text), event.pointer)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_the_cursor_reads_and_skips_what_json_reads(value: Any, sizes: list[int]) -> None:
    text, chunks, at = json.dumps([value, value, "end"], ensure_ascii=False), [], 0
    for k in range(len(text)):
        chunks.append(text[at : at + sizes[k % len(sizes)]])
        at += sizes[k % len(sizes)]
    cursor = Cursor(iter([chunk for chunk in chunks if chunk]), LIMITS, Notes())
    cursor.begin(Notes())
    cursor.step("[")
    assert cursor.value("/0") == value
    cursor.step(",")
    cursor.skip()
    cursor.step(",")
    assert cursor.value("/2") == "end"
    assert cursor.step("]") == "]"
    assert cursor.taken() == text
    assert cursor.peek() == ""


@settings(max_examples=80, deadline=None)
@given(REPORTS, st.data())
def test_a_cut_or_changed_report_never_crashes(value: Any, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for opened in read_reports(["-"], stdin=io.BytesIO(bytes(raw[: data.draw(st.integers(0, len(raw)))])), limits=replace(LIMITS, chunk=16)):
        assert "reader failed" not in str(opened.error)
        if opened.report is not None:
            assert len(list(opened.report.events)) == len(opened.report.events)


@given(st.lists(st.text(), max_size=5))
def test_every_key_has_a_pointer(keys: list[str]) -> None:
    document: Any = "here"
    for key in reversed(keys):
        document = {key: document}
    assert resolve(document, "".join(f"/{escaped(key)}" for key in keys)) == "here"


def test_pointers_that_lead_nowhere() -> None:
    for pointer in ("/b", "/a/2", "/a/-1", "/a/x", "/a/0/z"):
        with pytest.raises(LookupError):
            resolve({"a": [1]}, pointer)
    with pytest.raises(ValueError, match="start with /"):
        resolve({}, "a")
    assert resolve({"t": "A B C"}, "/t/1") == "B"


def test_a_broken_text_says_where() -> None:
    for text, word in {"[1, x]": "not JSON from character 4", '["abc': "cut after character 5", "[1 2]": "not JSON from character 3", "[tru": "cut"}.items():
        cursor = Cursor(iter([text]), LIMITS, Notes())
        with pytest.raises(Broken, match=word):
            _read_list(cursor)


def _read_list(cursor: Cursor) -> None:
    cursor.step("[")
    cursor.value("")
    while cursor.step(",]") == ",":
        cursor.value("")


def test_names_of_calls() -> None:
    for raw, name in {
        "KERNEL32.CreateFileW": "CreateFileW", "msvbvm60.ordinal_100": "msvbvm60.ordinal_100", "MSVBVM60.dll.ordinal_100": "msvbvm60.ordinal_100",
        "ws2_32.#21": "ws2_32.ordinal_21", "NtClose": "NtClose", "": "Unknown", "a.b\x1b[2J": "b2J", "\ud800": "Unknown",
    }.items():  # fmt: skip
        assert api_name(raw) == name


def test_repeats_become_counts_and_nothing_else() -> None:
    def call(api: str, value: str) -> dict[str, Any]:
        return {"api": api, "arguments": [{"name": "x", "value": value}]}

    calls = [call("A", "1")] * 3 + [call("A", "abc"), call("B", "1") | {"repeated": 4}, call("B", "1"), call("A", "1")]
    data = {"behavior": {"processes": [{"process_id": 1, "calls": calls}]}}
    report = read_report(data)
    assert [(event.api, event.repeat, event.records, event.pointer[-1]) for event in report.events] == [
        ("A", 3, 3, "0"), ("A", 1, 1, "3"), ("B", 6, 2, "4"), ("A", 1, 1, "6"),
    ]  # fmt: skip
    assert len(read_report(data, collapse=False).events) == len(calls)


def test_a_handle_is_known_by_its_argument_however_small() -> None:
    calls = [{"api": api, "return": "0xc0000034", "arguments": [{"name": "FileHandle", "value": value}, {"name": "Length", "value": "0x84"}]}
             for api, value in (("NtCreateFile", "0x84"), ("NtWriteFile", "0x00000084"), ("NtClose", "0xffffffff"))]  # fmt: skip
    first, second, third = read_report({"behavior": {"processes": [{"calls": calls}]}}).events
    assert first.args["FileHandle"] == second.args["FileHandle"] != "Number"
    assert (first.args["Length"], third.args["FileHandle"], first.ret) == ("Number", "Number", None)


def test_why_emulation_ended_keeps_the_call() -> None:
    error = {"type": "unsupported_api", "pc": "0x1", "api_name": "user32.GetClassInfoA"}
    failed = {"type": "Failed to get character width from function: KERNEL32.lstrcpyn"}
    report = read_report({"entry_points": [{"apis": [], "error": failed}, {"apis": [], "error": error}, {"apis": [], "error": {}}]})
    assert (report.end_reason, report.end_detail) == ("unsupported_api", "user32.GetClassInfoA")
    assert report.ends == (
        ("/entry_points/0/error", "Failed to get character width from function KERNEL32.lstrcpyn"),
        ("/entry_points/1/error", "unsupported_api user32.GetClassInfoA"),
    )


def test_side_lists_of_an_entry_point_come_last_and_without_a_place() -> None:
    point = {
        "file_access": [{"event": "create", "path": "C:\\Windows\\Temp\\x", "open_flags": ["CREATE_ALWAYS"]}],
        "registry_access": [{"event": "open_key", "path": "HKEY_CURRENT_USER\\x"}],
        "process_events": [{"event": "create", "pid": 4, "path": "C:\\a.exe", "cmdline": ""}],
        "network_events": {"dns": [{"query": "a.example", "response": "10.1.2.3"}], "traffic": [{"server": "a.example", "port": 80}]},
        "dropped_files": [{"path": "C:\\a", "size": 1}],
        "apis": [{"api_name": "kernel32.CreateFileA", "args": [], "ret_val": "0x8000"}],
    }
    report = read_report({"entry_points": [point]})
    assert [(event.api, event.placed) for event in report.events] == [
        ("CreateFileA", True), ("FileCreate", False), ("RegOpenKey", False), ("ProcessCreate", False), ("NetDns", False), ("NetTraffic", False),
        ("FileDropped", False),
    ]  # fmt: skip
    assert {event.pid for event in report.events} == {report.events[0].pid}
    assert report.events[1].args == {"path": "TempDir", "open_flags": "CreateNew"}
    assert report.events[4].pointer == "/entry_points/0/network_events/dns/0"
    assert "entry_points.error" in report.sections_missing


def test_every_kind_of_event_of_speakeasy_four_is_read() -> None:
    kinds = [*["process_create", "mem_alloc", "mem_write", "mem_read", "mem_protect", "mem_free", "module_load", "thread_create", "thread_inject"]]
    kinds += ["file_create", "file_open", "file_read", "file_write", "reg_open_key", "reg_create_key", "reg_read_value", "reg_write_value", "reg_list_subkeys"]
    kinds += ["net_dns", "net_traffic", "net_http", "exception"]
    events = [{"pos": {"tick": k, "tid": 1, "pid": 8, "pc": 0}, "event": kind, "pid": 8 + k % 2, "path": "C:\\x"} for k, kind in enumerate(kinds)]
    report = read_report({"entry_points": [{"events": events}]})
    assert [event.raw_api for event in report.events] == ["".join(part.capitalize() for part in kind.split("_")) for kind in kinds]
    assert [event.args["pid"] for event in report.events[:2]] == ["OwnProcess", "OtherProcess"]
    assert {event.category for event in report.events} == {"process", "memory", "system", "filesystem", "registry", "network"}


def test_signatures_are_weak_labels_as_they_are_found() -> None:
    rules = [{"name": "a", "severity": 3, "confidence": 100, "families": ["X"]}, {"name": "b", "confidence": 40, "ttp": ["T1055"]}, {"name": "c"}]
    for ttps in ([{"signature": "a", "ttps": ["T1060"]}], {"T1060": ["a"]}):
        first, second, third = read_report({"behavior": {}, "signatures": rules, "ttps": ttps, "detections": [{"family": "Emotet"}]}).signatures
        assert (first.ttps, first.severity, first.confidence, first.stated, first.families) == (("T1060",), 3.0, 100.0, False, ("X",))
        assert (second.ttps, second.confidence, second.stated, second.pointer) == (("T1055",), 40.0, True, "/signatures/1")
        assert (third.confidence, third.stated) == (None, False)
    assert read_report({"behavior": {}, "detections": [{"family": "Emotet"}]}).family == "Emotet"
    assert read_report({"behavior": {}, "detections": [{"family": "A"}, {"family": "B"}]}).family is None


DATA = json.dumps({"behavior": {"processes": [{"process_id": 1, "calls": [{"api": "NtClose"}, {"api": "NtOpenKey"}]}]}}).encode()
PACKED = {
    "plain": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
    "two xz": lambda raw: lzma.compress(raw) * 2,
}


@pytest.mark.parametrize("name", list(PACKED))
def test_packing_is_told_by_the_first_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_bytes(PACKED[name](DATA))
    found = list(read_reports([tmp_path]))
    assert [each.exit_code for each in found] == [0] * (2 if name == "two xz" else 1)
    assert [event.api for event in found[0].report.events] == ["NtClose", "NtOpenKey"]  # type: ignore[union-attr]


def test_folders_archives_and_lines_are_named_in_order(tmp_path: Path) -> None:
    sha = "ab" * 32
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"{sha}.json").write_bytes(DATA)
    (tmp_path / "c.jsonl").write_bytes(DATA + b"\n\n" + b"{broken\n" + DATA + b"\n")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("z.json", DATA)
        archive.writestr("folder/", b"")
        archive.writestr("y.jsonl.gz", gzip.compress(DATA + b"\n" + DATA))
    found = list(read_reports([tmp_path, tmp_path / "none"]))
    names = ["a.zip!z.json", "a.zip!y.jsonl.gz:1", "a.zip!y.jsonl.gz:2", f"b/{sha}.json", "c.jsonl:1", "c.jsonl:3", "c.jsonl:4", "none"]
    assert [each.name for each in found] == [str(tmp_path / name) for name in names]
    assert [each.exit_code for each in found] == [0, 0, 0, 0, 0, 2, 0, 2]
    assert found[3].report is not None
    assert found[3].report.sha256 == sha
    for each in found:
        for kept in (each, replace(each, text=None)):
            assert records(kept, ["/behavior/processes/0/calls/1"]) == ({} if each.error else {"/behavior/processes/0/calls/1": {"api": "NtOpenKey"}})


def test_archives_come_through_standard_input() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.json", DATA)

    class Pipe(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = file.read(min(len(buffer), 7))
            buffer[: len(data)] = data
            return len(data)

    file.seek(0)
    (opened,) = read_reports(["-"], stdin=Pipe())  # type: ignore[arg-type]
    assert (opened.name, opened.exit_code) == ("-!a.json", 0)


def test_tables_and_lines_of_calls() -> None:
    tables = {
        "sha256,labels,0,1,2\nab,1,NtClose,NtOpenKey,\ncd,0,CoInitialize\n": ("table", [("ab", "1", ["NtClose", "NtOpenKey"]), ("cd", "0", ["CoInitialize"])]),
        "hash,t_0,t_1,malware\nab,112,274,1\n": ("indices", [("ab", "1", ["index_112", "index_274"])]),
        "label,apis\nrat,NtClose NtClose NtOpenKey\n": ("pair", [("", "rat", ["NtClose", "NtOpenKey"])]),
        'clean,"NtClose NtOpenKey"\nrat,NtClose\n': ("pair", [("", "clean", ["NtClose", "NtOpenKey"]), ("", "rat", ["NtClose"])]),
        '{"label":"rat","apis":["NtClose","NtOpenKey"]}\n{"label":"x","tokens":"NtClose NtOpenKey"}\n': (
            "json", [("", "rat", ["NtClose", "NtOpenKey"]), ("", "x", ["NtClose", "NtOpenKey"])],
        ),
    }  # fmt: skip
    for text, (version, wanted) in tables.items():
        found = list(read_reports(["-"], stdin=io.BytesIO(text.encode())))
        reports = [each.report for each in found if each.report is not None]
        assert [(report.sha256, report.label, [event.raw_api for event in report.events]) for report in reports] == wanted
        assert {(report.source, report.version, report.ordered) for report in reports} == {("flat", version, version != "table")}
        for each, report in zip(found, reports, strict=True):
            raw = records(each, [event.pointer for event in report.events])
            assert [raw[event.pointer] for event in report.events] == [event.raw_api.removeprefix("index_") for event in report.events]


def test_a_public_table_is_read(shared_data: Path) -> None:
    path = shared_data / "malware" / "malbehavd" / "MalBehavD-V1-dataset.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file))[1:]
    found = list(islice(read_reports([path]), 200))
    for each, row in zip(found, rows[:200], strict=True):
        assert each.report is not None
        assert (each.report.sha256, each.report.label) == (row[0], row[1])
        assert [resolve(row, event.pointer) for event in each.report.events] == [event.raw_api for event in each.report.events] == list(filter(None, row[2:]))


def test_a_batch_goes_on_where_the_reader_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("knowhow.domains.malware.ingest.documents.read_document", broken)
    (opened,) = read_reports(["-"], stdin=io.BytesIO(DATA))
    assert opened.exit_code == 2
    assert "ZeroDivisionError" in str(opened.error)
    monkeypatch.setattr("knowhow.domains.malware.ingest.documents.read_document", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    (opened,) = read_reports(["-"], stdin=io.BytesIO(DATA))
    assert opened.exit_code == 5
    assert isinstance(opened.error, KnowhowError)
