"""`knowhow build` and `knowhow pretrain`: read the recipe, say what it will take, run it, say what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from knowhow import reading
from knowhow.commands.output import Output
from knowhow.errors import GateError, UsageError
from knowhow.files import digest, existing_parent, read_json, writing
from knowhow.progress import duration
from knowhow.recipe import PretrainRecipe, Recipe
from knowhow.workspace import list_runs

ASK_ABOVE_MINUTES = 60.0
WIDE = 160
"""Columns of the table of predictions where nobody says how wide a line may be."""


@dataclass(frozen=True, slots=True)
class How:
    """How a recipe is to be built. `start`: a specialist to start from; `yes`: ask nothing."""

    resume: bool
    start: Path | None
    runs: Path
    yes: bool


def specialist_recipe(path: Path, sets: Sequence[str]) -> tuple[Recipe, Recipe]:
    """The recipe as written, and with its paths as they are from here; the hub may be asked only for what it names."""
    recipe = reading.read(path, sets)
    if not isinstance(recipe, Recipe):
        raise UsageError("a recipe for a base model (it has `corpora`)", allowed="a recipe with `data`", fix=f"knowhow pretrain {path}", where=str(path))
    here = reading.located(recipe, path.absolute().parent)
    allow_network(here.base.model, *filter(None, (here.data.train, here.data.valid, here.data.test)))
    return recipe, here


def build(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    recipe, here = specialist_recipe(path, sets)
    root = path.absolute().parent
    start = None if how.start is None else _specialist(how.start, how.runs)
    record = _foresee(here, how, output)
    from knowhow import run
    from knowhow.loop.machine import keep_memory

    keep_memory()
    asked, about = reading.expanded(recipe), dict(record)
    try:
        with output.progress() as progress:
            result = run.build(asked, runs=how.runs, resume=how.resume, start_from=start, progress=progress, root=root, beside=run.Beside(about, told(output)))
    except GateError:
        # Everything is written when a gate fails; the run that was written last is this one.
        _tell(list_runs(how.runs)[-1].folder, output)
        raise
    _tell(result.run.folder, output)


def told(output: Output) -> Callable[[str, Path], None]:
    """Says, when the plan is made and nothing is trained yet, what is predicted."""

    def say(stage: str, run: Path) -> None:
        if stage != "plan":
            return
        from rich.console import Console

        from knowhow.report import forecasts

        rows = read_json(run / "plan" / "predictions.json")
        output.row({"event": "predicted", "predictions": rows})
        console = Console(stderr=True)
        if console.is_terminal and not (output.as_json or output.quiet):
            console.print(forecasts.text_table(rows))
        else:
            output.note(f"{len(rows)} numbers predicted before training: {run / 'plan' / 'predictions.json'}")

    return say


def pretrain(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    recipe = reading.read(path, sets)
    if not isinstance(recipe, PretrainRecipe):
        raise UsageError("a recipe for a specialist (it has no `corpora`)", allowed="a recipe with `corpora`", fix=f"knowhow build {path}", where=str(path))
    root = path.absolute().parent
    folder = how.runs / f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}"
    if folder.exists() and not how.resume:
        raise UsageError(f"{folder} is there already", fix="add --resume to go on with it, or remove it first", where=str(folder))
    from knowhow import pretrain as work
    from knowhow.loop.machine import keep_memory

    keep_memory()
    with output.progress() as progress:
        model = work.pretrain(reading.expanded(recipe), run=folder, root=root, progress=progress)
    output.result({"event": "done", "model": str(model), "run": str(folder)}, f"model  {model}")


def allow_network(*sources: str) -> None:
    """The hub is asked only when the user named a hub id: everything else stays offline. Call it before the hub's client is imported."""
    named = [source for source in sources if "/" in source and not Path(source).is_absolute()]
    if not named:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")


def _specialist(where: Path, runs: Path) -> Path:
    """The folder of a specialist named by its folder, its run's folder or its run's name; every file in it is hashed again."""
    from knowhow import package
    from knowhow.commands.runs import resolve

    folder = where if where.exists() and not (where / "run.json").is_file() else resolve(str(where), runs).path("package", "specialist")
    package.read(folder)
    return folder


def _foresee(recipe: Recipe, how: How, output: Output) -> Mapping[str, Any]:
    """Says what the build will take; stops it when machine or budget have less."""
    from knowhow import estimate
    from knowhow.commands import sizing

    _check_writable(how.runs)
    found, machine, record = sizing.foresee(recipe, how.runs)
    output.row({"event": "estimate", **record})
    rows = f"{record['rows']:,} rows to train on, {record['held_out']:,} to measure on, about {record['tokens_per_row']:.0f} tokens each"
    output.note(f"{recipe.name}: {record['parameters'] / 1e6:.1f} M parameters, {rows}")
    output.note(f"estimate: {duration(60 * found.total_minutes)}, {found.memory_gb:.1f} GB of memory, {found.disk_gb:.2f} GB of disk")
    output.note(f"licences: base {record['licences']['base']}, data {record['licences']['data']}; {record['licences']['note']}")
    estimate.hold_against(found, machine, recipe.budget)
    if found.total_minutes > ASK_ABOVE_MINUTES and not how.yes and not output.as_json and sys.stdin.isatty():
        typer.confirm("go on?", default=True, abort=True, err=True)
    return record


def _check_writable(runs: Path) -> None:
    """Raises UsageError before any work when no folder can be made where the runs go."""
    probe = existing_parent(runs) / f".knowhow-{os.getpid()}"
    try:
        with writing(runs):
            probe.mkdir()
            probe.rmdir()
    except OSError as error:
        raise UsageError(f"cannot write here: {error.strerror}", fix="choose a folder that you may write to (--runs)", where=str(runs)) from error


def _tell(run: Path, output: Output) -> None:
    """The table of baselines and specialist, where things are, and what to try next."""
    from rich.console import Console

    from knowhow.report import forecasts, read, tables, verdict

    results = read.load(run).results
    specialist, report = run / "package" / "specialist", run / "report" / "report.html"
    metric = verdict.headline_metric(results, deciding_metric(run))
    sentence = tables.verdict_line(results, metric=metric)
    scored = read.load(run).files.get("predictions", [])
    if not output.as_json:
        console = Console()
        console.print(forecasts.text_table(scored), width=None if console.is_terminal else WIDE)
        console.print(tables.text_table(results, metric=metric))
    paths = f"specialist  {specialist}\nreport      {report.absolute().as_uri()}"
    following = "\n".join(f"{'next' if number == 0 else '':<12}{line}" for number, line in enumerate(_next(run)))
    output.result(
        {
            "event": "done",
            "run": str(run),
            "specialist": str(specialist),
            "report": str(report),
            "sha256": read_json(specialist / "knowhow.json")["digest"],
            "verdict": sentence,
            "results": [asdict(row) for row in verdict.ranked(results, metric)],
            "predictions": scored,
        },
        f"{sentence}\n\n{paths}\n{following}",
    )


def deciding_metric(run: Path) -> str | None:
    """The metric that the recipe or the custom of the field lets decide; None before the data stage."""
    path = run / "data" / "task.json"
    return str(read_json(path)["metric"]) if path.is_file() else None


def _next(run: Path) -> list[str]:
    name = run.name if run.parent == Path("runs") else str(run)
    return [f"knowhow ask {name} 'a text'", f"knowhow predict {name} FILE", f"knowhow report {name}", "knowhow runs ls"]
