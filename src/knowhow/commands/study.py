"""`knowhow study`: a training run watched closely, and its life on a page; `seedling` needs no run, its life ships with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import knowhow
from knowhow import reading
from knowhow.commands.build import How, specialist_recipe
from knowhow.commands.output import Output
from knowhow.errors import UsageError
from knowhow.files import digest, read_json, read_jsonl, write_json
from knowhow.recipe import PretrainRecipe

SEEDLING = "seedling"
SHIPPED = Path(knowhow.__file__).parent / "model" / "seedling"


def study(recipe: str, sets: Sequence[str], steps: int | None, how: How, output: Output) -> None:
    """Study the run of a recipe, or show the life of the embedded base."""
    if recipe == SEEDLING and not Path(recipe).is_file():
        if sets or steps is not None:
            raise UsageError(
                "--set or --steps for the word seedling", allowed="a recipe, such as recipes/seedling.yaml", fix="its life is shown as it was kept"
            )
        _tell(shipped(how.runs), output)
        return
    path = Path(recipe)
    asked = reading.read(path, sets)
    if isinstance(asked, PretrainRecipe):
        _base(asked if steps is None else asked.model_copy(update={"tokens": steps * asked.batch_tokens}), path, how, output)
        return
    keys = [] if steps is None else [f"adapt.{number}.{key}" for number in range(len(asked.adapt)) for key in (f"steps={steps}", "epochs=null", "minutes=null")]
    _specialist(path, [*sets, *keys], how, output)


def _specialist(path: Path, sets: Sequence[str], how: How, output: Output) -> None:
    asked, _ = specialist_recipe(path, sets)
    from knowhow.loop.machine import keep_memory
    from knowhow.study import run as work

    keep_memory()
    with output.progress() as progress:
        studied = work.specialist(reading.expanded(asked), runs=how.runs, root=path.absolute().parent, resume=how.resume, progress=progress)
    _tell(studied.folder, output)


def _base(recipe: PretrainRecipe, path: Path, how: How, output: Output) -> None:
    folder = how.runs / f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}"
    if folder.exists() and not how.resume:
        raise UsageError(f"{folder} is there already", fix="add --resume to go on with it, or remove it first", where=str(folder))
    from knowhow.loop.machine import keep_memory
    from knowhow.study import run as work

    keep_memory()
    with output.progress() as progress:
        studied = work.base(reading.expanded(recipe), run=folder, root=path.absolute().parent, progress=progress)
    _tell(studied.folder, output)


def shipped(runs: Path) -> Path:
    """The story and page of the embedded base, from the rows that ship with it, in `runs`/seedling-life."""
    from knowhow.study import page
    from knowhow.study.story import story

    home, folder = SHIPPED, runs / "seedling-life"
    if not (home / "observations.jsonl").is_file():
        raise UsageError("this installation has no embedded base (seedling)", fix="make it: knowhow pretrain recipes/seedling.yaml", where=str(home))
    rows = list(read_jsonl(home / "observations.jsonl"))
    floors = read_json(home / "validation.json")
    events = [asdict(event) for event in story(rows, floors)]
    about = {"name": SEEDLING, "kind": "base", "steps": int(rows[-1]["step"]), "ended": "", "missing": "", "last_look": int(rows[-1]["step"])}
    write_json(folder / "study" / "story.json", {**about, "events": events, "heads": []})
    page.write(folder / "study", rows, floors)
    return folder


def _tell(folder: Path, output: Output) -> None:
    """The events in order, where the page is, and whether the run broke down."""
    story, page = read_json(folder / "study" / "story.json"), folder / "study" / "page.html"
    lines = [f"{_when(event):>16}  {event['told']}  [{event['law']}]" for event in story["events"]]
    lines += [f"{'':>16}  {note}" for note in (story["missing"], story["ended"] and f"the run broke down: {story['ended']}; the story ends there") if note]
    for rise in story["heads"]:
        pushing = [one["data"] for one in rise["data"] if one["pushes"]]
        who = f"pushed up by {', '.join(pushing)}" if pushing else "no kind of data pushes it up beyond its controls"
        span = f"{rise['before']:,} to {rise['step']:,}"
        lines.append(f"{span:>16}  L{rise['layer']}H{rise['head']} ({rise['role']}) rises by {rise['rise']:.2f}: {who}")
    output.result({"event": "studied", "run": str(folder), "page": str(page), **story}, "\n".join([*lines, f"\npage  {page.absolute().as_uri()}"]))


def _when(event: Mapping[str, Any]) -> str:
    if event["step"] is None:
        return "never"
    return f"by {event['step']:,}" if event["before"] is None else f"{event['before']:,} to {event['step']:,}"
