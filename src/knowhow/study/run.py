"""A study from beginning to end: the run, watched; its story; what brought its heads about; the page. A base that is made, or a specialist's phases.

Left in the run's folder: study/rows.jsonl (all observers, a row a look), study/kept/STEP.safetensors, study/story.json, study/page.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from knowhow import run as flow
from knowhow.adapt.lm import NextToken
from knowhow.data.batch import Rows, by_length, collate
from knowhow.errors import UsageError
from knowhow.files import read_json, read_jsonl, write_json
from knowhow.loop import checkpoint
from knowhow.loop.machine import repeatable_device
from knowhow.model.load import Loaded
from knowhow.model.sites import has_sites
from knowhow.pretrain import flow as making
from knowhow.pretrain.measure import looks
from knowhow.protocols import Objective, Progress
from knowhow.recipe import PretrainRecipe, Recipe
from knowhow.stages.common import Build
from knowhow.stages.phase import Phase, phases
from knowhow.study import page
from knowhow.study.alignment import nearest, pushes, record, rises
from knowhow.study.story import story
from knowhow.study.watch import of_base, of_phase
from knowhow.types import Batch

MOST_ROWS, MOST_KINDS = 32, 8


@dataclass(frozen=True, slots=True)
class Studied:
    """`ended`: why the run broke down, "" when it came to its end; `events` as in story.json."""

    folder: Path
    ended: str
    events: Sequence[Mapping[str, Any]]

    @property
    def page(self) -> Path:
        return self.folder / "study" / "page.html"


def base(recipe: PretrainRecipe, *, run: Path, root: Path, progress: Progress) -> Studied:
    """Make the base described by `recipe` in `run` and watch it."""
    seen: list[making.Scene] = []

    def watch(scene: making.Scene) -> Sequence[Any]:
        seen.append(scene)
        return of_base(scene, run / "study")

    ended = ""
    try:
        making.pretrain(recipe, run=run, root=root, progress=progress, watch=watch)
    except UsageError as error:
        ended = broken(error, run)
    scene = seen[-1]
    rows = watched(run)
    aligned = []
    for rise in rises(rows):
        progress("which data brought a head about", 0, 0)
        model = making.untrained(recipe, scene.tokenizer).to(repeatable_device())
        at = nearest(kept_steps(run), rise)
        checkpoint.load_weights(run / "study" / "kept" / f"{at}.safetensors", model)
        data = {name: looks(recipe, name, stream, model.config.eos_token_id, 16) for name, stream in scene.streams.items()}
        aligned.append(record(rise, at, pushes(model, rise, data, NextToken(), min(32, recipe.context))))
    return told(run, rows, aligned, {"name": recipe.name, "kind": "base", "steps": scene.steps, "ended": ended})


def specialist(recipe: Recipe, *, runs: Path, root: Path, resume: bool, progress: Progress) -> Studied:
    """The stages of a build up to its training, and that watched. `knowhow build RECIPE --resume` goes on from there."""
    made: list[Build] = []

    def watch(phase: Phase, loaded: Loaded, rows: Rows, steps: int) -> Sequence[Any]:
        made.append(phase.build)
        note_steps(phase.build, phase.number, steps)
        return of_phase(phase, loaded, rows, steps, phase.build.run.path("study"), offset_of(phase.build, phase.number))

    ended = ""
    try:
        build = flow.flow(recipe, runs=runs, resume=resume, start_from=None, progress=progress, root=root, until="adapt", beside=flow.Beside(watch=watch))
    except UsageError as error:
        if not made:
            raise
        build, ended = made[-1], broken(error, made[-1].run.folder)
    folder = build.run.folder
    rows = watched(folder)
    aligned = []
    for rise in rises(rows):
        progress("which data brought a head about", 0, 0)
        at = nearest(kept_steps(folder), rise)
        phase = phase_at(build, at)
        loaded = phase.fresh()
        if has_sites(loaded.model):
            checkpoint.load_weights(folder / "study" / "kept" / f"{at}.safetensors", loaded.model)
            data, objective = kinds(phase, loaded)
            aligned.append(record(rise, at, pushes(loaded.model, rise, data, objective, min(32, loaded.context))))
    return told(folder, rows, aligned, {"name": recipe.name, "kind": "specialist", "steps": offset_of(build, len(recipe.adapt)), "ended": ended})


def broken(error: UsageError, run: Path) -> str:
    """The reason of a run whose numbers broke down after something had been seen; any other error goes on its way."""
    if not isinstance(error.__cause__, FloatingPointError) or not (run / "study" / "rows.jsonl").is_file():
        raise error
    return str(error.__cause__)


def watched(run: Path) -> list[dict[str, Any]]:
    """The rows of a study, in order. Raises UsageError where the run was trained unwatched."""
    path = run / "study" / "rows.jsonl"
    rows = sorted(read_jsonl(path), key=lambda row: row["step"]) if path.is_file() else []
    if not rows:
        fix = "study it in a folder of its own (--runs OTHER), or leave --resume away"
        raise UsageError(f"the run {run.name} was trained before anybody watched: there are no rows of observers", fix=fix, where=str(path))
    return rows


def kept_steps(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in (run / "study" / "kept").glob("*.safetensors"))


def offset_of(build: Build, number: int) -> int:
    """Steps of the phases before this one, as they were planned when they were watched."""
    path = build.run.path("study", "phases.json")
    steps = read_json(path) if path.is_file() else {}
    return sum(int(steps.get(str(earlier), 0)) for earlier in range(number))


def note_steps(build: Build, number: int, steps: int) -> None:
    """Keeps how many steps a phase has."""
    path = build.run.path("study", "phases.json")
    write_json(path, {**(read_json(path) if path.is_file() else {}), str(number): steps})


def phase_at(build: Build, step: int) -> Phase:
    """The phase that a step over all phases belongs to."""
    return [phase for phase in phases(build) if offset_of(build, phase.number) < step][-1]


def kinds(phase: Phase, loaded: Loaded) -> tuple[dict[str, list[Batch]], Objective]:
    """Training rows by label (one kind where they have no label), and the phase's objective."""
    rows, labels = phase.rows("train"), phase.build.task.labels
    collated = partial(collate, rows, pad=loaded.tokenizer.pad_token_id, language_model=phase.language_model)
    micro = min(phase.spec.microbatch_tokens, phase.spec.batch_tokens)
    chosen = {"train": np.arange(len(rows))}
    if labels and rows.labels is not None and not phase.language_model:
        marks_NC = rows.labels > 0.5 if rows.labels.ndim == 2 else rows.labels[:, None] == np.arange(len(labels))
        chosen = {str(label): np.flatnonzero(marks_NC[:, at]) for at, label in enumerate(labels[:MOST_KINDS])}
    return {name: [collated(part) for part in by_length(each[:MOST_ROWS], rows.lengths, micro)] for name, each in chosen.items() if len(each)}, phase.objective(
        rows, loaded
    )


def told(run: Path, rows: Sequence[Mapping[str, Any]], aligned: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Studied:
    """Writes the story and the page."""
    last = int(rows[-1]["step"])
    events = [asdict(event) for event in story(rows)]
    missing = "" if last >= about["steps"] or about["ended"] else f"looks end at step {last} of {about['steps']}: the rest was trained unwatched"
    write_json(run / "study" / "story.json", {**about, "last_look": last, "missing": missing, "events": events, "heads": aligned})
    page.write(run / "study", rows)
    return Studied(run, str(about["ended"]), events)
