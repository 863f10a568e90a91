"""Does every event point to the record that it names? All real Speakeasy reports and the public table of calls, read through the front door.

    KNOWHOW_DATA=… python bench/ingest.py [--limit 500]          # some minutes on one core
    python bench/ingest.py --large 1e9                           # writes a CAPE report of that size, reads it, prints time and peak memory

Each report is parsed a second time, whole, by the json module; each event's pointer is resolved there, and the name of the call compared after
normalisation. Appends a record to bench/results/ingest.jsonl; exits 1 when a pointer leads elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from knowhow.domains.malware.events import Event
from knowhow.domains.malware.ingest import read_reports, records, resolve
from knowhow.domains.malware.words import canonical
from knowhow.files import append_jsonl

RESULTS = Path(__file__).parent / "results" / "ingest.jsonl"
SIDE = {"event", "path", "query", "server", "pc", "tag"}


def agrees(event: Event, raw: Any) -> bool:
    """Whether each record that an event stands for is there and says the call that the event says."""
    head, _, index = event.pointer.rpartition("/")
    found = [resolve(raw, f"{head}/{int(index) + n}") for n in range(event.records)]
    if event.placed:
        return all(record["api_name"] == event.raw_api and canonical(record["api_name"]) == canonical(event.api) for record in found)
    return all(isinstance(record, dict) and SIDE & set(record) for record in found)


def reports(path: Path, limit: int | None) -> dict[str, Any]:
    """Counts over a file of Speakeasy reports."""
    counts, ends, missing, notes = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    reading, started = 0.0, time.perf_counter()
    for opened in islice(read_reports([path]), limit):
        reading += time.perf_counter() - started
        if opened.report is None:
            print(opened.name, opened.error)
            counts["failed"] += 1
        else:
            raw, report = json.loads(opened.text or ""), opened.report
            placed = sum(event.records for event in report.events if event.placed)
            counts["reports"] += 1
            counts["events"] += len(report.events)
            counts["pointers"] += sum(event.records for event in report.events)
            counts["wrong"] += sum(not agrees(event, raw) for event in report.events)
            counts["lost"] += abs(placed - sum(len(point.get("apis") or []) for point in raw["entry_points"]))
            counts["ends_wrong"] += sum(resolve(raw, pointer)["type"].partition(": ")[0] not in reason for pointer, reason in report.ends)
            counts["unsupported_named"] += bool(report.end_reason == "unsupported_api" and report.end_detail)
            ends[report.end_reason] += 1
            missing.update(report.sections_missing)
            notes.update([*report.notes, *report.sections_skipped])
        started = time.perf_counter()
    per_second = {"reports_per_s": round(counts["reports"] / reading, 1), "seconds": round(reading, 1)}
    return dict(counts) | per_second | {"ends": dict(ends.most_common(12)), "missing": dict(missing.most_common()), "notes": dict(notes.most_common(12))}


def table(path: Path) -> dict[str, Any]:
    """Counts over the public table of calls."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file))[1:]
    counts, started = Counter[str](), time.perf_counter()
    for opened in read_reports([path]):
        row = rows[counts["rows"]]
        counts["rows"] += 1
        events = opened.report.events if opened.report else ()
        counts["pointers"] += len(events)
        counts["wrong"] += sum(resolve(row, event.pointer) != event.raw_api for event in events) + (len(events) != len(list(filter(None, row[2:]))))
    return dict(counts) | {"lost": len(rows) - counts["rows"], "seconds": round(time.perf_counter() - started, 1)}


def write_large(path: Path, size: int) -> int:
    """A CAPE report of about `size` bytes → its calls."""
    draws, written, calls = random.Random(1), 0, 0
    apis = ("NtCreateFile", "NtWriteFile", "RegOpenKeyExW", "NtAllocateVirtualMemory", "LdrGetProcedureAddress")
    with path.open("w") as file:
        written += file.write('{"info":{"version":"2.4-CAPE"},"behavior":{"processes":[')
        while written < size:
            process = json.dumps({"process_id": 1000 + calls, "process_name": "a.exe", "parent_id": 4})[:-1]
            written += file.write(f'{"," if calls else ""}{process},"calls":[')
            for k in range(20_000):
                arguments = [("FileHandle", hex(4 * draws.randrange(1 << 16))), ("FileName", f"C:\\Temp\\{draws.getrandbits(40):x}.bin"),
                             ("Buffer", f"{draws.getrandbits(400):x}"), ("Length", str(draws.randrange(4096)))]  # fmt: skip
                call = {"timestamp": f"2024-01-01 10:{calls // 60_000 % 60:02d}:{calls // 1000 % 60:02d},{calls % 1000:03d}", "thread_id": "100",
                        "caller": hex(draws.getrandbits(32)), "category": "filesystem", "api": draws.choice(apis), "status": draws.random() > 0.1,
                        "return": "0x0", "arguments": [{"name": name, "value": value} for name, value in arguments], "repeated": 0, "id": calls}  # fmt: skip
                written += file.write(("," if k else "") + json.dumps(call))
                calls += 1
                if written > size:
                    break
            written += file.write("]}")
        file.write("]}}")
    return calls


def large(size: int) -> dict[str, Any]:
    """Time and memory of one large report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.json"
        calls = write_large(path, size)
        wall, cpu = time.perf_counter(), time.process_time()
        (opened,) = read_reports([path])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        events = opened.report.events if opened.report else ()
        last = events[-1]
        again = records(opened, [last.pointer])
        lost = calls - sum(event.records for event in events)
        row = {"bytes": path.stat().st_size, "calls": calls, "lost": lost, "wrong": int(again[last.pointer]["api"] != last.raw_api)}
    return row | {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "peak_gb": round(peak, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, help="only the first reports")
    parser.add_argument("--large", type=float, help="bytes of a generated CAPE report")
    options = parser.parse_args()
    if options.large:
        row = {"what": "large", **large(int(options.large))}
    else:
        data = Path(os.environ.get("KNOWHOW_DATA", "shared/data")) / "malware"
        found = reports(data / "speakeasy_reports" / "reports.jsonl.xz", options.limit)
        row = {"what": "real", "speakeasy": found, "malbehavd": table(data / "malbehavd" / "MalBehavD-V1-dataset.csv.gz")}
    print(json.dumps(row, indent=1))
    append_jsonl(RESULTS, row)
    parts = [each for each in row.values() if isinstance(each, dict)] or [row]
    sys.exit(any(part.get(name) for part in parts for name in ("failed", "wrong", "lost", "ends_wrong")))


if __name__ == "__main__":
    main()
