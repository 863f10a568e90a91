"""The full table of evidence: every method on many right answers of finished runs, with intervals; a build's own table has 20 answers.

    python bench/evidence.py runs/malware-triage-* runs/malware-flow-* --answers 200

Per method: overlap with the generator's truth (span IoU, precision, recall), share of distractors among the marked lines, answers lost without the lines
and kept with them alone, each less the same for random lines, twin consistency (where a twin's edit takes the answer away, a marked line holds the edit)
and, for the best one, the same on shuffled weights. Appends one line per run, method and slice to bench/results/evidence.jsonl; what is there already is
not done again. About 0.4 s per answer and method on one core for a model of 7M and 200 tokens; a channel takes as many passes more as it has questions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.files import append_jsonl, read_json, read_jsonl
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.recipe import Recipe
from knowhow.stages.cases import Case, cases
from knowhow.stages.common import Build
from knowhow.stages.explain import FITTED, asked_by
from knowhow.stages.methods import SHUFFLED, Tried, compare
from knowhow.workspace import Run

RESULTS = Path(__file__).parent / "results" / "evidence.jsonl"


def told(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {total}".ljust(60), end="", file=sys.stderr, flush=True)


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95% interval over answers."""
    given_N = np.asarray(values, np.float64)
    found = bootstrap(weighted_mean(given_N), np.arange(len(given_N)), seed=0, vectorised=True)
    return [round(value, 4) for value in (found.value, found.low, found.high)]


def row(tried: Tried, right: Sequence[Case]) -> dict[str, Any]:
    known = [case for case in right if case.truth_U.any()]
    twins = [float(case.edited_U[list(one.chosen)].any()) for case, one in zip(right, tried.checked) if case.edited_U.any()]
    chance = [min(float(case.edited_U.mean()) * len(one.chosen), 1.0) for case, one in zip(right, tried.checked) if case.edited_U.any()]
    made: dict[str, Any] = {
        "method": tried.name,
        "share": tried.share,
        "answers": len(tried.checked),
        "lines": float(np.mean([len(one.chosen) for one in tried.checked])),
    }
    for name in ("iou", "precision", "recall", "distractors") if known else ():
        made[name] = interval([one[name] for one in tried.overlaps])
    made["necessity"] = interval([one.necessity_flips for one in tried.checked])
    made["necessity_minus_random"] = interval([one.necessity_flips - one.random_necessity_flips for one in tried.checked])
    made["sufficiency"] = interval([1.0 - one.sufficiency_flips for one in tried.checked])
    made["sufficiency_minus_random"] = interval([one.random_sufficiency_flips - one.sufficiency_flips for one in tried.checked])
    return made | ({"twins": interval(twins), "twins_by_chance": interval(chance)} if twins else {})


def rows(folder: Path, answers: int) -> Iterator[dict[str, Any]]:
    build = Build(Recipe.model_validate(read_json(folder / "recipe.json")), Run(folder), folder, told)
    asked = asked_by(build)
    begun = time.monotonic()
    right = list(cases(asked, build, "test", answers))
    compared = compare(asked, list(cases(asked, build, "valid", 5 * FITTED)), right, build.recipe.seed, told)
    about = {"run": folder.name, "slices": sorted({case.example.slice or "" for case in right}), "macro_f1": round(score(build), 4)}
    for tried in compared.tried:
        yield about | row(tried, right) | {"best": tried.name == compared.best.name}
    yield about | row(compared.shuffled, right[:SHUFFLED]) | {"method": f"{compared.best.name}, shuffled weights", "best": False}
    print(f"\n{folder.name}: {len(right)} answers, {time.monotonic() - begun:.0f} s", flush=True)


def score(build: Build) -> float:
    """Macro-F1 of the specialist on the test rows: of what share of answers the table speaks."""
    results = read_json(build.run.path("evaluate", "results.json"))
    return float(next(one["value"] for one in results if (one["model"], one["slice"], one["metric"]) == ("specialist", "all", "macro_f1")))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--answers", type=int, default=200)
    asked = arguments.parse_args()
    done = {(one["run"], one["asked"]) for one in read_jsonl(RESULTS)} if RESULTS.is_file() else set()
    left = [folder for folder in asked.runs if (folder.name, asked.answers) not in done]
    print(f"{len(left)} runs, about {len(left) * asked.answers * 5 * 0.4 / 60:.0f} minutes on one core", flush=True)
    for folder in left:
        for found in list(rows(folder, asked.answers)):
            append_jsonl(RESULTS, found | {"asked": asked.answers})
            print({key: found[key] for key in ("method", "answers", "iou", "necessity_minus_random", "twins", "distractors") if key in found}, flush=True)


if __name__ == "__main__":
    main()
