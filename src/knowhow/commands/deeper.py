"""`knowhow look`: the circuit, the features, the training rows behind a finished run's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow.commands.output import Output
from knowhow.commands.runs import resolve
from knowhow.errors import UsageError
from knowhow.files import read_json, write_json
from knowhow.reading import recipes
from knowhow.recipe import Recipe
from knowhow.stages.common import Build
from knowhow.stages.deeper import LOOKS
from knowhow.workspace import Run


def look(model: str, what: str, sets: Sequence[str], runs: Path, output: Output) -> None:
    """One of stages/deeper.py; its record goes to looked/, beside what the build sealed. `sets`: keys of the run's recipe."""
    if what not in LOOKS:
        raise UsageError(f"{what!r}", allowed=", ".join(LOOKS))
    folder = resolve(model, runs).folder
    if not (folder / "package" / "specialist" / "knowhow.json").is_file():
        raise UsageError(f"the run {folder.name} has no specialist yet", fix="finish it: knowhow build RECIPE --resume", where=str(folder))
    recipe = recipes.read(folder / "recipe.json", sets)
    assert isinstance(recipe, Recipe), "the recipe of a build"
    run, here, began = Run(folder), folder / "looked", read_json(folder / "measured.json")
    parent = began.get("start_from")
    with run.lease(), output.progress() as progress:
        build = Build(recipe, run, Path(began.get("root", ".")), progress, Path(parent) if parent else None)
        told = LOOKS[what](build, here / what)
        write_json(here / f"{what}.json", told)
    said = "\n".join([*summary(what, told), f"{here / f'{what}.json'}; `knowhow report {folder.name}` shows it"])
    output.result({"event": "looked", "run": folder.name, "what": what, **told}, said)


def summary(what: str, told: Mapping[str, Any]) -> list[str]:
    """A few lines for the terminal."""
    if what == "circuit":
        edges, sizes = len(told["circuit"]["edges"]), f"{told['share']:.1%} of all"
        kept, rest = (f"{one['value']:.0%} [{one['low']:.0%}, {one['high']:.0%}]" for one in (told["faithfulness"], told["complement"]))
        return [
            f"{edges} edges ({sizes}) keep {kept} of the answers' margin against {told['against']}",
            f"all the others together keep {rest}; random circuits of that size are as good with p = {told['control']['p']:.3f}",
        ]
    if what == "influence":
        lines = [f"{told['method']}, {told['rows']} of {told['of']} training rows"]
        for answer in told["answers"]:
            lines.append(f"{answer['id']} {answer['label']}: helped by {', '.join(row['id'] for row in answer['helped']) or 'none'}")
            lines.append(f"    held back by {', '.join(row['id'] for row in answer['hurt']) or 'none'}")
        return lines
    return [line for one in told["dictionaries"] for line in _of_site(one)]


def _of_site(told: Mapping[str, Any]) -> list[str]:
    """What a dictionary keeps beside neurons, and its features that go with labels."""
    kept = [f"{way['name']} {way['recovered']['value']:.1%} of the loss, {1 - way['unexplained']['value']:.1%} of the variance" for way in told["kept"]]
    lines = [f"{told['name']}: {told['kept'][0]['active']:.0f} numbers a token keep, {'; '.join(kept)}; {told['dead']:.1%} of features dead"]
    for one in told["strongest"]:
        lines.append(
            f"    {one['label']}: feature {one['feature']}, AUC {one['auc']:.2f} (best neuron {one['neuron_auc']:.2f}); taken out, its logit moves by "
            f"{one['effect']:.3f} (random features {one['control']:.3f}): {one['verdict']}"
        )
    return lines
