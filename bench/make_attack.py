"""Makes src/knowhow/domains/malware/attack.json: the ids, names, tactics, platforms and states of ATT&CK's techniques, and what took a legacy one's place.

    KNOWHOW_DATA=… python bench/make_attack.py            # reads attack/techniques.csv.gz, a second

A successor is written down only where something names it: the note in a deprecated technique's own text ("Please use …"), the one active
technique that bears the legacy one's name, or CROSSWALK below. Legacy ids that none of these reaches stay without one.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "src" / "knowhow" / "domains" / "malware" / "attack.json"
ATTRIBUTION = "© 2025 The MITRE Corporation. This work is reproduced and distributed with the permission of The MITRE Corporation."
SOURCE = "MITRE ATT&CK Enterprise, github.com/mitre/cti at 421deacb77191b38bdd1bf63268954e93da91365 (2025-11)"
CROSSWALK = {
    "T1022": "T1560", "T1031": "T1543.003", "T1032": "T1573", "T1050": "T1543.003", "T1073": "T1574.002",
    "T1089": "T1562.001", "T1094": "T1095", "T1192": "T1566.002", "T1193": "T1566.001",
}  # fmt: skip
"""Legacy ids that public rules use and whose name changed or is borne by two: as published by MITRE's sub-technique crosswalk
(attack.mitre.org/docs/subtechniques/subtechniques-crosswalk.json, ATT&CK 7)."""
LATER = {"T1574.002": "T1574.001"}
"""Merged since: DLL Side-Loading into Hijack Execution Flow: DLL, which names side-loading in its text (ATT&CK 17, 2025-04)."""

Row = Mapping[str, str]


def rows(data: Path) -> list[Row]:
    with gzip.open(data / "malware" / "attack" / "techniques.csv.gz", "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def status(row: Row) -> str:
    """The table has one flag for both; a deprecated technique says so in its first sentence."""
    if row["revoked_or_deprecated"] == "0":
        return "active"
    return "deprecated" if re.match(r"\W*This technique (has been|is) deprecated", row["description400"]) else "revoked"


def successors(row: Row, by_name: Mapping[str, list[str]]) -> tuple[list[str], str]:
    """(ids, what names them)."""
    noted = re.search(r"Please use (.+?)(?: where appropriate)?\.\s*\*\*", row["description400"])
    if noted:
        return named_in(noted.group(1).lower(), by_name), "its own note, where appropriate" if "where appropriate" in noted.group(0) else "its own note"
    if row["id"] in CROSSWALK:
        return [CROSSWALK[row["id"]]], "MITRE's sub-technique crosswalk"
    if row["id"] in LATER:
        return [LATER[row["id"]]], "ATT&CK 17"
    same = by_name.get(row["name"].lower(), [])
    return (same, "same name") if len(same) == 1 else ([], "")


def named_in(text: str, by_name: Mapping[str, list[str]]) -> list[str]:
    """The techniques that a list of names names, longest names first, since a name may hold another or an "and"."""
    found = {}
    for name in sorted(by_name, key=len, reverse=True):
        if re.search(rf"\b{re.escape(name)}\b", text):
            (found[text.index(name)],) = by_name[name]
            text = text.replace(name, "·" * len(name))
    assert not re.sub(r"·|,|\band/or\b|\band\b|\s", "", text), text
    return [found[at] for at in sorted(found)]


def made(table: Iterable[Row]) -> str:
    """The file's text: one technique a line, so that a change of one shows as one."""
    listed = sorted(table, key=lambda row: row["id"])
    by_name: dict[str, list[str]] = {}
    for row in listed:
        if row["revoked_or_deprecated"] == "0":
            by_name.setdefault(row["name"].lower(), []).append(row["id"])
    lines = []
    for row in listed:
        state = status(row)
        after, named_by = ([], "") if state == "active" else successors(row, by_name)
        lines.append(json.dumps([row["id"], row["name"], row["tactics"], row["platforms"], state, "|".join(after), named_by], ensure_ascii=False))
    head = {"attribution": ATTRIBUTION, "source": SOURCE, "columns": ["id", "name", "tactics", "platforms", "status", "successors", "named by"]}
    opened = json.dumps(head, ensure_ascii=False, indent=0)[:-2]
    return f'{opened},\n"techniques": [\n' + ",\n".join(lines) + "\n]\n}\n"


if __name__ == "__main__":
    text = made(rows(Path(os.environ["KNOWHOW_DATA"])))
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET.name}: {len(text.encode()):,} bytes")
