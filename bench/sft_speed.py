"""Supervised tokens per second against TRL's SFTTrainer: `python bench/sft_speed.py [--rounds 5] [--rows 512]`.

Same 7M Llama, same rows (lognormal lengths 16 to 512), same bf16 autocast, same machine, one process a run, the sides taking turns. TRL lives in an
environment of its own (.bench/trl, made here) and is held against twice: with its defaults, and with the fastest of the settings in SETTINGS (each is
tried first). Before any speed, both train 20 steps in float32 on the same batches, and the curves must agree to 1e-3.
Timed: an epoch without its first tenth and without steps that compiled something. Conditions: `all`, every token is a target, which is the harder one
for us; `completions`, 30 to 70% of a row is a prompt. Every run is a line of bench/results/sft_speed.jsonl; a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "speed"))

import rate as rates  # noqa: E402
import rows as data  # noqa: E402
from quiet import Others  # noqa: E402

from knowhow.files import append_jsonl, digest, read_jsonl, write_json  # noqa: E402

ROOT = HERE.parent
PEER, WORK, RESULTS = ROOT / ".bench" / "trl", ROOT / ".bench" / "sft", HERE / "results" / "sft_speed.jsonl"
PACKAGES = ("torch==2.13.0", "trl==1.16.*")
BARS = {"defaults": 4.0, "best": 1.15}
EQUAL_STEPS, TOLERANCE = 20, 1e-3
OURS = {"in_order": False, "compile": False, "lr": 2e-5, "precision": "bf16", "batch_tokens": 4096, "microbatch_tokens": 4096}
PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
LENGTHS = PLAIN | {"train_sampling_strategy": "group_by_length"}
PACKED = PLAIN | {"packing": True, "max_length": 512}
COMPILED = {"torch_compile": True}
SINGLE = PACKED | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "padded, 8 rows": PLAIN,
    "by length, 8 rows": LENGTHS,
    "by length, 32 rows": LENGTHS | {"per_device_train_batch_size": 32},
    "by length, 32 rows, compiled": LENGTHS | COMPILED | {"per_device_train_batch_size": 32},
    "packed, block mask, 8 × 512": PACKED,
    "packed, block mask, 512 at a time": SINGLE,
    "packed, block mask, 512 at a time, compiled": SINGLE | COMPILED,
    "packed, block mask, 1024 at a time, compiled": SINGLE | COMPILED | {"max_length": 1024, "gradient_accumulation_steps": 4},
}
CUT_SHARE = 0.1
PREFIX = os.environ.get("BENCH_PREFIX", "")
"""Put before the command of every run, ours and theirs alike: `nice -n -5`, `chrt -f 1`, `taskset -c 0`."""
TRIES, DISTURBED = 3, 0.1
"""A run during which others took more than this share of the machine is made again, up to so many times."""

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--conditions", default="all,completions")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of rest between two runs, for whoever shares the machine")
    asked = parser.parse_args()
    conditions = asked.conditions.split(",")
    make_environment()
    tokens = {name: data.write_rows(WORK / name / "rows.npz", asked.rows, completions=name == "completions") for name in ("all", *conditions)}
    parameters = data.write_model(WORK / "model")
    versions = json.loads(_run([str(PEER / "bin/python"), "-c", VERSIONS]))
    plan = digest([asked.rows, OURS, {name: dict(given) for name, given in SETTINGS.items()}, versions])[:12]
    announce(tokens, parameters, asked.rounds, plan)
    check_equal(plan)
    best = sweep(plan, "all", asked.pause)
    sides = {"ours": None, "defaults": {}, "best": SETTINGS[best]}
    for turn, name in itertools.product(range(asked.rounds), conditions):
        for side in sorted(sides, key=lambda side: (list(sides).index(side) + turn) % 3):
            row = {"kind": "run", "plan": plan, "condition": name, "round": turn, "side": side, "setting": best if side == "best" else side}
            once(row, sides[side], asked.pause)
    return report(plan, conditions, asked.rounds, best, versions)


VERSIONS = "import json, torch, transformers, trl; print(json.dumps({m.__name__: m.__version__ for m in (torch, transformers, trl)}))"


def make_environment() -> None:
    if not (PEER / "ready").is_file():
        print(f"making the peer's environment in {PEER.relative_to(ROOT)} (some minutes, once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        subprocess.run([str(PEER / "bin/pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *PACKAGES], check=True)
        (PEER / "ready").touch()


def announce(tokens: Mapping[str, int], parameters: int, rounds: int, plan: str) -> None:
    """What it will cost, from this machine's rate and what each side is expected to reach of it."""
    speed = rates.matmul_rate()
    epoch = {side: max(tokens.values()) * 6 * parameters / speed / share for side, share in (("ours", 0.5), ("defaults", 0.1), ("best", 0.25))}
    done = sum(row["plan"] == plan and row["kind"] == "run" for row in read_jsonl(RESULTS))
    turns = max(0, rounds * len(tokens) * 3 - done) / 3
    tried = any(row["plan"] == plan and row["kind"] == "sweep" for row in read_jsonl(RESULTS))
    seconds = turns * (sum(epoch.values()) + 3 * 20 + 60) + (0 if tried else len(SETTINGS) * (epoch["best"] * 1.5 + 50) + 120)
    print(f"{parameters / 1e6:.1f}M parameters, {tokens} supervised tokens, bf16 products at {speed / 1e9:.0f} GFLOP/s; load {os.getloadavg()[0]:.1f}")
    print(f"about {seconds / 60:.0f} minutes in all, of which nothing is lost when it is stopped", flush=True)


def check_equal(plan: str) -> None:
    """Both sides in float32 on the same batches in the same order, with the same optimizer and rates; raises AssertionError when the curves part."""
    if any(row["kind"] == "equal" and row["plan"] == plan for row in read_jsonl(RESULTS)):
        return
    ours, theirs = equal_curves(WORK / "equal", WORK / "model", 1e-3)
    worst = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    assert ours["tokens"] == theirs["tokens"], "the two sides counted different targets"
    assert len(ours["losses"]) == EQUAL_STEPS, f"{len(ours['losses'])} steps"
    assert worst <= TOLERANCE, f"the curves differ by {worst:.2e}: {ours['losses']} against {theirs['losses']}"
    append_jsonl(RESULTS, {"kind": "equal", "plan": plan, "steps": EQUAL_STEPS, "largest_difference": worst, "losses": ours["losses"]})
    print(f"float32, same batches: {EQUAL_STEPS} losses from {ours['losses'][0]:.4f} to {ours['losses'][-1]:.4f} agree to {worst:.1e}", flush=True)


def equal_curves(folder: Path, model: Path, lr: float) -> tuple[Row, Row]:
    data.write_rows(folder / "rows.npz", 16 * EQUAL_STEPS, completions=True, seed=1)
    common = {"rows": str(folder / "rows.npz"), "model": str(model)}
    in_order = {"bf16": False, "logging_steps": 1, "train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    config = PLAIN | in_order | {"learning_rate": lr}
    ours = _side("ours", OURS | common | {"in_order": True, "steps": EQUAL_STEPS, "precision": "float32", "lr": lr}, folder)
    theirs = _side("theirs", common | {"config": config, "check_leak": False, "output": str(folder / "out")}, folder)
    return ours, theirs


def sweep(plan: str, condition: str, pause: float) -> str:
    """Tries every setting of the peer once; the name of the fastest."""
    for name, config in SETTINGS.items():
        once({"kind": "sweep", "plan": plan, "condition": condition, "round": 0, "side": "best", "setting": name}, config, pause)
    tried = {row["setting"]: row.get("tokens_per_second", 0.0) for row in read_jsonl(RESULTS) if row["kind"] == "sweep" and row["plan"] == plan}
    return max(tried, key=lambda name: tried[name])


def once(row: Row, config: Mapping[str, Any] | None, pause: float) -> None:
    """One run in a process of its own, unless its line is there; a setting that fails in the sweep is a line too."""
    keys = ("kind", "plan", "condition", "round", "side", "setting")
    if any(all(seen.get(key) == row[key] for key in keys) for seen in read_jsonl(RESULTS)):
        return
    folder = WORK / row["condition"]
    common = {"rows": str(folder / "rows.npz"), "model": str(WORK / "model")}
    asked = OURS | common
    if config is not None:
        asked = common | {"config": {"num_train_epochs": 1, **config}, "check_leak": row["kind"] == "sweep", "output": str(folder / "out")}
    for _ in range(TRIES):
        time.sleep(pause)
        others = Others(children=True)
        try:
            made = _side("ours" if config is None else "theirs", asked, folder)
            timed = measured(made)
        except RuntimeError as error:
            if row["kind"] == "run":
                raise
            append_jsonl(RESULTS, row | {"failed": str(error)[-300:]})
            return
        taken = others.share()
        if taken < DISTURBED:
            break
    append_jsonl(RESULTS, row | timed | {"rates": made["rates"], "threads": made["threads"], "others": taken, "leak": made.get("leak")})
    label = f"{row['kind']} {row['round']} {row['condition']:12} {row['setting']:46}"
    print(f"  {label} {timed['tokens_per_second']:7.0f} tokens/s, {taken:.0%} of the machine taken by others", flush=True)


def measured(made: Row) -> Row:
    """Targets and seconds after the first tenth of the targets, without steps that compiled."""
    compiled = made.get("compiled") or [False] * len(made["tokens"])
    reached = list(itertools.accumulate(made["tokens"]))
    kept = [at for at, (total, busy) in enumerate(zip(reached, compiled)) if total > CUT_SHARE * reached[-1] and not busy]
    if not kept:
        raise RuntimeError(f"all {len(compiled)} steps compiled something: give more rows")
    tokens, seconds = sum(made["tokens"][at] for at in kept), sum(made["seconds"][at] for at in kept)
    whole = {"epoch_tokens": reached[-1], "epoch_seconds": sum(made["seconds"])}
    return {"tokens": tokens, "seconds": seconds, "steps": len(kept), "tokens_per_second": tokens / seconds, **whole}


def report(plan: str, conditions: Sequence[str], rounds: int, best: str, versions: Mapping[str, str]) -> int:
    runs = [row for row in read_jsonl(RESULTS) if row["kind"] == "run" and row["plan"] == plan and row["round"] < rounds]
    missed = 0
    print(f"\n{versions}; best of the peer: {best}")
    print(f"{'condition':12} {'side':9} {'tokens/s':>9} {'GFLOP/s of bf16 products':>25}   ratio to ours, geometric mean [least, most]")
    for name, side in itertools.product(conditions, ("ours", "defaults", "best")):
        mine = {row["round"]: row for row in runs if row["condition"] == name and row["side"] == side}
        ours = {row["round"]: row for row in runs if row["condition"] == name and row["side"] == "ours"}
        ratios = [ours[turn]["tokens_per_second"] / mine[turn]["tokens_per_second"] for turn in mine]
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
        line = f"{name:12} {side:9} {statistics.median(row['tokens_per_second'] for row in mine.values()):9.0f} "
        line += f"{statistics.median(value for row in mine.values() for value in row['rates']) / 1e9:25.0f}"
        if side in BARS:
            missed += mean < BARS[side]
            line += f"   {mean:.2f}× [{min(ratios):.2f}, {max(ratios):.2f}], bar {BARS[side]}× {'met' if mean >= BARS[side] else 'MISSED'}"
        print(line)
    return 3 if missed else 0


def _side(side: str, asked: Mapping[str, Any], folder: Path) -> Row:
    python = sys.executable if side == "ours" else str(PEER / "bin/python")
    write_json(folder / f"{side}.json", dict(asked))
    made: Row = json.loads(_run([*shlex.split(PREFIX), python, str(HERE / "speed" / f"{side}.py"), str(folder / f"{side}.json")]).splitlines()[-1])
    return made


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
