"""Looking inside and patching, against TransformerLens 4 and nnsight: `python bench/patching.py [--rounds 3] [--tiny]`.

Each peer lives in an environment of its own (.bench/<peer>, made here when missing); all sides load the same folders of random weights, in a process of
their own each, on one thread.
- Parity: on small models (GPT-2; Llama with grouped keys), float32, values at the sites, logits under two patches, a whole sweep and gradient ×
  difference at the stream agree with each peer to 1e-5.
- Speed: exact patching of the stream before every layer at every position (metric: difference of two logits at the last position), of GPT-2's shape with
  12 layers and 16 tokens, and with 4 layers and 128 tokens. The sides take turns; results must agree to 1e-4. TransformerLens runs its own
  get_act_patch_resid_pre; nnsight the loop of its documentation, under the fastest of SETTINGS (each tried on some patches first). A shape whose round
  takes longer than LONG seconds is run once.
- Taps: a forward pass of a model that was tapped before, and one with the stream captured at all layers, against a model never tapped.
Every measurement is a line of bench/results/patching.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "patching"), str(HERE / "speed")]

import shapes  # noqa: E402
from quiet import Others  # noqa: E402

from knowhow.files import append_jsonl, write_json  # noqa: E402

ROOT, RESULTS = HERE.parent, HERE / "results" / "patching.jsonl"
PEERS: Mapping[str, Sequence[str]] = {"transformer_lens": ("torch==2.13.0", "transformer-lens==4.*"), "nnsight": ("torch==2.13.0", "nnsight==0.8.*")}
SIDES = {"ours": "ours.py", "transformer_lens": "theirs_tl.py", "nnsight": "theirs_nnsight.py"}
PARITY, SWEEP = 1e-5, 1e-4
SETTINGS = {
    "a patch a pass": (1, False), "a patch a pass, last logits": (1, True), "16 patches a pass": (16, False), "16 patches a pass, last logits": (16, True),
    "32 patches a pass, last logits": (32, True),
}  # fmt: skip
"""Of nnsight: patches that share one pass, and whether the head is asked for the last position alone."""
PROBED, LONG = 32, 180.0
MINUTES = {"parity": 3.0, "12x16": 1.5, "4x128": 8.0, "probe": 2.0, "taps": 1.0}
"""On one core of about 60 GFLOP/s; of a shape, for one round of all sides."""

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a try of everything in some minutes, on small shapes; nothing is recorded")
    asked = parser.parse_args()
    versions = {"ours": _versions(sys.executable, "knowhow")} | {name: environment(name, packages) for name, packages in PEERS.items()}
    minutes = 5.0 if asked.tiny else MINUTES["parity"] + asked.rounds * MINUTES["12x16"] + MINUTES["4x128"] + MINUTES["probe"] + MINUTES["taps"]
    print(f"{versions}\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; about {minutes:.0f} minutes in all", flush=True)
    log = Log(not asked.tiny, {"began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), "versions": versions})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for shape in shapes.PARITY:
            check_equal(shape, work / shape.name, shapes.KINDS, PARITY, log)
        for shape in [replace(shape, layers=2, small=True) for shape in shapes.SPEED] if asked.tiny else shapes.SPEED:
            shape = replace(shape, patch=shapes.Patch(1, 7, 3)) if asked.tiny else shape
            check_equal(shape, work / shape.name, (), SWEEP, log)
            race(shape, work / shape.name, asked.rounds, log)
        taps(replace(shapes.TAPS, small=asked.tiny, tokens=64 if asked.tiny else 128), work / "taps", log)
    return 0


class Log:
    """Prints, and keeps rows with what they have in common."""

    def __init__(self, recorded: bool, common: Row) -> None:
        self.recorded, self.common = recorded, common

    def keep(self, row: Row) -> None:
        if self.recorded:
            append_jsonl(RESULTS, row | self.common | {"load": os.getloadavg()[0]})


def environment(name: str, packages: Sequence[str]) -> Row:
    """Versions in a peer's environment, which is made where it is missing."""
    folder = ROOT / ".bench" / name
    python = folder / "bin" / "python"
    try:
        return _versions(str(python), name)
    except (RuntimeError, FileNotFoundError):
        print(f"making the peer's environment in {folder.relative_to(ROOT)} (some minutes, once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin/pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *packages], check=True)
    return _versions(str(python), name)


def _versions(python: str, package: str) -> Row:
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in ('torch', 'transformers', '{package}')}}))"
    found: Row = json.loads(_run([python, "-c", code]))
    return found


def check_equal(shape: shapes.Shape, folder: Path, kinds: Sequence[str], tolerance: float, log: Log) -> None:
    """Values of all sides on one model. Raises AssertionError where a peer differs by more than `tolerance`."""
    asked = shapes.write(shape, folder) | {"task": "parity", "kinds": kinds}
    found: dict[str, dict[str, np.ndarray]] = {}
    for side in SIDES:
        side_asked = asked | {"output": str(folder / f"{side}.npz")}
        run(side, side_asked, folder)
        with np.load(folder / f"{side}.npz") as held:
            found[side] = {name: held[name] for name in held.files}
    for peer in PEERS:
        worst = shapes.largest(found["ours"], found[peer])
        size = max(float(np.abs(value).max()) for value in found["ours"].values())
        log.keep({"kind": "parity", "shape": shape.name, "peer": peer, "largest_difference": worst, "largest_value": size, "tolerance": tolerance})
        at = max(worst, key=lambda kind: worst[kind])
        print(f"{shape.name:30} {peer:17} differs by at most {worst[at]:.1e} (at {at}; values to {size:.1f}), of {tolerance:.0e}", flush=True)
        assert worst[at] <= tolerance, f"{peer} differs: {worst}"


def race(shape: shapes.Shape, folder: Path, rounds: int, log: Log) -> None:
    """Whole sweeps, the sides taking turns; prints ratios to ours."""
    asked = json.loads((folder / "asked.json").read_text())
    tried = run("nnsight", asked | {"task": "probe", "settings": SETTINGS, "cells": PROBED}, folder)["seconds"]
    setting = min(tried, key=lambda name: tried[name])
    log.keep({"kind": "probe", "shape": shape.name, "peer": "nnsight", "seconds_per_patch": tried, "cells": PROBED, "taken": setting})
    print(f"{shape.name:30} nnsight, seconds a patch: {', '.join(f'{name} {value:.3f}' for name, value in tried.items())}", flush=True)
    made: dict[str, list[Row]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in sorted(SIDES, key=lambda side: (list(SIDES).index(side) + turn) % len(SIDES)):
            others = Others(children=True)
            row = run(side, asked | {"task": "speed", "setting": SETTINGS[setting]}, folder) | {"others": others.share()}
            made[side].append(row)
            kept = {key: value for key, value in row.items() if key != "result"}
            label = setting if side == "nnsight" else ""
            log.keep({"kind": "speed", "shape": shape.name, "round": turn, "side": side, "setting": label} | kept)
            took = f"{row['seconds']:8.2f} s ({row['cpu_seconds']:.2f} s of processor time), {row['peak_bytes'] / 1e6:7.1f} MB"
            print(f"  {turn} {side:17} {took}, others took {row['others']:.0%}", flush=True)
        if sum(held[0]["seconds"] for held in made.values()) > LONG:
            break
    report(shape, made, setting, log)


def report(shape: shapes.Shape, made: Mapping[str, Sequence[Row]], setting: str, log: Log) -> None:
    """Ratios of a peer to ours: by the clock, of processor time (what counts on a machine that others use too), of peak memory."""
    reference = np.array(made["ours"][0]["result"])
    for peer in PEERS:
        worst = max(float(np.abs(np.array(row["result"]) - reference).max()) for row in made[peer])
        assert worst <= SWEEP, f"{peer}'s sweep differs by {worst:.2e}"
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(made[peer], made["ours"], strict=True)]
        processor = [theirs["cpu_seconds"] / ours["cpu_seconds"] for theirs, ours in zip(made[peer], made["ours"], strict=True)]
        memory = statistics.median(row["peak_bytes"] for row in made[peer]) / max(1, statistics.median(row["peak_bytes"] for row in made["ours"]))
        mean, busy = (math.exp(statistics.fmean(math.log(ratio) for ratio in each)) for each in (ratios, processor))
        row = {"ratio": mean, "least": min(ratios), "most": max(ratios), "rounds": len(ratios), "memory_ratio": memory, "largest_difference": worst}
        row |= {"cpu_ratio": busy, "cpu_least": min(processor), "cpu_most": max(processor)}
        log.keep({"kind": "ratio", "shape": shape.name, "peer": peer, "setting": setting if peer == "nnsight" else ""} | row)
        span = f"[{min(ratios):.2f}, {max(ratios):.2f}], {busy:.2f}× processor time [{min(processor):.2f}, {max(processor):.2f}], {len(ratios)} rounds"
        print(f"{shape.name:30} {peer:17} takes {mean:.2f}× our time {span}, {memory:.2f}× our memory; sweeps agree to {worst:.1e}", flush=True)


def taps(shape: shapes.Shape, folder: Path, log: Log) -> None:
    others = Others(children=True)
    seconds = run("ours", shapes.write(shape, folder) | {"task": "taps"}, folder)["seconds"]
    best = {name: min(values) for name, values in seconds.items()}
    ratios = {name: value / best["bare"] for name, value in best.items() if name != "bare"}
    log.keep({"kind": "taps", "shape": shape.name, "seconds": seconds, "ratios": ratios, "others": others.share()})
    shares = ", ".join(f"{name} {value:.3f}×" for name, value in ratios.items())
    print(f"{shape.name:30} bare {best['bare']:.3f} s of processor time; {shares} of it", flush=True)


def run(side: str, asked: Mapping[str, Any], folder: Path) -> Row:
    """One task of a side in a process of its own."""
    python = sys.executable if side == "ours" else str(ROOT / ".bench" / side / "bin" / "python")
    write_json(folder / f"{side}.json", dict(asked))
    made: Row = json.loads(_run([python, str(HERE / "patching" / SIDES[side]), str(folder / f"{side}.json")]).splitlines()[-1])
    return made


def _run(command: Sequence[str]) -> str:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
