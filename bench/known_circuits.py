"""Edges of compiled programs found again: AUC of exact ablation, of attribution and of a control, pooled over programs and for the worst one.

    python bench/known_circuits.py DATA/ground_truth/tracr [--seeds 3]

Residuals are compared with the compiler's own first. Appends one record per seed to bench/results/known_circuits.jsonl. About two minutes of one core a seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from knowhow.explain.recovery import METHODS, recover
from knowhow.files import append_jsonl
from knowhow.model import compiled
from knowhow.model.taps import tap

RESULTS = Path(__file__).parent / "results" / "known_circuits.jsonl"


@torch.no_grad()
def residual_error(program: compiled.Compiled) -> float:
    """Largest difference of our captured stream and component outputs from the compiler's own, on its test input."""
    with tap(program.model, "layers.*.resid_mid", "layers.*.resid_post", "layers.*.attn.out", "layers.*.mlp.out") as seen:
        program.model(input_ids=program.tokens([program.test_input]))
    kinds = (("_residual_", "resid_mid", "resid_post"), ("_layer_out_", "attn.out", "mlp.out"))
    pairs = [(f"{key}{2 * layer + half}", f"layers.{layer}.{sites[half]}") for layer in range(_depth(program)) for key, *sites in kinds for half in (0, 1)]
    return max(float(np.abs(seen[site].numpy()[..., : program.shown[key].shape[-1]] - program.shown[key]).max()) for key, site in pairs)


def _depth(program: compiled.Compiled) -> int:
    return sum(name.startswith("_attn_logits_") for name in program.shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    programs = [compiled.read(asked.folder, name) for name in compiled.programs(asked.folder)]
    errors = {program.name: residual_error(program) for program in programs}
    print(f"{len(programs)} programs, residuals differ by at most {max(errors.values()):.1e} from the compiler's")
    for seed in range(asked.seeds):
        found = [recover(program, seed=seed) for program in programs]
        scored = [one for one in found if 0 < one.truth.sum() < len(one.truth)]
        row: dict[str, object] = {
            "seed": seed,
            "programs": len(scored),
            "edges": int(sum(len(one.truth) for one in scored)),
            "residual_error": max(errors.values()),
        }
        for method in METHODS:
            aucs = {one.program: float(roc_auc_score(one.truth, one.scores[method])) for one in scored}
            pooled = float(roc_auc_score(np.concatenate([one.truth for one in scored]), np.concatenate([one.scores[method] for one in scored])))
            worst = min(aucs, key=lambda name: aucs[name])
            row[method] = {"pooled": round(pooled, 4), "worst": round(aucs[worst], 4), "worst_program": worst}
            print(f"seed {seed}  {method:12} pooled {pooled:.3f}  worst {aucs[worst]:.3f} ({worst})", flush=True)
        append_jsonl(RESULTS, row)


if __name__ == "__main__":
    main()
