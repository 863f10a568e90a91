"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", envvar="KNOWHOW_JSON", help="JSON lines on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", envvar="KNOWHOW_QUIET", help="Results and errors only.")]
Runs = Annotated[Path, typer.Option("--runs", envvar="KNOWHOW_RUNS", help="Folder that holds the runs.")]
Yes = Annotated[bool, typer.Option("--yes", envvar="KNOWHOW_YES", help="Ask nothing.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe, e.g. adapt.0.lr=1e-4 (again for more).")]
DataSets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of `data`, e.g. fields.text=body (again for more).")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML); `knowhow init` writes one.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A specialist's folder, or the name of a run.")]
Data = Annotated[str, typer.Argument(metavar="DATA", help="A file, a `datasets` folder or a hub id.")]
LawName = Annotated[str, typer.Argument(metavar="LAW", help="A law's name; `knowhow laws list` shows them.")]
RUNS = Path("runs")
