"""`knowhow laws …`."""

from __future__ import annotations

from typing import Annotated

import typer

from knowhow.cli.options import RUNS, Json, LawName, Quiet, RecipePath, Runs, Sets

app = typer.Typer(help="The laws of learning: list, show, check.", rich_markup_mode=None)


@app.command("list")
def laws_list(json: Json = False, quiet: Quiet = False) -> None:
    """List the laws, what each answers, and how it was judged."""
    from knowhow.commands import laws as command
    from knowhow.commands.output import Output

    command.list_laws(Output(json, quiet))


@app.command("show")
def laws_show(law: LawName, json: Json = False, quiet: Quiet = False) -> None:
    """Show a law: statement, derivation, experiments, judgement."""
    from knowhow.commands import laws as command
    from knowhow.commands.output import Output

    command.show(law, Output(json, quiet))


@app.command("predict")
def laws_predict(recipe: RecipePath, sets: Sets = None, runs: Runs = RUNS, json: Json = False, quiet: Quiet = False) -> None:
    """Predict, by every law, what a build will do."""
    from knowhow.commands import build as command
    from knowhow.commands import plan as planning
    from knowhow.commands.output import Output

    planning.predict(recipe, sets or [], command.How(resume=True, start=None, runs=runs, yes=True), Output(json, quiet))


@app.command("check")
def laws_check(
    law: LawName,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds to run, such as 0,1,2 or 0-4.")] = "0,1,2",
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Your own language model, in place of the law's.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help="Texts to train it on (the formats of `build`).")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a law to the test: its experiments and its controls."""
    from knowhow.commands import laws as command
    from knowhow.commands.output import Output

    command.check(law, seeds, command.Yours(model, data), Output(json, quiet))
