"""`knowhow eval`, `predict` and `ask`: a finished specialist at work."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowhow.commands.build import allow_network
from knowhow.commands.look import data_spec
from knowhow.commands.output import Output, table
from knowhow.commands.runs import resolve
from knowhow.errors import UsageError

if TYPE_CHECKING:
    from knowhow.specialist import Opened

DRAWS = 1000
LIMIT = 1_000_000
SHOWN_LABELS = 5
LIKELY = 0.005


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read and runs are found."""

    sets: Sequence[str]
    runs: Path


def evaluate(model: str, data: str, sets: Sequence[str], runs: Path, output: Output) -> None:
    allow_network(data)
    from knowhow import specialist
    from knowhow.data.sources import open_source

    columns = data_spec(data, sets).fields
    open_source(data)
    opened = opened_model(model, runs, output)
    with output.progress() as progress:
        results = specialist.evaluate_file(opened, data, columns=columns, draws=DRAWS, progress=progress)
    rows = [(row.metric, row.slice, row.value, f"{row.low:.3f} to {row.high:.3f}", row.n) for row in results]
    record = {"model": opened.name, "sha256": opened.sha256, "data": data, "results": [asdict(row) for row in results]}
    output.result(record, table(("metric", "rows", "value", "95% interval", "n"), rows))


def predict(model: str, file: str, out: Path | None, how: Reading, output: Output) -> None:
    allow_network(file)
    from knowhow import specialist
    from knowhow.data.sources import open_source

    columns = data_spec(file, how.sets).fields
    open_source(file)
    opened = opened_model(model, how.runs, output)
    out = out or Path(f"{Path(file).name.partition('.')[0] or 'rows'}.predictions.jsonl")
    with output.progress() as progress:
        count = specialist.predict_file(opened, file, out, columns=columns, progress=progress)
    output.result({"event": "done", "rows": count, "out": str(out), "model": opened.name, "sha256": opened.sha256}, f"{count:,} answers in {out}")


def ask(model: str, text: str, pair: str | None, runs: Path, output: Output) -> None:
    allow_network()
    from knowhow import specialist

    if text == "-":
        text = read_stdin()
    opened = opened_model(model, runs, output)
    if (opened.task.kind == "score") != (pair is not None):
        needed = "this specialist judges pairs" if pair is None else "this specialist takes one text"
        raise UsageError(
            f"{needed}, and got {'one text' if pair is None else 'two'}", fix="give the second text with --pair" if pair is None else "leave --pair away"
        )
    answer = specialist.ask(opened, text, pair)
    output.result({"model": opened.name, **answer}, _told(answer))


def opened_model(model: str, runs: Path, output: Output) -> Opened:
    from knowhow import specialist

    where = model if Path(model).is_dir() else str(resolve(model, runs).folder)
    opened = specialist.open_specialist(where, runs)
    output.note(f"{opened.name}: {opened.task.kind}, {len(opened.task.labels)} labels" if opened.task.labels else f"{opened.name}: {opened.task.kind}")
    return opened


def _told(answer: Mapping[str, Any]) -> str:
    said = answer["answer"]
    shown = (", ".join(said) or "none of the labels") if isinstance(said, list) else str(said)
    if "confidence" not in answer:
        return shown
    doubt = "" if answer["answered"] else "; less sure than the risk that was asked for allows: take it as a guess"
    likely = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:SHOWN_LABELS]
    listed = "\n".join(f"  {probability:6.1%}  {label}" for label, probability in likely if probability >= LIKELY)
    return f"{shown}  ({answer['confidence']:.1%} sure{doubt})\n{listed}"


def read_stdin() -> str:
    data = sys.stdin.buffer.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise UsageError(f"more than {LIMIT:,} bytes on stdin", allowed="one text", fix="put many texts in a file: knowhow predict MODEL FILE")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"a byte that is not UTF-8 (0x{data[error.start]:02x}) on stdin", allowed="UTF-8 text") from error
