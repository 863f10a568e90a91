"""The full table of evidence: every method on many right answers of finished runs, with intervals; a build's own table has 20 answers.

    python bench/evidence.py runs/malware-triage-* runs/malware-flow-* --answers 200

Per method: overlap with the generator's truth (span IoU, precision, recall), share of distractors among the marked lines, answers lost without the lines
and kept with them alone, each less the same for random lines, twin consistency (where a twin's edit takes the answer away, a marked line holds the edit)
and, for the best one, the same on shuffled weights. Appends one line per run, method and slice to bench/results/evidence.jsonl; what is there already is
not done again. About 1.4 s per answer and method on one busy core for a model of 7M and 130 tokens; a channel takes as many passes more as it has questions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.explain.evidence import at_random
from knowhow.files import append_jsonl, read_json, read_jsonl
from knowhow.maths.statistics import bootstrap, weighted_mean
from knowhow.recipe import Recipe
from knowhow.stages.cases import Case, cases
from knowhow.stages.common import Build
from knowhow.stages.explain import FITTED, asked_by
from knowhow.stages.methods import SHUFFLED, Tried, compare, fit, methods_of, try_method
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


def sliced(tried: Tried, right: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """The row of all answers, and that of each slice where there are several."""
    slices = sorted({case.example.slice or "" for case in right})
    yield row(tried, right) | {"slice": "all"}
    for name in slices if len(slices) > 1 else ():
        here = [at for at, case in enumerate(right) if (case.example.slice or "") == name]
        known = [at for at, case in enumerate(right) if case.truth_U.any()]
        overlaps = tuple(found for at, found in zip(known, tried.overlaps, strict=True) if at in set(here))
        part = replace(tried, checked=tuple(tried.checked[at] for at in here), overlaps=overlaps)
        yield row(part, [right[at] for at in here]) | {"slice": name}


def rows(folder: Path, answers: int, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    build = Build(Recipe.model_validate(read_json(folder / "recipe.json")), Run(folder), folder, told)
    asked, seed, begun = asked_by(build), build.recipe.seed, time.monotonic()
    right, fitted = list(cases(asked, build, "test", answers)), list(cases(asked, build, "valid", 5 * FITTED))
    about = {"run": folder.name, "macro_f1": round(score(build), 4), "only": list(only)}
    if only:
        methods = methods_of(asked) | {"random": at_random(seed)}
        for name in only:
            tried = try_method(name, methods[name], asked, right, fit(methods[name], asked, fitted, seed)[0], seed)
            yield from (about | one for one in sliced(tried, right))
    else:
        compared = compare(asked, fitted, right, seed, told)
        for tried in compared.tried:
            yield from (about | one | {"best": tried.name == compared.best.name} for one in sliced(tried, right))
        yield about | row(compared.shuffled, right[:SHUFFLED]) | {"method": f"{compared.best.name}, shuffled weights", "best": False, "slice": "all"}
    print(f"\n{folder.name}: {len(right)} answers, {time.monotonic() - begun:.0f} s", flush=True)


def score(build: Build) -> float:
    """Macro-F1 of the specialist on the test rows: of what share of answers the table speaks."""
    results = read_json(build.run.path("evaluate", "results.json"))
    return float(next(one["value"] for one in results if (one["model"], one["slice"], one["metric"]) == ("specialist", "all", "macro_f1")))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--answers", type=int, default=200)
    arguments.add_argument("--only", nargs="*", default=[], help="methods, such as occlusion random")
    asked = arguments.parse_args()
    done = {(one["run"], one["asked"], tuple(one.get("only", ()))) for one in read_jsonl(RESULTS)} if RESULTS.is_file() else set()
    left = [folder for folder in asked.runs if (folder.name, asked.answers, tuple(asked.only)) not in done]
    print(f"{len(left)} runs, about {len(left) * asked.answers * (len(asked.only) or 5) * 1.4 / 60:.0f} minutes on one core", flush=True)
    for folder in left:
        for found in list(rows(folder, asked.answers, asked.only)):
            append_jsonl(RESULTS, found | {"asked": asked.answers})
            print(
                {key: found[key] for key in ("method", "slice", "answers", "iou", "necessity_minus_random", "twins", "distractors") if key in found}, flush=True
            )


if __name__ == "__main__":
    main()
