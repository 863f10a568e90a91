"""`knowhow inspect`: the data audit alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from knowhow.commands.build import allow_network
from knowhow.commands.look import data_spec, look
from knowhow.commands.output import Output, table
from knowhow.errors import UsageError
from knowhow.types import Task

SHOWN_LABELS = 12


def inspect(where: str, sets: Sequence[str], output: Output) -> None:
    allow_network(where)
    from knowhow.data import fields
    from knowhow.data.audit import audit
    from knowhow.data.store import Examples, write
    from knowhow.stages.data import read_part

    spec = data_spec(where, sets)
    seen = look(spec)
    output.note(f"{where}: {', '.join(f'{role} = {name}' for role, name in seen.columns.items())}; reads like {seen.kind}")
    asked = Task(seen.kind, (), seen.many)
    with tempfile.TemporaryDirectory(prefix="knowhow-inspect-") as folder, output.progress() as progress:
        parts: dict[str, Examples] = {}
        for part in ("train", "valid", "test"):
            rows = read_part(spec, part, asked, Path.cwd(), 0)
            if rows is not None:
                progress(f"reading {part}", 0, 0)
                write(Path(folder) / f"{part}.arrow", rows)
                parts[part] = Examples(Path(folder) / f"{part}.arrow")
        labels = fields.infer_labels(parts["train"]) if seen.labels else ()
        tokenizer, context = _tokenizer()
        report = audit(parts, Task(seen.kind, labels, seen.many), tokenizer=tokenizer, context=context, progress=progress)
    record = {"columns": dict(seen.columns), "task": {"kind": seen.kind, "many": seen.many, "labels": list(labels)}, **report}
    output.result(record, told(record))


def told(report: Mapping[str, Any]) -> str:
    """The audit for a person: counts first, then what to worry about."""
    duplicates, conflicts, noise = report["duplicates"], report["conflicts"], report["label_noise"]
    rows: list[tuple[str, Any]] = [(f"rows in {part}", count) for part, count in report["rows"].items()]
    rows += [("exact duplicates", duplicates["exact"]), ("near duplicates", duplicates["near"])]
    for pair, leak in report["leakage"].items():
        rows.append((f"also in {pair}", f"{leak['exact']} exact, {leak['near']} near"))
    rows.append(("inputs with more than one label", conflicts["inputs"]))
    if conflicts.get("ceiling_accuracy") is not None:
        rows.append(("highest accuracy possible", f"{conflicts['ceiling_accuracy']:.3f}"))
    if noise:
        rows.append(("labels in doubt", f"{noise['suspected']} ({noise['share']:.1%})"))
    if report["truncation"]:
        cut = report["truncation"]
        rows.append((f"longer than {cut['context']} tokens", f"{cut['over']} ({cut['share']:.1%}); the longest has {cut['longest']}"))
    if report["tokens_per_word"]:
        rows.append(("tokens per word", f"{report['tokens_per_word']:.2f}"))
    rows += [(f"label {label}", count) for label, count in list(report["balance"].items())[:SHOWN_LABELS]]
    more = len(report["balance"]) - SHOWN_LABELS
    rows += [("labels not shown", more)] if more > 0 else []
    warnings = "\n".join(f"! {warning}" for warning in report["warnings"]) or "nothing to worry about"
    return f"{table(('what', 'count'), rows)}\n\n{warnings}"


def _tokenizer() -> tuple[Any, int | None]:
    """The embedded base's tokenizer and context; nothing where this installation has none."""
    from knowhow.files import read_json
    from knowhow.model.source import find

    try:
        folder = find("seedling")
    except UsageError:
        return None, None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [row.ids for row in tokenizer.encode_batch(list(texts))], int(read_json(folder / "config.json")["max_position_embeddings"])
