"""`knowhow triage`: sandbox reports in, answers that an analyst can check out; one record a report, whatever becomes of the others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from knowhow.commands.build import allow_network
from knowhow.commands.models import opened_model
from knowhow.commands.output import Output
from knowhow.errors import OK, UsageError
from knowhow.files import append_jsonl, digest, read_json, read_jsonl, write_json

if TYPE_CHECKING:
    from knowhow.domains.malware.colleagues import Role, Team
    from knowhow.domains.malware.ingest import Opened as Report
    from knowhow.domains.malware.phrases import Cited
    from knowhow.domains.malware.triage import Knows
    from knowhow.specialist import Opened
    from knowhow.team.answer import Reader
    from knowhow.team.near import Cases

CHUNK = 32
"""Reports that are read, answered and written together: so many are done again after a kill."""
KNOWN = 3000
"""Training rows among which the nearest are looked for."""
NEAREST = 3
WRITTEN = 300
"""Tokens of a summary."""
REASONS = 10
"""Reports that could not be read, named on the terminal."""


@dataclass(frozen=True, slots=True)
class Wish:
    """`evidence`: find the calls behind each answer (some tens of passes more for each); `others`: specialists that are asked besides."""

    paths: Sequence[str]
    out: Path
    evidence: bool
    others: Sequence[str] = ()


@dataclass(frozen=True)
class _Desk:
    reader: Reader
    knows: Knows
    cases: Cases | None
    model: str
    evidence: bool
    team: Team


def triage(model: str, wish: Wish, runs: Path, output: Output) -> None:
    """Exit code 0 when every report was read; else the largest of the codes of those that were not (2 no report, 4 refused, 5 out of memory or disk)."""
    allow_network()
    from knowhow.domains.malware.ingest import read_reports

    for path in wish.paths:
        if path != "-" and not Path(path).exists():
            raise UsageError(f"no file or folder {path}", allowed="sandbox reports (JSON, JSON lines, CSV, text; packed or not), folders of them, or -")
    opened = opened_model(model, runs, output)
    team, digests = _team(wish.others, runs, output)
    answers, done = _begun(wish, opened, digests)
    desk = _desk(opened, wish.evidence, team)
    counted: Counter[int] = Counter(int(row["exit"]) for row in done.values())
    with output.progress() as progress:
        waiting = (one for one in read_reports(wish.paths) if one.name not in done)
        finished = len(done)
        while chunk := list(itertools.islice(waiting, CHUNK)):
            for row in _answered(desk, chunk):
                append_jsonl(answers, row)
                counted[int(row["exit"])] += 1
                output.row({"event": "triaged", **row})
            finished += len(chunk)
            progress("triage", finished, 0)
    _written(wish, desk, output)
    if (worst := max(counted, default=OK)) != OK:
        raise typer.Exit(worst)


def _begun(wish: Wish, opened: Opened, digests: Mapping[str, str]) -> tuple[Path, dict[str, Mapping[str, Any]]]:
    """The file of answers, and the records that are in it already: a triage that was stopped goes on."""
    wish.out.mkdir(parents=True, exist_ok=True)
    answers, state = wish.out / "answers.jsonl", wish.out / "state.json"
    about = {"model": opened.sha256, "paths": list(wish.paths), "evidence": wish.evidence} | ({"with": dict(digests)} if digests else {})
    if state.is_file() and read_json(state) != about:
        raise UsageError(f"{wish.out} holds a triage by another model or of other reports", fix="give another --out, or remove it", where=str(wish.out))
    if not state.is_file() and answers.exists():
        raise UsageError(f"{answers} is there already", fix="give another --out, or remove it", where=str(wish.out))
    write_json(state, about)
    return answers, {row["name"]: row for row in read_jsonl(answers)} if answers.is_file() else {}


def _desk(opened: Opened, evidence: bool, team: Team) -> _Desk:
    from knowhow.domains.malware.triage import Knows, calls_of, masked
    from knowhow.stages.explain import asked_of
    from knowhow.team.answer import Reader
    from knowhow.team.near import Cases

    task, fitted = opened.task, opened.fitted
    if (kind := role(opened)) == "sentences":
        raise UsageError(f"{opened.name} reads sentences", allowed="a specialist of traces", fix="name it with --with, behind one of traces")
    if not task.classes:
        raise UsageError(f"{opened.name} does {task.kind}", allowed="a specialist that gives labels", fix="knowhow build recipes/malware-triage.yaml")
    thresholds = (tuple(fitted["thresholds"] or ()) or (0.5,) * len(task.labels)) if fitted else (0.5,) * len(task.labels)
    threshold = (fitted["abstention"] or {}).get("threshold") if fitted else None
    known = _known(opened)
    traces = kind == "traces"
    words = _words(opened, known, traces=traces)
    reader = Reader(opened.name, asked_of(opened.loaded, task, opened.spec, fitted), task.labels, partial(_probabilities, opened),
                    thresholds if task.many else None, threshold)  # fmt: skip
    ids, texts, labels = (tuple(part) for part in zip(*known, strict=True)) if known else ((), (), ())
    cases = Cases(ids, texts, labels, masked, calls_of if traces else str.splitlines) if known else None
    return _Desk(reader, Knows(words, traces, _operating(task.labels, fitted)), cases, opened.sha256, evidence, team)


def role(opened: Opened) -> Role:
    """What a specialist is for; one without a recipe is taken to read flat text."""
    from knowhow.domains.malware.colleagues import role_of
    from knowhow.reading.recipes import read
    from knowhow.recipe import Recipe

    path = opened.folder / "recipe.yaml"
    recipe = read(path, environ={}, must_exist=False) if path.is_file() else None
    return role_of(recipe.data.model_dump() if isinstance(recipe, Recipe) else {})


def _team(names: Sequence[str], runs: Path, output: Output) -> tuple[Team, dict[str, str]]:
    """The specialists that are asked besides, and the digest of each. Raises UsageError for one with nothing to add, or two of a kind."""
    from knowhow.domains.malware.colleagues import Team

    made: dict[str, Any] = {}
    digests, said = {}, {}
    for name in names:
        opened = opened_model(name, runs, output)
        kind = role(opened)
        part = {"traces": "family", "sentences": "reader", "writer": "writer"}.get(kind)
        if part is None or part in made:
            got = f"{opened.name} reads flat traces, as the first one does" if part is None else f"a second {part}: {opened.name}"
            raise UsageError(got, allowed="one specialist each of published sequences, of sentences, and a writer", where="--with")
        made[part] = partial(_written_by, opened) if part == "writer" else partial(_described, opened)
        if part == "family":
            made["words"] = _words(opened, _known(opened), traces=True)
        digests[part], said[part] = opened.sha256, opened.name
    return Team(**made, names=said), digests


def _described(opened: Opened, texts: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    from knowhow.specialist import describe
    from knowhow.types import Example

    return describe(opened, opened.answer([Example(str(at), text) for at, text in enumerate(texts)]))


def _written_by(opened: Opened, sets: Sequence[tuple[Cited, ...]]) -> Sequence[str]:
    from knowhow.domains.malware import writer
    from knowhow.model.generate import end_ids, generate
    from knowhow.model.lexicon import Lexicon

    ends = end_ids(opened.loaded)
    lexicons = [Lexicon(opened.loaded.tokenizer, writer.words(calls), ends) for calls in sets]
    return generate(opened.loaded, [writer.prompt(calls) for calls in sets], max_new_tokens=WRITTEN, lexicons=lexicons)


def _words(opened: Opened, known: Sequence[tuple[str, str, tuple[str, ...]]], *, traces: bool) -> frozenset[str]:
    """Words that the specialist was trained on: from its training rows, or else from what its vocabulary has grown by."""
    from knowhow.domains.malware.words import flat_word

    if traces:
        grown = frozenset(word for token in opened.loaded.tokenizer.get_added_vocab() for word in token.split())
        return frozenset(word for _, text, _ in known for word in text.split()) | grown
    words = frozenset(flat_word(line.split()[0]) for _, text, _ in known for line in text.splitlines() if line.strip())
    return words | frozenset(word for _, text, _ in known for word in text.split() if word[:1].isupper())


def _known(opened: Opened) -> list[tuple[str, str, tuple[str, ...]]]:
    """(id, text, labels) of training rows, where the run that built the specialist stands round it."""
    from knowhow.data.store import Examples

    path = opened.folder.parent.parent / "data" / "train.arrow"
    if opened.folder.name != "specialist" or not path.is_file():
        return []
    rows = itertools.islice(iter(Examples(path)), KNOWN)
    return [(row.id, row.prompt, tuple(row.label) if isinstance(row.label, list | tuple) else (str(row.label),)) for row in rows if isinstance(row.prompt, str)]


def _operating(labels: Sequence[str], fitted: Mapping[str, Any] | None) -> dict[str, str]:
    rates = (fitted or {}).get("false_positives") or ()
    said = "{rate:.1%} of validation rows without it got it (95% {low:.1%} to {high:.1%})"
    return {label: said.format(**rate) for label, rate in zip(labels, rates, strict=False)}


def _probabilities(opened: Opened, texts: Sequence[str]) -> Any:
    from knowhow.types import Example

    return opened.answer([Example(str(at), text) for at, text in enumerate(texts)]).probs_NC


def _answered(desk: _Desk, chunk: Sequence[Report]) -> Iterator[dict[str, Any]]:
    """A record for each report, in their order."""
    from knowhow.domains.malware.colleagues import joined
    from knowhow.domains.malware.triage import case, record
    from knowhow.team.answer import answers

    words = desk.knows.words if desk.knows.traces else None
    read = [(one.report, case(one.report, one.name, words)) for one in chunk if one.report is not None]
    made = []
    for (report, _), answer in zip(read, answers(desk.reader, [item for _, item in read], evidence=desk.evidence), strict=True):
        near = desk.cases.nearest(answer.item, NEAREST) if desk.cases is not None else []
        made.append({"exit": OK, "model": desk.model, **record(report, answer, desk.knows, near)})
    rows = iter(joined(desk.team, [report for report, _ in read], made))
    for one in chunk:
        if one.report is None:
            error = {} if one.error is None else {"error": str(one.error.got), "fix": one.error.fix}
            yield {"name": one.name, "status": "not read", "exit": one.exit_code, "model": desk.model, **error}
        else:
            yield next(rows)


def _written(wish: Wish, desk: _Desk, output: Output) -> None:
    """The page and the exports, from the records."""
    from knowhow.domains.malware import attack, export, rules
    from knowhow.report import triage as page

    rows = list(read_jsonl(wish.out / "answers.jsonl"))
    if not rows:
        raise UsageError("no reports", allowed="at least one sandbox report", where=", ".join(wish.paths))
    page.write(rows, wish.out / "triage.html", model=desk.reader.name, sources=(attack.attribution(), *rules.attributions()))
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    answered = [row for row in rows if row["status"] != "not read"]
    write_json(wish.out / "stix.json", export.stix(answered, when=when))
    write_json(wish.out / "misp.json", {"response": [export.misp(row, when=when) for row in answered]})
    counted = Counter(row["status"] if row["status"] != "answered" else row["verdict"]["value"] for row in rows)
    said = "\n".join(f"{count:>6}  {kind}" for kind, count in counted.most_common())
    shown = _told(rows[0]) + "\n\n" if len(rows) == 1 and rows[0]["status"] != "not read" else ""
    failed = [f"{row['name']}: {row.get('error', 'not read')} (exit code {row['exit']})" for row in rows if row["status"] == "not read"]
    if failed:
        shown += "\n".join([*failed[:REASONS], *([f"and {len(failed) - REASONS} more"] if len(failed) > REASONS else [])]) + "\n\n"
    record = {"event": "done", "reports": len(rows), "counts": counted, "out": str(wish.out), "answers": digest([row["name"] for row in rows])}
    output.result(record, f"{shown}{said}\n\n{wish.out / 'triage.html'}   (answers.jsonl, stix.json, misp.json beside it)")


def _told(row: Mapping[str, Any]) -> str:
    """One record for the terminal."""
    lines = [str(row["verdict"]["value"]), *(f"  because {why}" for why in row["because"])]
    for finding in row["findings"]:
        ids = ", ".join(each["id"] for each in finding["techniques"])
        lines.append(f"  {finding['probability']:.2f}  {finding['label']} {ids} ({finding['state']})")
        lines += [f"        [{call['call']}] {call['api']}  {call['pointer']}" for call in finding["evidence"][:12] if finding["state"] == "shown"]
        if finding["counterfactual"]:
            without = ", ".join(f"[{call['call']}]" for call in finding["counterfactual"]["without"])
            lines.append(f"        without {without} its probability is {finding['counterfactual']['probability']:.2f}")
    lines += [f"  {summary['text']} ({summary['by']})" for summary in row["summaries"]]
    if (family := row.get("family")) is not None:
        lines.append(f"  family {family['label']} ({family['confidence']:.2f})" if family["label"] else f"  family not said: {family['because']}")
    return "\n".join(lines + [f"  not seen: {line}" for line in row["not_seen"][:6]])
