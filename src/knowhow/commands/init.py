"""`knowhow init`: looks at the data, asks what it cannot see, and writes a commented recipe that `knowhow build` takes as it is."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import typer

from knowhow import reading
from knowhow.commands.build import allow_network
from knowhow.commands.look import PEEK, Look, data_spec, look
from knowhow.commands.output import Output
from knowhow.errors import UsageError
from knowhow.files import write_atomic
from knowhow.reading.text import scalar
from knowhow.types import TaskKind

SHOWN_LABELS = 24
EMBEDDED = ("seedling", "minilm")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line said; None is asked for, or proposed with --yes."""

    data: str | None
    base: str | None
    task: str | None
    sets: tuple[str, ...] = ()


def init(wish: Wish, out: Path, yes: bool, output: Output) -> None:
    """Writes `out` and the schema beside it (for editors). Raises UsageError when something is missing, or `out` is there already."""
    if out.exists():
        raise UsageError("this recipe is there already", fix="choose another name with --out, or remove it", where=str(out))
    asking = not yes and not output.as_json and sys.stdin.isatty()
    data = wish.data or _ask(asking, "data (a file, a `datasets` folder or a hub id)", None, "--data FILE")
    allow_network(data)
    seen = look(data_spec(data, wish.sets))
    output.note(f"{seen.rows} rows looked at: {', '.join(f'{role} = {name}' for role, name in seen.columns.items())}")
    task = wish.task or _ask(asking, f"task ({', '.join(get_args(TaskKind))})", seen.kind, "--task")
    if task not in get_args(TaskKind):
        raise UsageError(f"task {task!r}", allowed=", ".join(get_args(TaskKind)), where="--task")
    base = wish.base or _ask(asking, "base (seedling, minilm, a model folder or a hub id)", "seedling", "--base")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text(_name(out), _beside(data, out), _beside(base, out), task, seen))
    try:
        reading.read(out, environ=dict(os.environ) | {"KNOWHOW_SET": "", "KNOWHOW_SEED": ""})
    except UsageError:
        out.unlink()
        raise
    write_atomic(out.parent / reading.SCHEMA_FILE, json.dumps(reading.schema(), indent=1) + "\n")
    output.result(
        {"event": "done", "recipe": str(out), "task": task, "base": base, "columns": dict(seen.columns)}, f"recipe  {out}\nnext    knowhow build {out}"
    )


def text(name: str, data: str, base: str, task: str, seen: Look) -> str:
    """The recipe with a comment wherever there is something to decide."""
    large = base not in EMBEDDED
    columns = ", ".join(f"{role}: {_quoted(column)}" for role, column in seen.columns.items())
    phase = "objective: classify" if task in ("classify", "regress", "score") else "objective: sft"
    method = "method: lora, lr: 2e-4" if large else "lr: 1e-3"
    lines = [
        f"# yaml-language-server: $schema={reading.SCHEMA_FILE}",
        "# `knowhow schema` lists every key; what is left out here has a default.",
        "schema_version: 1",
        f"name: {name}",
        "",
        "task:",
        f"  kind: {task}                 # classify: labels; regress: a number; generate: a text; score: a pair of texts",
        *_labels(task, seen),
        *(["  many: true                     # an example may carry several labels"] if seen.many and task == "classify" else []),
        *(["  instruction: ''                # a sentence put before every input"] if task == "generate" else []),
        "",
        "base:",
        f"  model: {_quoted(base)}              # seedling (embedded, 6.6 M parameters), minilm, a model folder or a hub id",
        "  # vocabulary: {extend: true}   # one token per domain word, where the tokenizer breaks them to pieces",
        "",
        "data:",
        f"  train: {_quoted(data)}",
        "  # valid: …                     # left out: cut from train, by duplicate cluster",
        "  # test: …",
        f"  fields: {{{columns}}}   # recognised from names and values; columns there are: {_comment(', '.join(seen.present))}",
        "  # split: {by: time}            # random, group or time",
        "  # licence: CC-BY-4.0           # the data's licence, for the compatibility note and the card",
        "",
        "adapt:                           # phases, run in order",
        f"  - {{{phase}, {method}, epochs: 3}}",
        "  # lr may be a list: it is swept, and validation chooses",
        "",
        *(READOUT if task == "classify" else []),
        "# budget: {minutes: 20, memory_gb: 8, beat_baselines: true}",
        "seed: 0",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


READOUT = (
    "readout:                         # what answers are read off: validation picks",
    "  candidates: [tuned, frozen, tuned+ngrams, frozen+ngrams]",
    "",
)


def _labels(task: str, seen: Look) -> list[str]:
    """The labels, when all rows were seen; otherwise training finds them, and what was seen stands as a comment."""
    if task not in ("classify", "score") or not 0 < len(seen.labels) <= SHOWN_LABELS:
        return []
    listed = f"labels: [{', '.join(map(_quoted, seen.labels))}]"
    return [f"  {listed}" if seen.rows < PEEK else f"  # {listed}   # seen in the first {PEEK:,} rows; left out: read from the training rows"]


def _ask(asking: bool, question: str, proposal: str | None, flag: str) -> str:
    if not asking:
        if proposal is None:
            raise UsageError(f"no {flag.split()[0]}", allowed=flag, fix=f"name it: knowhow init {flag}")
        return proposal
    return str(typer.prompt(question, default=proposal, err=True)).strip()


def _name(out: Path) -> str:
    """A run's name from the recipe's file name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", out.stem.lower()).strip("-._")[:64]
    return name or "recipe"


def _beside(where: str, out: Path) -> str:
    """A path as seen from the recipe's folder; names and hub ids as they are."""
    if where in EMBEDDED or not Path(where).expanduser().exists():
        return where
    relative = os.path.relpath(Path(where).expanduser(), out.parent)
    return relative if "/" in relative or Path(relative).suffix else f"./{relative}"


def _quoted(value: str) -> str:
    """As YAML: bare where that reads back as the same text."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and isinstance(scalar(value), str)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _comment(value: str) -> str:
    return "".join(char if char.isprintable() else " " for char in value)[:200]
