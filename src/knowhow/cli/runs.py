"""`knowhow runs …`."""

from __future__ import annotations

from typing import Annotated

import typer

from knowhow.cli.options import RUNS, Json, Quiet, Runs, Yes

app = typer.Typer(help="The runs there are: list, remove, tidy up.", rich_markup_mode=None)


@app.command("ls")
def runs_ls(runs: Runs = RUNS, json: Json = False, quiet: Quiet = False) -> None:
    """List the runs, oldest first."""
    from knowhow.commands import runs as command
    from knowhow.commands.output import Output

    command.ls(runs, Output(json, quiet))


@app.command("rm")
def runs_rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs.")],
    runs: Runs = RUNS,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove runs."""
    from knowhow.commands import runs as command
    from knowhow.commands.output import Output

    command.rm(names, runs, yes, Output(json, quiet))


@app.command("gc")
def runs_gc(runs: Runs = RUNS, yes: Yes = False, json: Json = False, quiet: Quiet = False) -> None:
    """Remove temporary files and runs that never got anywhere."""
    from knowhow.commands import runs as command
    from knowhow.commands.output import Output

    command.gc(runs, yes, Output(json, quiet))
