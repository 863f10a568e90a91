"""`knowhow build`: the flow on one screen. Each stage writes one folder, sealed by digest; a killed build goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow import __version__
from knowhow.errors import GateError
from knowhow.files import digest, digest_file, digest_folder, read_json, write_json
from knowhow.protocols import Progress
from knowhow.recipe import Recipe
from knowhow.stages import adapt, base, baseline, data, diagnose, evaluate, explain, finish, plan, readout, verify
from knowhow.stages.common import Build, Watch
from knowhow.workspace import Run, nothing_from_nothing, open_run

STAGES: tuple[tuple[str, Callable[[Build, Path], None]], ...] = (
    ("data", data.work),
    ("base", base.work),
    ("diagnose", diagnose.work),
    ("plan", plan.work),
    ("baseline", baseline.work),
    ("adapt", adapt.work),
    ("readout", readout.work),
    ("evaluate", evaluate.work),
    ("explain", explain.work),
    ("verify", verify.work),
    ("package", finish.package),
    ("report", finish.report),
)
SAYS = {
    "data": ("task", "data", "base", "seed"),
    "base": ("base", "seed"),
    "diagnose": ("adapt", "seed"),
    "plan": ("adapt", "budget", "seed"),
    "baseline": ("evaluate", "seed"),
    "adapt": ("adapt", "base", "seed"),
    "readout": ("readout",),
    "evaluate": ("evaluate", "seed"),
    "explain": ("explain", "seed"),
    "verify": ("adapt", "seed"),
    "package": ("name", "description", "package"),
    "report": (),
}
"""Which parts of the recipe each stage depends on; what it needs of earlier stages comes in by their digests."""


def _nothing(stage: str, folder: Path) -> None:
    """For whom nothing need be told."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What goes along with a flow: the estimate that was made, `told(stage, the run's folder)` called after each stage, who watches training besides."""

    estimate: dict[str, Any] | None = None
    told: Callable[[str, Path], None] = _nothing
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """`failed`: gates of the recipe's budget that were not met, as sentences; `sha256`: digest of the specialist's folder."""

    run: Run
    specialist: Path
    report: Path
    sha256: str
    failed: tuple[str, ...]


def build(
    recipe: Recipe, *, runs: Path, resume: bool, start_from: Path | None, progress: Progress, root: Path, beside: Beside = Beside()
) -> RunResult:  # fmt: skip
    """Run every stage. Raises GateError at the very end, with everything written, when a gate of the recipe's budget was not met."""
    at = flow(recipe, runs=runs, resume=resume, start_from=start_from, progress=progress, root=root, beside=beside)
    manifest = read_json(at.run.path("package", "specialist", "knowhow.json"))
    failed = tuple(evaluate.gate(at))
    result = RunResult(at.run, at.run.path("package", "specialist"), at.run.path("report", "report.html"), str(manifest["digest"]), failed)
    if failed:
        raise GateError("; ".join(failed), fix=f"the specialist and its report are in {at.run.folder}", where="budget")
    return result


def flow(
    recipe: Recipe, *, runs: Path, resume: bool | None, start_from: Path | None, progress: Progress, root: Path,
    until: str = "report", beside: Beside = Beside(),
) -> Build:  # fmt: skip
    """The stages up to `until`, each sealed; what a later build of the same recipe goes on from. `resume` None: where there is such a run."""
    asked = recipe.model_dump(mode="json")
    asked_digest = digest({"recipe": asked, "from": start_from and digest_folder(start_from)})
    run = open_run(runs, recipe.name, asked_digest, resume=resume)
    wanted = STAGES[: 1 + [name for name, _ in STAGES].index(until)]
    with run.lease(), nothing_from_nothing(run.folder, lambda: any(run.sealed(stage) for stage, _ in STAGES)):
        write_json(run.path("recipe.json"), asked)
        if beside.estimate is not None:
            write_json(run.path("estimate.json"), beside.estimate)
        later = {} if until == "report" else _later(run, {name for name, _ in wanted})
        about = {"id": run.folder.name, "name": recipe.name, "knowhow": __version__, "recipe_sha256": asked_digest, "seed": recipe.seed, "stages": later}
        write_json(run.path("run.json"), about)
        at = Build(recipe, run, root, progress, start_from, beside.watch)
        run.measure(root=str(root.resolve()), start_from=start_from and str(start_from.resolve()))
        earlier: dict[str, str] = {}
        for number, (name, work) in enumerate(wanted):
            progress(f"stage {name}", number, len(wanted))
            inputs = {"earlier": dict(earlier), "files": _files(at) if name == "data" else {}, **{part: asked[part] for part in SAYS[name]}}
            earlier[name] = run.stage(name, inputs, lambda folder, work=work: work(at, folder))
            write_json(run.path("run.json"), {**about, "stages": {**{stage: {"digest": value} for stage, value in earlier.items()}, **later}})
            beside.told(name, run.folder)
        progress(f"stage {until}", len(wanted), len(wanted))
        finish.measured(at)
    return at


def _later(run: Run, wanted: set[str]) -> dict[str, Any]:
    """Stages behind the wanted ones that an earlier build of this run has finished."""
    path = run.path("run.json")
    return {name: value for name, value in read_json(path)["stages"].items() if name not in wanted} if path.is_file() else {}


def _files(at: Build) -> dict[str, str]:
    """Digests of the recipe's own data files: other bytes are other data."""
    spec = at.recipe.data
    found = {}
    for where in (spec.train, spec.valid, spec.test):
        if where is not None and (path := at.root / where).exists():
            found[where] = digest_file(path) if path.is_file() else digest(digest_folder(path))
    return found
