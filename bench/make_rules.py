"""Makes capa_rules.json and cape_signatures.json of src/knowhow/domains/malware: public rules as facts, and how often each fires on plain traces.

    OMP_NUM_THREADS=1 KNOWHOW_DATA=… python bench/make_rules.py     # a minute

From capa's table (Apache-2.0): rules that hold of a run of a Windows program, with ids and native API names. From CAPE's community signatures, which
come without a licence: facts only, no word of their descriptions. `clean` and `malicious`: shares of the distinct speakeasy_traces of training (MIT)
in which the calls of a capa rule are all there.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from knowhow.domains.malware.events import Event
from knowhow.domains.malware.rules.capa import Rule, match

PACK = Path(__file__).resolve().parents[1] / "src" / "knowhow" / "domains" / "malware"
SCOPES = ("call", "span of calls", "thread", "process", "file")
CAPA = {
    "attribution": "Derived from capa-rules, © Mandiant/Google LLC, Apache License 2.0: names, scopes, ids and API names; the rules' logic is not here.",
    "source": "github.com/mandiant/capa-rules at 801a792c60fb2c8ef79e1b5d61d7e3d2cab4d405; shares on traces of github.com/dtrizna/nebula (MIT)",
    "columns": ["name", "namespace", "scope", "attack", "mbc", "apis", "strings", "clean", "malicious"],
}
CAPE = {
    "attribution": "Names, ids, severities and hooked APIs of the community signatures of CAPE Sandbox; facts only, no text of theirs.",
    "source": "github.com/CAPESandbox/community at 846b07fc98b95c4a16540b0665da8e07351f53dc",
    "columns": ["name", "ttps", "mbcs", "severity"],
}
Row = Mapping[str, str]


def table(data: Path, name: str) -> list[Row]:
    with gzip.open(data / "malware" / name / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ids(text: str) -> str:
    """The ids in brackets: "Collection::Screen Capture [T1113]" → T1113."""
    return "|".join(dict.fromkeys(re.findall(r"\[([A-Z]+\d{4}(?:\.m?\d{2,3})?)\]", text)))


def native(text: str) -> list[str]:
    """API names that a Windows sandbox can record: those of .NET left out, remarks taken off, ordinals under their name and as recorded."""
    names: dict[str, None] = {}
    for each in filter(None, text.split("|")):
        name, _, remark = (part.strip() for part in each.partition("="))
        if "::" in name or name.startswith("System."):
            continue
        numbered = re.fullmatch(r"(\w+)\.#(\d+)", name)
        names[remark if numbered and remark else f"{numbered[1]}.ordinal_{numbered[2]}" if numbered else name] = None
    return list(names)


def holds(row: Row) -> bool:
    """Whether a rule says something of a run of a Windows program."""
    return row["dynamic_scope"] in SCOPES and not row["name"].startswith("(internal)") and re.search("Linux|Android|macOS", row["name"]) is None


def capa_rows(rows: Iterable[Row]) -> list[list[str]]:
    """name, namespace, scope, attack, mbc, apis, strings. Rules without a call that can be seen stay when they name a technique: what cannot be checked."""
    kept = []
    for row in sorted(filter(holds, rows), key=lambda row: row["name"]):
        apis, attack = native(row["apis"]), ids(row["attack"])
        if apis or attack:
            kept.append([row["name"], row["namespace"], row["dynamic_scope"], attack, ids(row["mbc"]), "|".join(apis), row["n_strings"]])
    return kept


def traces(data: Path) -> dict[bool, list[tuple[Event, ...]]]:
    """The distinct training traces as events of one thread: {malicious: …}; a sequence of both kinds is in neither."""
    folder = data / "malware" / "speakeasy_traces"
    kinds: dict[int, set[bool]] = {}
    with gzip.open(folder / "rows.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["split"] == "train":
                kinds.setdefault(int(row["seq_id"]), set()).add(row["malicious"] == "1")
    found: dict[bool, list[tuple[Event, ...]]] = {False: [], True: []}
    with gzip.open(folder / "sequences.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            kind = kinds.get(row["seq_id"], set())
            if len(kind) == 1:
                calls = [token for token in row["tokens"].split()[1:] if re.match(r"[a-z][\w-]*\.\w", token)]
                found[kind == {True}].append(tuple(Event(i, i, 1, 1, "", "", api, {}) for i, api in enumerate(calls)))
    return found


def shares(rules: Sequence[Rule], found: Mapping[bool, Sequence[tuple[Event, ...]]]) -> dict[str, tuple[float, float]]:
    """name → (clean, malicious)."""
    count = {rule.name: [0, 0] for rule in rules}
    for malicious, runs in found.items():
        for events in runs:
            for each in match(events, rules):
                count[each.rule.name][malicious] += 1
    return {name: (round(clean / len(found[False]), 4), round(bad / len(found[True]), 4)) for name, (clean, bad) in count.items()}


def capa(data: Path) -> str:
    rows = capa_rows(table(data, "capa_rules"))
    rate = shares([Rule.of([*row, 0.0, 0.0]) for row in rows], traces(data))
    return text(CAPA, {"rules": [[*row[:6], int(row[6]), *rate[row[0]]] for row in rows]})


def cape(data: Path) -> str:
    """Signatures of one name are joined; TTPs stay as they are, wrong ones too: who reads them asks attack.technique."""
    rows: dict[str, list[str]] = {}
    hooked: set[str] = set()
    for row in table(data, "cape_signatures"):
        hooked.update(filter(None, row["filter_apinames"].split("|")))
        name, ttps, mbcs, severity = rows.setdefault(row["name"], [row["name"], "", "", ""])
        rows[name] = [name, joined(ttps, row["ttps"]), joined(mbcs, row["mbcs"]), max(severity, row["severity"])]
    return text(CAPE, {"hooked": [[name] for name in sorted(hooked)], "signatures": [rows[name] for name in sorted(rows)]})


def joined(first: str, second: str) -> str:
    return "|".join(dict.fromkeys(filter(None, f"{first}|{second}".split("|"))))


def text(head: Mapping[str, object], tables: Mapping[str, Sequence[Sequence[object]]]) -> str:
    """One row a line, so that a change of one shows as one."""
    parts = [json.dumps(head, ensure_ascii=False)[:-1]]
    parts += [f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]" for name, rows in tables.items()]
    return ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    root = Path(os.environ["KNOWHOW_DATA"])
    for name, made in (("cape_signatures.json", cape(root)), ("capa_rules.json", capa(root))):
        (PACK / name).write_text(made, encoding="utf-8")
        print(f"{name}: {len(made.encode()):,} bytes")
