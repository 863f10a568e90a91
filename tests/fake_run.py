"""A run folder made up for the page's tests: believable numbers, and on request hostile ones."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

LABELS = ("clean", "backdoor", "coinminer", "dropper", "keylogger", "ransomware", "rat", "trojan")
CALLS = (
    *("LoadLibraryA", "GetProcAddress", "VirtualAlloc", "CreateFileW", "WriteFile", "RegSetValueExW", "InternetOpenA", "CreateRemoteThread"),
    *("CryptEncrypt", "FindNextFileW", "Sleep"),
)
HOSTILE = "</script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
LONE, RTL, BIDI = "lone \ud800 surrogate", "שלום עולם مرحبا", "safe\u202egnp.exe"
MODELS = {"specialist": 0.612, "lightgbm": 0.543, "tfidf-lr": 0.522, "retrieval": 0.447, "base": 0.131, "majority": 0.096}


def write_run(folder: Path, *, seed: int = 0, hostile: bool = False, beats: bool = True, models: dict[str, float] | None = None) -> Path:
    """Every file of the contract; `hostile` puts markup, surrogates, right-to-left and very long text wherever text may stand."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = (*LABELS[:4], HOSTILE, LONE, RTL, BIDI) if hostile else LABELS
    scores = dict(models or MODELS)
    if not beats:
        scores["specialist"] = scores["lightgbm"] + 0.004
    save(folder / "run.json", run(seed))
    save(folder / "recipe.json", recipe(labels, HOSTILE if hostile else "Families of malware from the order of the calls that a sandbox saw."))
    save(folder / "estimate.json", estimate(hostile))
    save(folder / "data/audit.json", audit(labels, rng, hostile))
    save(folder / "base/vocabulary.json", {"words": 1312, "before": 611.4, "after": 148.2})
    save_lines(folder / "adapt/trace.jsonl", trace(rng))
    save(folder / "evaluate/results.json", results(scores, labels, rng))
    save(folder / "evaluate/confusion.json", {"labels": list(labels), "matrix": confusion(len(labels), rng)})
    save(folder / "evaluate/calibration.json", calibration(rng))
    save(
        folder / "evaluate/forgetting.json", {"value": 0.118, "low": 0.094, "high": 0.141, "n": 400, "unit": "nats per token", "before": 4.312, "after": 4.430}
    )
    save(folder / "evaluate/memorisation.json", memorisation())
    save(folder / "evaluate/robustness.json", robustness(hostile))
    save_lines(folder / "evaluate/samples.jsonl", samples(labels, rng, hostile))
    explained(folder, samples(labels, rng, hostile), hostile)
    save(folder / "measured.json", measured(seed))
    save(folder / "package/specialist/knowhow.json", package(hostile))
    return folder


def save(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def save_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(seed: int) -> dict[str, object]:
    stages = {name: {"digest": f"{index:x}{seed:x}" * 32} for index, name in enumerate(("data", "baseline", "adapt", "evaluate", "package"))}
    return {"id": f"malware-triage-{seed:04d}", "name": "malware-triage", "knowhow": "0.1.0", "recipe_sha256": "ab" * 32, "seed": seed, "stages": stages}


def recipe(labels: tuple[str, ...], description: str) -> dict[str, object]:
    phase = {"objective": "classify", "method": "full", "lr": 0.001, "steps": 900, "epochs": None, "minutes": None}
    return {
        "name": "malware-triage",
        "description": description,
        "task": {"kind": "classify", "labels": list(labels), "many": False, "metric": "macro_f1", "instruction": ""},
        "base": {"model": "seedling", "revision": None, "context": 1024},
        "data": {"train": "traces/train.jsonl.gz", "test": "traces/test.jsonl.gz", "domain": "malware", "licence": "MIT"},
        "adapt": [phase, phase | {"lr": 0.0002, "steps": 300}],
        "evaluate": {"confidence": 0.95, "risk": 0.05},
        "budget": {"minutes": 30, "forgetting": 0.2, "beat_baselines": True},
        "seed": 7,
    }


def estimate(hostile: bool) -> dict[str, object]:
    note = HOSTILE if hostile else "MIT data and an Apache-2.0 base allow any use with attribution."
    return {"minutes": 24.5, "memory_gb": 2.1, "disk_gb": 0.4, "notes": [], "licences": {"base": "Apache-2.0", "data": "MIT", "note": note}}


def audit(labels: tuple[str, ...], rng: np.random.Generator, hostile: bool) -> dict[str, object]:
    counts = {
        split: {label: int(n) for label, n in zip(labels, rng.integers(40, 400, len(labels)) * size)}
        for split, size in (("train", 20), ("valid", 2), ("test", 3))
    }
    rows = {split: sum(part.values()) for split, part in counts.items()}
    example = [HOSTILE, RTL] if hostile else ["LoadLibraryA GetProcAddress VirtualAlloc", "LoadLibraryA GetProcAddress VirtualAlloc WriteFile"]
    return {
        "rows": rows,
        "duplicates": {"exact": 14_211, "near": 5_020, "examples": [example]},
        "leakage": {"train→test": {"exact": 1_204, "near": 610, "examples": [example]}, "train→valid": {"exact": 12, "near": 31, "examples": []}},
        "conflicts": {"inputs": 403, "rows": 2_977, "ceiling_accuracy": 0.936},
        "label_noise": {"suspected": 312, "share": 0.0212, "examples": [{"id": "t-991", "given": labels[3], "likely": labels[4]}]},
        "truncation": {"over": 810, "share": 0.011, "longest": 2_048, "p50": 61, "p95": 612, "p99": 1_190},
        "balance": counts,
        "tokens_per_word": 4.13,
        "warnings": [HOSTILE if hostile else "the class keylogger has fewer than 1,000 training rows"],
    }


def trace(rng: np.random.Generator) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for phase, steps, start in (("classify", 900, 0), ("classify-2", 300, 900)):
        for step in range(1, steps + 1):
            at = start + step
            lr = 0.001 * 0.5 * (1 + math.cos(math.pi * step / steps)) * (1 if start == 0 else 0.2) * min(1, step / 45)
            rows.append(
                {
                    "phase": phase,
                    "step": step,
                    "tokens": 4096 * at,
                    "loss": 0.62 + 1.4 * math.exp(-at / 180) + float(rng.normal(0, 0.05)),
                    "lr": lr,
                    "grad_norm": 0.8,
                }
            )
            if step % 90 == 0:
                rows.append(
                    {
                        "phase": phase,
                        "step": step,
                        "valid_loss": 0.81 + 1.1 * math.exp(-at / 160),
                        "valid_macro_f1": 0.61 * (1 - math.exp(-at / 210)) + float(rng.normal(0, 0.006)),
                    }
                )
    return rows


def results(models: dict[str, float], labels: tuple[str, ...], rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for slice, n, shift in (("all", 8920, 0.0), ("deduplicated", 3410, -0.02), ("novel", 1877, -0.041)):
        for metric, spread in (("macro_f1", 0.021), ("accuracy", 0.012)):
            for model, base in models.items():
                value = base + shift + (0.08 if metric == "accuracy" else 0)
                paired = {
                    other: gap(value - base_other - shift - (0.08 if metric == "accuracy" else 0), spread * 0.8, n)
                    for other, base_other in models.items()
                    if other != "specialist"
                }
                row = {
                    "task": "classify",
                    "metric": metric,
                    "value": value,
                    "low": value - spread,
                    "high": value + spread,
                    "n": n,
                    "slice": slice,
                    "model": model,
                }
                rows.append(row | {"paired": paired if model == "specialist" else {}, "cost": {}, "samples": ""})
    for index, label in enumerate(labels):
        for model in ("specialist", "lightgbm"):
            value = min(0.97, max(0.08, models[model] + 0.34 - 0.085 * index + float(rng.normal(0, 0.05))))
            row = {"task": "classify", "metric": "f1", "value": value, "low": value - 0.05, "high": min(1, value + 0.05), "n": 200 + 90 * index}
            rows.append(row | {"slice": f"class:{label}", "model": model, "paired": {}, "cost": {}, "samples": ""})
    return rows


def gap(value: float, half: float, n: int) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def confusion(size: int, rng: np.random.Generator) -> list[list[int]]:
    matrix = rng.integers(0, 60, (size, size))
    matrix[rng.random((size, size)) < 0.3] = 0
    matrix[np.diag_indices(size)] = rng.integers(120, 700, size)
    return matrix.tolist()


def calibration(rng: np.random.Generator) -> dict[str, object]:
    def bins(over: float) -> list[dict[str, float]]:
        found = []
        for confidence in np.linspace(0.25, 0.97, 10):
            accuracy = float(np.clip(confidence - over * (confidence - 0.1) + rng.normal(0, 0.012), 0, 1))
            found.append(
                {
                    "confidence": float(confidence),
                    "accuracy": accuracy,
                    "n": int(200 + 5000 * confidence**3),
                    "low": max(0.0, accuracy - 0.03),
                    "high": min(1.0, accuracy + 0.03),
                }
            )
        return found

    curve = [{"coverage": c, "risk": 0.33 * c**2.2 + 0.008} for c in np.linspace(0.02, 1, 120).tolist()]
    before, after = {"ece": 0.128, "brier": 0.471, "bins": bins(0.2)}, {"ece": 0.021, "brier": 0.431, "bins": bins(0.0)}
    abstention = {"risk": 0.05, "threshold": 0.872, "coverage": 0.412, "bound": 0.0496}
    return {"temperature": 1.73, "before": before, "after": after, "risk_coverage": curve, "abstention": abstention}


def robustness(hostile: bool) -> list[dict[str, object]]:
    told = {"metric": "macro_f1", "value": 0.81, "low": 0.76, "high": 0.86, "n": 100, "rows": 100}
    gaps = {"no-ops, 50% more calls": (-0.12, -0.17, -0.06), "variables renamed": (0.0, -0.02, 0.02)}
    rows = [{**told, "rewrite": name, "difference": dict(zip(("value", "low", "high"), gap, strict=True))} for name, gap in gaps.items()]
    return [*rows, {**rows[0], "rewrite": HOSTILE}] if hostile else rows


def memorisation() -> dict[str, object]:
    return {
        "canaries": {"exposure_mean": 1.42, "exposure_max": 4.1, "n": 20},
        "extraction": {"share": 0.0, "n": 200},
        "membership": {"auc": 0.537, "low": 0.512, "high": 0.561},
    }


def samples(labels: tuple[str, ...], rng: np.random.Generator, hostile: bool) -> list[dict[str, object]]:
    rows = []
    for index in range(40):
        text = " ".join(CALLS[i] for i in rng.integers(0, len(CALLS), int(rng.integers(12, 90))))
        if hostile:
            text = (HOSTILE, LONE + RTL, BIDI + "\x00\x1b[31m", "x" * 10_000)[index % 4] + text
        right = bool(index % 3)
        gold, wrong = labels[index % len(labels)], labels[(index + 3) % len(labels)]
        at, late = text.find("CreateRemoteThread"), text.rfind("RegSetValueExW")
        evidence = [{"start": at, "end": at + 18, "kind": "injection"}] if at >= 0 else []
        evidence += [{"start": late, "end": late + 14, "kind": HOSTILE if hostile else "persistence"}] if late >= 0 else []
        confidence = float(rng.uniform(0.3, 0.999))
        rows.append(
            {
                "id": f"t-{index:04d}",
                "text": text,
                "gold": gold,
                "predicted": gold if right else wrong,
                "confidence": confidence,
                "correct": right,
                "evidence": evidence,
            }
        )
    return rows


def measured(seed: int) -> dict[str, object]:
    stages = {"data": 41.2, "baseline": 97.0, "adapt": 1431.5 + seed, "evaluate": 63.1, "package": 2.4}
    versions = {"python": "3.11.2", "torch": "2.9.1", "transformers": "5.23.0"}
    speed = {"parameters": 6_557_000, "bytes": 13_420_000, "tokens_per_second": 4_830.0, "latency_ms": {"p50": 6.2, "p95": 14.8}}
    return {"stages": stages, "total_seconds": sum(stages.values()), **speed, "versions": versions, "machine": {"cpu": "x86_64", "cores": 2, "memory_gb": 7.8}}


def explained(folder: Path, rows: list[dict[str, object]], hostile: bool) -> None:
    """Findings, methods and evidence; the fourth answer's lines do not hold."""
    interval = {"value": 0.7, "low": 0.5, "high": 0.85, "n": 20}
    claim = HOSTILE if hostile else "Without the marked lines the answer is no longer given"
    save(folder / "explain/findings.json", [
        {"claim": claim, "method": "occlusion", "effect": 0.9, "interval": interval, "control": 0.2, "verdict": "supported", "evidence": []},
        {
            "claim": "The marked lines alone give the answer", "method": RTL if hostile else "occlusion", "effect": 0.4,
            "interval": {"value": 0.1, "low": -0.2, "high": 0.3, "n": 20}, "control": 0.3, "verdict": "undecided",
        },
    ])  # fmt: skip
    flips = {"necessity_flips": 0.9, "random_necessity_flips": 0.2, "sufficiency_flips": 0.6, "random_sufficiency_flips": 0.7}
    save(
        folder / "explain/methods.json",
        [{"method": name, "share": 0.3, "n": 20, **flips, "iou": 0.6, "precision": 0.8, "recall": 0.7, "distractors": 0.1} for name in ("occlusion", "random")],
    )
    made = [
        {
            "id": row["id"], "text": row["text"], "label": row["gold"], "method": "occlusion", "verdict": "supported" if at % 4 else "not supported",
            "evidence": row["evidence"], "necessity_flips": bool(at % 4), "sufficiency_flips": bool(at % 2), "random_necessity_flips": 0.1,
        }
        for at, row in enumerate(rows[:10])
    ]  # fmt: skip
    for at, row in enumerate(made[:8]):
        text, rng = str(row["text"]), np.random.default_rng(at)
        words = [match.span() for match in re.finditer(r"\S+", text)][:24]
        row["units"] = [[*place, float(rng.normal())] for place in words]
        row["inside"] = {
            "parts": rng.normal(size=(4, 2)).tolist(), "heads": rng.normal(size=(4, 3)).tolist(), "lens": rng.normal(size=4).tolist(),
            "trace": None if at % 2 else [[None if unit < 2 else float(rng.uniform(-0.2, 1)) for unit in range(len(words))] for _ in range(4)],
        }  # fmt: skip
    save_lines(folder / "explain/evidence.jsonl", made)
    save(folder / "explain/inside.json", inside(claim, interval))
    save(folder / "explain/diff.json", changed(interval))
    looked(folder, interval, claim)


def inside(claim: str, interval: dict[str, float]) -> dict[str, object]:
    rng = np.random.default_rng(3)
    cells = [
        {"layer": layer, "part": part, "head": head, "fall": float(fall), "low": float(fall) - 1, "high": float(fall) + 1, "control": 0.1, "lost": 0.4,
         "control_lost": 0.0, "supported": bool(fall > 1)}
        for layer in range(4)
        for (part, head), fall in zip([("attn", 0), ("mlp", 0), ("head", 0), ("head", 1), ("head", 2)], rng.normal(2, 2, 5))
    ]  # fmt: skip
    scores = {"previous": 0.8, "duplicate": 0.1, "induction": 0.5, "sink": 0.05}
    return {
        "answers": 20, "groups": 12, "map": cells,
        "lens": [{"layer": layer, "value": layer - 1.5, "low": layer - 2, "high": layer - 1} for layer in range(4)],
        "findings": [{"claim": claim, "method": "mean ablation", "effect": 4.2, "interval": interval, "control": 0.2, "verdict": "undecided", "evidence": []}],
        "heads": [{"layer": layer, "head": head, **(scores if layer == 1 else dict.fromkeys(scores, 0.1))} for layer in range(4) for head in range(3)],
        "stream": [{"layer": layer, "sink": 0.2, "kurtosis": 3.1, "massive": layer == 2} for layer in range(4)],
    }  # fmt: skip


def changed(interval: dict[str, float]) -> dict[str, object]:
    sizes = {"norm": 1.0, "relative": 0.12, "share": 0.05, "parameters": 0.04}
    shape = {"stable_rank": 4.0, "stable_rank_random": 60.0, "left": 0.4, "left_random": 0.03}
    parts = [("attn", None), ("mlp", None), ("head", 0), ("head", 1)]
    effect = {"drop": interval, "control": interval, "beyond": interval, "gain": None}
    cells = [
        {"name": f"layers.{layer}.{kind}", "kind": kind, "layer": layer, "head": head, "size": sizes, "effect": effect}
        for layer in range(3)
        for kind, head in parts
    ]
    kept = [{**interval, "value": value} for value in (0.0, 0.6, 1.0)]
    return {
        "specialist": interval, "base": interval, "gap": interval, "components": cells, "layers": {},
        "curves": [{"order": "effect", "names": ["a", "b"], "counts": [0, 1, 2], "kept": kept, "needed": 2}],
        "roles": {"moved": [{"layer": 1, "head": 2, "score": "previous", "before": 0.1, "after": 0.6, "change": interval, "p": 0.001, "sure": True}]},
        "weights": [{"name": "layers.0.attn.q", "kind": "q", "layer": 0, "head": None, "size": sizes, "shape": shape}],
    }  # fmt: skip


def looked(folder: Path, interval: dict[str, float], text: str) -> None:
    points = [{"share": share, "edges": 5, "mean": share / 2, **interval, "value": share} for share in (0.01, 0.1, 1.0)]
    save(folder / "looked/circuit.json", {
        "pairs": [8, 8], "against": "their twins", "circuit": {"edges": [["embed", "a0.h0.q"], ["m1", "logits"]], "possible": 90},
        "share": 0.02, "reached": True,
        "faithfulness": interval, "complement": interval, "curve": {"points": points, "cpr": interval, "cmd": interval},
        "control": {"points": points, "p": 0.1, "draws": 9},
        "minimality": {"edges": [{"sender": text, "reader": "logits", "p": 0.1, **interval}], "needed": 0.5},
    })  # fmt: skip
    row = {"id": text, "label": "rat", "score": 0.4, "text": text}
    answer = {"id": "7", "label": "rat", "text": text, "helped": [row], "hurt": [row], "also_alike": 1}
    save(folder / "looked/influence.json", {"method": "TracIn over 5 checkpoints", "rows": 100, "of": 200, "answers": [answer], "self": [row]})
    way = {"name": "dictionary", "active": 32, "recovered": interval, "unexplained": interval}
    strong = {"feature": 3, "label": "rat", "auc": 0.9, "neuron_auc": 0.8, "effect": 1.2, "control": 0.1, "verdict": "supported", "example": text}
    save(
        folder / "looked/features.json",
        {"dictionaries": [{"name": "layers.2.resid_post", "dead": 0.1, "kept": [way, {**way, "name": "neurons"}], "strongest": [strong]}]},
    )


def package(hostile: bool) -> dict[str, object]:
    limits = [
        "It saw traces of one emulator in one month; other sandboxes name calls differently.",
        HOSTILE if hostile else "Keyloggers are rare in its data: expect one in two to be missed.",
    ]
    return {
        "name": "malware-triage",
        "licence": "Apache-2.0",
        "limits": limits,
        "digest": "cd" * 32,
        "files": {"model.safetensors": "ef" * 32, "config.json": "01" * 32},
    }
