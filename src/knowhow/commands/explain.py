"""`knowhow explain`: the lines that a specialist's answers rest on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow.commands.build import allow_network
from knowhow.commands.look import data_spec
from knowhow.commands.models import opened_model, read_stdin
from knowhow.commands.output import Output, table
from knowhow.commands.runs import resolve
from knowhow.errors import UsageError
from knowhow.files import read_json

ROWS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to explain: one text, rows of `data` (`example`: that one alone), or neither: what the run found when it was built."""

    text: str | None
    data: str | None
    example: str | None
    sets: tuple[str, ...]


def explain(model: str, wanted: Wanted, runs: Path, output: Output) -> None:
    if wanted.text is not None and wanted.data is not None:
        raise UsageError("--text and --data together", allowed="one of them")
    if wanted.example is not None and wanted.data is None:
        raise UsageError("--example without --data", fix="name the rows with --data")
    if wanted.text is None and wanted.data is None:
        return _found(model, runs, output)
    allow_network(wanted.data or "")
    from knowhow import specialist
    from knowhow.types import Example

    opened = opened_model(model, runs, output)
    rows: Iterator[Example]
    if wanted.data is None:
        rows = iter([Example("0", read_stdin() if wanted.text == "-" else str(wanted.text))])
    else:
        read = specialist.read_examples(wanted.data, opened.task, data_spec(wanted.data, wanted.sets).fields, labelled=False)
        rows = itertools.islice((row for row in read if wanted.example in (None, row.id)), ROWS if wanted.example is None else 1)
    with output.progress() as progress:
        found = list(specialist.explain(opened, rows, progress))
    for row in found:
        output.result({"event": "explained", "model": opened.name, **row}, told(row))
    if not found:
        got = f"no answer to explain (row {wanted.example})" if wanted.example else "no answer to explain"
        raise UsageError(got, allowed="a text that the specialist gives a label", fix="`knowhow ask` and `knowhow predict` show ids and answers")


def told(row: Mapping[str, Any]) -> str:
    """The text with its marked lines, and what asking again without them gave."""
    text, marked = str(row["text"]), [(span["start"], span["end"]) for span in row["evidence"]]
    lines, at = [], 0
    for line in text.splitlines():
        hit = any(start < at + len(line) and at < end for start, end in marked)
        lines.append(f"{'>' if hit else ' '} {line}")
        at += len(line) + 1
    lost = "is gone" if row["necessity_flips"] else "stays"
    alone = "is gone" if row["sufficiency_flips"] else "stays"
    asked = f"without the marked lines it {lost} (without as many random ones it went in {row['random_necessity_flips']:.0%} of the tries); alone it {alone}"
    return "\n".join([f"{row['label']}  ({row['verdict']})", *lines, asked, ""])


def _found(model: str, runs: Path, output: Output) -> None:
    """What the build of a run found."""
    if (Path(model) / "knowhow.json").is_file():
        raise UsageError(f"{model}, a specialist without the run that built it", allowed="a run, or a text to explain", fix="give --text or --data")
    folder = resolve(model, runs).folder
    path = folder / "explain" / "findings.json"
    if not path.is_file():
        raise UsageError(f"{folder.name} was built without the explain stage", fix="give --text or --data, or build it again", where=str(path))
    inside = folder / "explain" / "inside.json"
    findings: Sequence[Mapping[str, Any]] = [*read_json(path), *(read_json(inside)["findings"] if inside.is_file() else [])]
    rows = [(one["claim"], one["method"], one["effect"], one["control"], one["verdict"]) for one in findings]
    output.result({"event": "findings", "run": folder.name, "findings": findings}, table(("claim", "method", "found", "control", "verdict"), rows))
