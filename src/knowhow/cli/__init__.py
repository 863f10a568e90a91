"""The commands: their names and options, and nothing else. What they do is in `commands/`, imported when it is needed, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from knowhow import __version__
from knowhow.cli import laws, runs
from knowhow.cli.options import RUNS, Data, DataSets, Json, Model, Quiet, RecipePath, Runs, Sets, Yes

app = typer.Typer(
    name="knowhow",
    help="Turn a base language model into an expert, and know how it works.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs.app, name="runs")
app.add_typer(laws.app, name="laws")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def build(
    recipe: RecipePath,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", envvar="KNOWHOW_RESUME", help="Go on with the newest run of this recipe.")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="SPECIALIST", envvar="KNOWHOW_FROM", help="Start from this specialist's weights (a warm update).")
    ] = None,
    runs: Runs = RUNS,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a base model and data into a measured specialist."""
    from knowhow.commands import build as command
    from knowhow.commands.output import Output

    command.build(recipe, sets or [], command.How(resume=resume, start=start, runs=runs, yes=yes), Output(json, quiet))


@app.command()
def diagnose(recipe: RecipePath, sets: Sets = None, runs: Runs = RUNS, json: Json = False, quiet: Quiet = False) -> None:
    """Measure the base on the task; no weight changes."""
    from knowhow.commands import build as command
    from knowhow.commands import plan as planning
    from knowhow.commands.output import Output

    planning.diagnose(recipe, sets or [], command.How(resume=True, start=None, runs=runs, yes=True), Output(json, quiet))


@app.command()
def plan(recipe: RecipePath, sets: Sets = None, runs: Runs = RUNS, json: Json = False, quiet: Quiet = False) -> None:
    """Show the choices of a build and what each rests on."""
    from knowhow.commands import build as command
    from knowhow.commands import plan as planning
    from knowhow.commands.output import Output

    planning.plan(recipe, sets or [], command.How(resume=True, start=None, runs=runs, yes=True), Output(json, quiet))


@app.command()
def init(
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help="A file, a `datasets` folder or a hub id.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="seedling, minilm, a model folder or a hub id.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="classify, regress, generate or score.")] = None,
    sets: DataSets = None,
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.yaml"),
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a commented recipe after a look at the data."""
    from knowhow.commands import init as command
    from knowhow.commands.output import Output

    command.init(command.Wish(data, base, task, tuple(sets or ())), out, yes, Output(json, quiet))


@app.command()
def inspect(data: Data, sets: DataSets = None, json: Json = False, quiet: Quiet = False) -> None:
    """Audit data: fields, duplicates, leakage, label conflicts."""
    from knowhow.commands import data as command
    from knowhow.commands.output import Output

    command.inspect(data, sets or [], Output(json, quiet))


@app.command(name="eval")
def evaluate(model: Model, data: Data, sets: DataSets = None, runs: Runs = RUNS, json: Json = False, quiet: Quiet = False) -> None:
    """Measure a specialist on other data, with intervals."""
    from knowhow.commands import models as command
    from knowhow.commands.output import Output

    command.evaluate(model, data, sets or [], runs, Output(json, quiet))


@app.command()
def predict(
    model: Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows to answer (the formats of `build`).")],
    out: Annotated[Path | None, typer.Option("--out", help="JSONL to write; left out: FILE's name with .predictions.jsonl here.")] = None,
    sets: DataSets = None,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer every row of a file; goes on where it was stopped."""
    from knowhow.commands import models as command
    from knowhow.commands.output import Output

    command.predict(model, file, out, command.Reading(sets or [], runs), Output(json, quiet))


@app.command()
def ask(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to answer; `-` reads it from stdin.")],
    pair: Annotated[str | None, typer.Option("--pair", metavar="TEXT", help="The second text, for a specialist that judges pairs.")] = None,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer one text."""
    from knowhow.commands import models as command
    from knowhow.commands.output import Output

    command.ask(model, text, pair, runs, Output(json, quiet))


@app.command()
def explain(
    model: Model,
    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="A text to explain; `-` reads it from stdin.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help="Rows to explain (the formats of `build`).")] = None,
    example: Annotated[str | None, typer.Option("--example", metavar="ID", help="Of DATA, this row alone; left out: the first 20.")] = None,
    sets: DataSets = None,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which lines answers rest on, tested without them."""
    from knowhow.commands import explain as command
    from knowhow.commands.output import Output

    command.explain(model, command.Wanted(text, data, example, tuple(sets or ())), runs, Output(json, quiet))


@app.command()
def triage(
    model: Model,
    reports: Annotated[list[str], typer.Argument(metavar="REPORT...", help="Sandbox reports: files, folders, archives, or - for stdin.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where answers, page and exports go.")] = Path("triage"),
    others: Annotated[
        list[str] | None, typer.Option("--with", metavar="MODEL", help="Ask this specialist too: of families, of sentences, or a writer (again for more).")
    ] = None,
    evidence: Annotated[bool, typer.Option("--evidence/--no-evidence", help="Find and test the calls behind each answer.")] = True,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer sandbox reports with the calls that carry it."""
    from knowhow.commands import triage as command
    from knowhow.commands.output import Output

    command.triage(model, command.Wish(reports, out, evidence, tuple(others or ())), runs, Output(json, quiet))


@app.command()
def look(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's name or folder.")],
    what: Annotated[str, typer.Argument(metavar="WHAT", help="circuit, features, or influence (the training rows behind answers).")],
    sets: Sets = None,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look deeper into a run: circuit, features, training rows."""
    from knowhow.commands import deeper as command
    from knowhow.commands.output import Output

    command.look(run, what, sets or (), runs, Output(json, quiet))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with.")],
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two runs: what was asked, what came of it."""
    from knowhow.commands import runs as command
    from knowhow.commands.output import Output

    command.diff(first, second, runs, Output(json, quiet))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")], runs: Runs = RUNS, json: Json = False, quiet: Quiet = False
) -> None:
    """Write the report of a run anew and name its path."""
    from knowhow.commands import runs as command
    from knowhow.commands.output import Output

    command.report(run, runs, Output(json, quiet))


@app.command()
def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Look at this machine: speed, memory, disk, what is missing."""
    from knowhow.commands import doctor as command
    from knowhow.commands.output import Output

    command.doctor(Output(json, quiet))


@app.command()
def pretrain(
    recipe: RecipePath,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", envvar="KNOWHOW_RESUME", help="Go on with the run of this recipe.")] = False,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a small base model from text."""
    from knowhow.commands import build as command
    from knowhow.commands.output import Output

    command.pretrain(recipe, sets or [], command.How(resume=resume, start=None, runs=runs, yes=True), Output(json, quiet))


@app.command()
def study(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (YAML), or the word seedling: the life of the embedded base.")],
    sets: Sets = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Train for so many steps (each phase), in place of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", envvar="KNOWHOW_RESUME", help="Go on with the newest run of this recipe.")] = False,
    runs: Runs = RUNS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Watch a training run closely and tell its life."""
    from knowhow.commands import build
    from knowhow.commands import study as command
    from knowhow.commands.output import Output

    command.study(recipe, sets or [], steps, build.How(resume=resume, start=None, runs=runs, yes=True), Output(json, quiet))


@app.command()
def schema(json: Json = False, quiet: Quiet = False) -> None:
    """Print the JSON Schema of recipes: every key and its values."""
    from knowhow.commands import recipes as command
    from knowhow.commands.output import Output

    command.schema(Output(json, quiet))


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code. Every failure leaves as one screen, or with --json as one JSON line."""
    from knowhow.commands.failures import guarded

    words = sys.argv[1:] if arguments is None else arguments
    return guarded(app, [*words, "--help"] if words in ([], ["runs"], ["laws"]) else words)


if __name__ == "__main__":
    raise SystemExit(main())
