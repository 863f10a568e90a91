"""Every law of the registry judged: its experiments and its controls at several seeds, a line per law and seed in bench/results/laws.jsonl.

    python bench/laws.py --seeds 0-4                 # figures that gates and tolerances are fixed on
    python bench/laws.py --final                     # the judgement, on seeds 100-104: once
    python bench/laws.py one-step sinks --jobs 2     # some laws, two processes
    python bench/laws.py --pages                     # docs/laws and src/knowhow/laws/judged.json from the lines

Says first what it will cost, by earlier lines. Lines that are there with the same digest (experiments/source.py) are not run again. A law is judged once:
--final refuses one that has final lines of another digest unless told why (--again REASON, kept in the line), and one whose source is not committed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from knowhow import laws
from knowhow.experiments import run
from knowhow.experiments.source import digest_of, rests_on
from knowhow.files import append_jsonl, read_jsonl, write_atomic, write_json
from knowhow.laws.answers import ANSWERS
from knowhow.laws.judged import FILE, FRESH, summary
from knowhow.laws.law import QUESTIONS, Law
from knowhow.laws.rows import of_law, of_score, plain
from knowhow.report.law_figures import svg
from knowhow.report.laws import index, page, points

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "laws.jsonl"
DOCS = ROOT / "docs" / "laws"
Line = Mapping[str, Any]


def checked(name: str, seed: int) -> dict[str, Any]:
    """A law at one seed, as a line: scores of its own experiments (numbered from 1) and of its controls; seconds of one core, and on the clock."""
    law = laws.law(name)
    clock, busy = time.monotonic(), time.process_time()
    found = run.check(law, seed)
    own = [of_score(one, number) for number, outcome in enumerate(found.outcomes, start=1) for one in run.scores(law, outcome)]
    controls = {control: [of_score(one) for one in scored] for control, scored in found.controls.items()}
    seconds = {"seconds": round(time.process_time() - busy, 1), "clock": round(time.monotonic() - clock, 1)}
    return {"law": name, "seed": seed, **seconds, "scored": own, "controls": controls}


def judged_lines(lines: Sequence[Line], name: str) -> list[Line]:
    """Final lines of a law's latest judgement, a line a seed."""
    final = [line for line in lines if line["law"] == name and line["final"]]
    return list({line["seed"]: line for line in final if line["digest"] == final[-1]["digest"]}.values())


def waiting(names: Sequence[str], seeds: Sequence[int], final: bool, lines: Sequence[Line]) -> list[tuple[str, int, str]]:
    """(law, seed, digest) that are still to be run, the dearest laws first."""
    done = {(line["law"], line["seed"], line["digest"]) for line in lines if line["final"] == final}
    digests = {name: digest_of(laws.law(name)) for name in names}
    jobs = [(name, seed, digests[name]) for name in names for seed in seeds if (name, seed, digests[name]) not in done]
    return sorted(jobs, key=lambda job: -(cost(job[0], lines) or 0.0))


def cost(name: str, lines: Sequence[Line]) -> float | None:
    """Seconds of one core that a law takes at one seed, by earlier lines."""
    known = [line["seconds"] for line in lines if line["law"] == name]
    return statistics.median(known) if known else None


def refuse(names: Sequence[str], lines: Sequence[Line], again: str) -> None:
    """What may not be judged: a law whose source is not committed, or one that was judged in another form and nobody says why again."""
    for name in names:
        modules = {f"src/{module.replace('.', '/')}.py" for module, _ in rests_on(laws.law(name))}
        paths = sorted(path for path in modules if (ROOT / path).is_file())
        changed = subprocess.run(["git", "status", "--porcelain", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        if changed.strip():
            raise SystemExit(f"{name} is not judged: commit it first, with all that it rests on\n{changed}")
        before = {line["digest"] for line in judged_lines(lines, name)} - {digest_of(laws.law(name))}
        if before and not again:
            raise SystemExit(f'{name} was judged already, and its source has changed since: a law is judged once (--again "REASON" keeps the reason)')


def judge(names: Sequence[str], seeds: Sequence[int], *, final: bool, again: str, jobs: int) -> int:
    """Runs what is missing; returns how many runs failed or were dropped."""
    lines = list(read_jsonl(RESULTS))
    if final:
        refuse(names, lines, again)
    todo = waiting(names, seeds, final, lines)
    known = [found for name, _, _ in todo if (found := cost(name, lines)) is not None]
    unknown = sorted({name for name, _, _ in todo if cost(name, lines) is None})
    told = f"about {sum(known) / 60 / jobs:.0f} minutes on {jobs} idle core(s)" + (f", and {', '.join(unknown)}, which never ran" if unknown else "")
    print(f"{len(todo)} of {len(names) * len(seeds)} runs are to be done: {told}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    failed = 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waited = {pool.submit(checked, name, seed): (name, seed, digest) for name, seed, digest in todo}
        for number, future in enumerate(as_completed(waited), start=1):
            name, seed, digest = waited[future]
            error = future.exception()
            if error is not None or digest_of(laws.law(name)) != digest:
                failed += 1
                print(f"{number}/{len(todo)} {name} seed {seed}: {'its source changed while it ran: dropped' if error is None else repr(error)}", flush=True)
                continue
            line = {"final": final, "digest": digest, "commit": commit, **({"again": again} if again else {}), **future.result()}
            append_jsonl(RESULTS, line)
            said = summary(name, [line])
            print(f"{number}/{len(todo)} {name} seed {seed}: {said['verdict']}, {said['because']} ({line['seconds']:.0f} s)", flush=True)
    return failed


def show(names: Sequence[str], seeds: Sequence[int], final: bool) -> None:
    """The verdict of each law over the seeds that there are."""
    lines = list(read_jsonl(RESULTS))
    for name in names:
        own = current(lines, name, final=final, seeds=seeds)
        said = summary(name, own) if own else {"verdict": "no line", "because": "", "residual": None}
        print(f"{name:28} {len(own)} seeds  {said['verdict']:14} |residual| {said['residual']}  {said['because']}")


def current(lines: Sequence[Line], name: str, *, final: bool, seeds: Sequence[int] | None = None) -> list[Line]:
    """The lines of a law as its source is now, one a seed."""
    digest = digest_of(laws.law(name))
    own = [line for line in lines if (line["law"], line["final"], line["digest"]) == (name, final, digest)]
    return list({line["seed"]: line for line in own if seeds is None or line["seed"] in seeds}.values())


def pages() -> None:
    """docs/laws and judged.json, from the registry and the lines alone."""
    lines = list(read_jsonl(RESULTS))
    told, judged = [], {}
    for law in laws.every_law():
        final, tuning = judged_lines(lines, law.name), current(lines, law.name, final=False)
        if {line["seed"] for line in final} >= set(FRESH):
            own = summary(law.name, final)
            reason = next((line["again"] for line in final if "again" in line), "")
            judged[law.name] = {**own, "changed": final[-1]["digest"] != digest_of(law), **({"again": reason} if reason else {})}
        final, tuning = [readable(line) for line in final], [readable(line) for line in tuning]
        drawn = svg(points(final if law.name in judged else tuning))
        if drawn:
            write_atomic(DOCS / f"{law.name}.svg", drawn)
        figure = f"{law.name}.svg" if drawn else ""
        told.append(of_law(law))
        write_atomic(DOCS / f"{law.name}.md", page(told[-1], judged.get(law.name), final, tuning, figure))
    write_atomic(DOCS / "README.md", index(told, judged, QUESTIONS, ANSWERS))
    write_json(FILE, judged)
    kept = {f"{law['law']}.{ending}" for law in told for ending in ("md", "svg")} | {"README.md"}
    for stale in (path for path in DOCS.iterdir() if path.name not in kept):
        stale.unlink()
    print(f"{len(told)} pages in {DOCS.relative_to(ROOT)}, {len(judged)} laws judged")


def readable(line: Line) -> Line:
    """A line whose quantities have the same names at every seed."""
    scored = [{**row, "quantity": plain(row["quantity"])} for row in line["scored"]]
    return {
        **line,
        "scored": scored,
        "controls": {name: [{**row, "quantity": plain(row["quantity"])} for row in rows] for name, rows in line["controls"].items()},
    }


def seeds_of(text: str) -> list[int]:
    ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    return [seed for low, *high in ends for seed in range(low, (high or [low])[0] + 1)]


def chosen(names: Sequence[str]) -> list[str]:
    """The laws that were named, or all; those without experiments are scored in builds alone."""
    found: list[Law] = [laws.law(name) for name in names] or laws.every_law()
    for law in found:
        if not law.experiments:
            print(f"{law.name}: no experiment of its own (builds score it)")
    return [law.name for law in found if law.experiments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laws", nargs="*", metavar="LAW", help="laws by name; left out: all")
    parser.add_argument("--seeds", type=seeds_of, help="such as 0-4 or 0,3; left out: 0-4, with --final 100-104")
    parser.add_argument("--final", action="store_true", help="the judgement, on fresh seeds")
    parser.add_argument("--again", default="", metavar="REASON", help="why laws that were judged in another form are judged again")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--pages", action="store_true", help="write docs/laws and judged.json from the lines, and run nothing")
    asked = parser.parse_args()
    if asked.pages:
        return pages()
    seeds = asked.seeds or (list(FRESH) if asked.final else list(range(5)))
    if any((seed in FRESH) != asked.final for seed in seeds):
        raise SystemExit(f"seeds {FRESH[0]} to {FRESH[-1]} are for --final, and no others are")
    names = chosen(asked.laws)
    failed = judge(names, seeds, final=asked.final, again=asked.again, jobs=asked.jobs)
    show(names, seeds, asked.final)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
