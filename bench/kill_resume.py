"""`kill -9` at random moments of a build, then `--resume`: the same specialist every time, and at most one unit of work done twice.

    python bench/kill_resume.py                    # 30 kills of a build on a tiny random twin, about 15 minutes
    python bench/kill_resume.py --recipe recipes/malware-triage.yaml --kills 3

Appends one line per kill to bench/results/kill_resume.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from knowhow.files import append_jsonl, read_json, read_jsonl
from knowhow.model import toys

RESULTS = Path(__file__).parent / "results" / "kill_resume.jsonl"
TINY = {
    "schema_version": 1,
    "name": "tiny",
    "task": {"kind": "classify", "many": True},
    "base": {"model": "base", "vocabulary": {"extend": True, "pattern": "[A-Za-z]+"}},
    "data": {"generate": {"domain": "malware", "options": {"tier": "O"}, "train": 300, "valid": 60, "test": 120}, "canaries": 2},
    "adapt": [{"objective": "lm", "steps": 12, "checkpoint_every": 4}, {"steps": 40, "lr": [1e-3, 3e-3], "checkpoint_every": 5, "evaluate_every": 10}],
    "evaluate": {"draws": 200},
}


def tiny_recipe(folder: Path) -> Path:
    """A recipe on a tiny random Llama twin, both in `folder`."""
    toys.twin("llama", folder / "base", vocab=600)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def build(recipe: Path, runs: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "knowhow", "build", str(recipe), "--runs", str(runs), "--json", "--yes", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_of(output: str) -> list[tuple[str, int]]:
    """(what, step) of every progress line of the training phases."""
    rows = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return [(str(row["what"]).split(", loss")[0], int(row["done"])) for row in rows if str(row.get("what", "")).startswith("phase ")]


def digest_of(runs: Path) -> str:
    run = next(runs.glob("*/run.json")).parent
    return str(read_json(run / "package" / "specialist" / "knowhow.json")["digest"])


def one_kill(recipe: Path, seconds: float, every: int) -> dict[str, object]:
    """Kill one build after `seconds`, resume it to the end; what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        first = build(recipe, runs)
        try:
            out, _ = first.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            first.send_signal(signal.SIGKILL)
            out, _ = first.communicate()
        begun = any(runs.glob("*/run.json"))
        second = build(recipe, runs, *(["--resume"] if begun else []))
        again, errors = second.communicate()
        if second.returncode:
            raise RuntimeError(f"resume failed with {second.returncode}: {errors[-2000:]}")
        before, after = dict(steps_of(out)), {}
        for what, step in steps_of(again):
            after.setdefault(what, step)
        redone = max((before[what] - after[what] + 1 for what in before.keys() & after.keys()), default=0)
        log = list(read_jsonl(next(runs.glob("*/log.jsonl"))))
        sealed = [row["stage"] for row in log if row["event"] == "sealed"]
        twice = [stage for stage in set(sealed) if sealed.count(stage) > 1]
        return {"killed_after": round(seconds, 2), "sha256": digest_of(runs), "steps_redone": redone, "limit": every, "stages_twice": twice}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--recipe", type=Path)
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = asked.recipe or tiny_recipe(Path(folder))
        every = max(phase.get("checkpoint_every", 50) for phase in yaml.safe_load(recipe.read_text())["adapt"])
        with tempfile.TemporaryDirectory() as runs:
            clock = time.monotonic()
            whole = build(recipe, Path(runs))
            _, errors = whole.communicate()
            if whole.returncode:
                raise SystemExit(errors)
            seconds, expected = time.monotonic() - clock, digest_of(Path(runs))
        print(f"one build takes {seconds:.0f} s: {asked.kills} kills will take about {asked.kills * 1.3 * seconds / 60:.0f} minutes", flush=True)
        moments = random.Random(asked.seed)
        for _ in range(asked.kills):
            row = one_kill(recipe, moments.uniform(0.02, 1.0) * seconds, every)
            good = row["sha256"] == expected and int(str(row["steps_redone"])) <= every and not row["stages_twice"]
            append_jsonl(RESULTS, {"recipe": recipe.stem, "same": row["sha256"] == expected, "good": good, **row})
            print(row, "good" if good else "BAD", flush=True)


if __name__ == "__main__":
    main()
