"""Stage adapt: the recipe's phases through the one loop; learning rates are swept on validation; every moment can be resumed.

phase-K/ holds length.json (steps, sealed once), one folder per learning rate while it trains, and model/ when it is done.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from knowhow.errors import UsageError
from knowhow.files import read_json, write_atomic, write_json
from knowhow.loop import checkpoint
from knowhow.model import adapters, load
from knowhow.stages.common import Build
from knowhow.stages.phase import Phase, phases
from knowhow.stages.training import length, train_once


def work(build: Build, folder: Path) -> None:
    """Leaves choices.json, trace.jsonl and per phase model/ (adapter/ too, for LoRA; kept/ where weights were kept)."""
    todo = phases(build)
    for phase in todo:
        if not (phase.folder / "done.json").is_file():
            run_phase(phase)
        _tidy(phase.folder)
    write_atomic(folder / "trace.jsonl", b"".join((phase.folder / "trace.jsonl").read_bytes() for phase in todo))
    write_json(folder / "choices.json", [read_json(phase.folder / "done.json") for phase in todo])


def run_phase(phase: Phase) -> None:
    """Train at every learning rate of the phase and keep the best by validation."""
    rows = phase.rows("train")
    decided = length(phase, rows)
    results = []
    for at, lr in enumerate(decided["lrs"]):
        here = phase.folder / f"lr-{at}"
        if not (here / "result.json").is_file():
            train_once(phase, rows, decided["steps"], lr, here, alone=len(decided["lrs"]) == 1)
        results.append(read_json(here / "result.json"))
    scored = [at for at, result in enumerate(results) if result["score"] is not None]
    if not scored:
        tried = ", ".join(f"{lr:g}" for lr in decided["lrs"])
        raise UsageError(f"training diverged at every learning rate ({tried})", fix="try lower ones", where=f"adapt.{phase.number}.lr")
    best = max(scored, key=lambda at: (results[at]["score"], -at))
    loaded = phase.fresh()
    checkpoint.load_weights(phase.folder / f"lr-{best}" / "best.safetensors", loaded.model)
    loaded.model.eval()
    if phase.spec.method == "lora":
        adapters.save_adapter(loaded, phase.folder / "adapter")
        loaded = adapters.merge(loaded)
    load.save(loaded, phase.folder / "model")
    shutil.copyfile(phase.folder / f"lr-{best}" / "trace.jsonl", phase.folder / "trace.jsonl")
    choice = {"phase": phase.number, "objective": phase.spec.objective, "lr": decided["lrs"][best], "steps": decided["steps"], "tried": results}
    if (phase.folder / f"lr-{best}" / "kept").is_dir():
        (phase.folder / f"lr-{best}" / "kept").rename(phase.folder / "kept")
    write_json(phase.folder / "done.json", choice)


def _tidy(folder: Path) -> None:
    """Removes what a learning rate left; a kill may have come between."""
    for left in folder.glob("lr-*"):
        shutil.rmtree(left)
