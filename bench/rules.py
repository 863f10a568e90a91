"""Public rules on real reports: how often they match, which, and how fast; and what of the project's own behaviours the reports show.

    OMP_NUM_THREADS=1 KNOWHOW_DATA=… python bench/rules.py [--every 1]

5,922 Speakeasy reports (malware altered by section injection; families joined from logs, "?" unknown, the "clean" ones doubtful). Two or three minutes;
appends one row to bench/results/rules.jsonl. How often a rule fires on clean programs is in capa_rules.json (column `clean`, other data).
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knowhow.domains.malware.ingest import read_report
from knowhow.domains.malware.observed import observed_behaviours
from knowhow.domains.malware.rules import agreement, opinion
from knowhow.files import append_jsonl

DATA = Path(os.environ.get("KNOWHOW_DATA", ""))


class Tally:
    """What was counted of one family."""

    def __init__(self) -> None:
        self.reports = self.matched = self.telling = self.technique = self.refuting = 0
        self.rules: Counter[str] = Counter()
        self.techniques: Counter[str] = Counter()
        self.behaviours: Counter[str] = Counter()

    def row(self) -> dict[str, Any]:
        share = {name: round(count / self.reports, 4) for name, count in
                 (("any_match", self.matched), ("telling", self.telling), ("telling_technique", self.technique), ("can_refute", self.refuting))}  # fmt: skip
        top = {"rules": self.rules.most_common(8), "techniques": self.techniques.most_common(8), "behaviours": self.behaviours.most_common()}
        return {"reports": self.reports, **share, **top}


def documents(every: int) -> Iterator[dict[str, Any]]:
    with lzma.open(DATA / "malware" / "speakeasy_reports" / "reports.jsonl.xz", "rt", encoding="utf-8") as file:
        for n, line in enumerate(file):
            if n % every == 0:
                yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take one report in so many")
    asked = parser.parse_args()
    families: dict[str, Tally] = {}
    seconds: Counter[str] = Counter()
    for document in documents(asked.every):
        report = read_report(document)
        start = time.perf_counter()
        held = opinion(report)
        spoken = agreement({}, held)
        between = time.perf_counter()
        seen = observed_behaviours(report.events)
        seconds["rules"] += between - start
        seconds["observed"] += time.perf_counter() - between
        for name in (document["family"], "all"):
            tally = families.setdefault(name, Tally())
            telling = [each.rule for each in held.matches if each.telling]
            tally.reports += 1
            tally.matched += bool(held.matches)
            tally.telling += bool(telling)
            tally.technique += bool(spoken)
            tally.refuting += bool(held.refuted)
            tally.rules.update(rule.name for rule in telling)
            tally.techniques.update(each.technique for each in spoken)
            tally.behaviours.update(f"{each.behaviour} {'complete' if each.complete else 'partial'}" for each in seen)
    rows = {name: tally.row() for name, tally in sorted(families.items())}
    rate = {name: round(families["all"].reports / spent, 1) for name, spent in seconds.items()}
    for name, row in rows.items():
        print(name, json.dumps(row))
    print("reports/s", rate)
    append_jsonl(Path(__file__).parent / "results" / "rules.jsonl", {"every": asked.every, "reports_per_s": rate, "families": rows})


if __name__ == "__main__":
    main()
