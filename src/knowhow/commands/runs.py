"""`knowhow runs ls|rm|gc`, `knowhow report` and `knowhow diff`: runs on disk."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from knowhow.commands.build import deciding_metric
from knowhow.commands.output import Output, size, table
from knowhow.errors import UsageError
from knowhow.workspace import Run, check_name, find_run, list_runs

STAGES = ("data", "base", "baseline", "adapt", "evaluate", "package", "report")
LAST = "report"
SHOWN_CHANGES = 20


def resolve(where: str, runs: Path) -> Run:
    """A run by folder, by name, or by the name of its recipe (then the newest). Raises UsageError listing the runs there are."""
    if "/" not in where and not (runs / where / "run.json").is_file() and not Path(where, "run.json").is_file():
        name = check_name(where)
        same = [run for run in list_runs(runs) if run.folder.name.rpartition("-")[0] == name or run.folder.name.startswith(f"{name}-")]
        if same:
            return same[-1]
    return find_run(where, runs)


def ls(runs: Path, output: Output) -> None:
    rows = []
    for run in list_runs(runs):
        done = [stage for stage in STAGES if run.sealed(stage)]
        changed = datetime.datetime.fromtimestamp(run.path("run.json").stat().st_mtime, tz=datetime.UTC)
        taken, headline = _bytes(run.folder), _headline(run.folder)
        output.row(
            {"run": run.folder.name, "state": _state(done), "stages": done, "bytes": taken, "changed": changed.isoformat(timespec="seconds")}
            | {"folder": str(run.folder), "result": headline}
        )
        shown = f"{headline['metric']} {headline['value']:.3f}" if headline else None
        rows.append((run.folder.name, _state(done), shown, size(taken), changed.strftime("%Y-%m-%d %H:%M")))
    if not output.as_json:
        output.result({}, table(("run", "state", "result", "size", "changed (UTC)"), rows) if rows else f"no runs in {runs}; `knowhow build RECIPE` makes one")


def rm(names: Sequence[str], runs: Path, yes: bool, output: Output) -> None:
    """Removes runs by name; one that is in use is refused."""
    found = [find_run(check_name(name), runs) for name in names]
    total = sum(_bytes(run.folder) for run in found)
    _confirm(f"remove {', '.join(run.folder.name for run in found)} ({size(total)})?", yes, output)
    for run in found:
        with run.lease():
            shutil.rmtree(run.folder)
        output.result({"event": "removed", "run": run.folder.name}, f"removed {run.folder.name}")


def gc(runs: Path, yes: bool, output: Output) -> None:
    """Removes temporary files, and runs that never finished a stage; what is in use stays."""
    spare = {path: run for run in list_runs(runs) for path in _spare(run)}
    if not spare:
        output.result({"event": "done", "removed": 0, "bytes": 0}, "nothing to remove")
        return
    total = sum(_bytes(path) for path in spare)
    _confirm(f"remove {len(spare)} files and folders ({size(total)}) that no run needs?", yes, output)
    removed = freed = 0
    for path, run in spare.items():
        try:
            with run.lease():
                freed += _bytes(path)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                removed += 1
        except UsageError as busy:
            output.note(str(busy))
    output.result({"event": "done", "removed": removed, "bytes": freed}, f"removed {removed}, {size(freed)} freed")


def report(where: str, runs: Path, output: Output) -> None:
    from knowhow.report import page

    run = resolve(where, runs)
    path = page.write(run.folder, run.path("report", "report.html"))
    output.result({"event": "done", "report": str(path), "url": path.absolute().as_uri()}, f"report  {path.absolute().as_uri()}")


def diff(first: str, second: str, runs: Path, output: Output) -> None:
    from knowhow.report.diff import diff as compare

    found = compare(resolve(first, runs).folder, resolve(second, runs).folder)
    if not output.as_json:
        _draw(found)
    output.result(found, _told(found))


def _draw(found: Mapping[str, Any]) -> None:
    """The specialists on all rows; everything else is for --json."""
    from rich.console import Console

    from knowhow.report.tables import diff_table
    from knowhow.report.verdict import SPECIALIST

    own = [row for row in found["results"] if row["model"] == SPECIALIST and row["slice"] == "all"]
    if own:
        Console().print(diff_table({**found, "results": own}))


def _told(found: Mapping[str, Any]) -> str:
    """What else differs, as short lists."""
    parts = []
    for name in ("recipe", "data", "cost"):
        rows = [(row["key"], row["a"], row["b"]) for row in found[name]]
        if rows:
            more = f"\nand {len(rows) - SHOWN_CHANGES} more" if len(rows) > SHOWN_CHANGES else ""
            parts.append(table((name, "a", "b"), [tuple(map(_short, row)) for row in rows[:SHOWN_CHANGES]]) + more)
    same = found["same_rows"]
    if same:
        parts.append(
            f"on the {same['n']:,} same examples: only a right {same['only_a_right']}, only b right {same['only_b_right']} (McNemar p = {same['p']:.3g})"
        )
    return "\n\n".join(parts) or "the same recipe, data and cost"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else text[:47] + "…"


def _state(done: Sequence[str]) -> str:
    if LAST in done:
        return "done"
    return f"after {done[-1]}" if done else "begun"


def _headline(folder: Path) -> dict[str, Any]:
    """The specialist's deciding result; nothing while there is none."""
    from knowhow.report import read, verdict

    results = read.load(folder).results
    own = verdict.find(results, model=verdict.SPECIALIST, metric=verdict.headline_metric(results, deciding_metric(folder)))
    return {"metric": own.metric, "value": own.value, "low": own.low, "high": own.high} if own else {}


def _spare(run: Run) -> Iterator[Path]:
    """What a run can do without: never a sealed file."""
    if not any(run.sealed(stage) for stage in STAGES):
        yield run.folder
        return
    yield from (path for path in run.folder.rglob(".*.part") if path.is_file())


def _bytes(path: Path) -> int:
    return sum(inner.lstat().st_size for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else path.lstat().st_size


def _confirm(question: str, yes: bool, output: Output) -> None:
    if yes:
        return
    if output.as_json or not sys.stdin.isatty():
        raise UsageError("not removed without being sure", fix="add --yes")
    typer.confirm(question, abort=True, err=True)
