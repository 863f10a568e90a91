"""Does a base know which variable belongs where, before it has seen a label? Twins of tier F differ in two variables that have changed places.

    python bench/flow_surprise.py [MODEL] [--pairs 200]

NLL of those two variables in the twin that completes the behaviour against the one that does not. About a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from knowhow.domains import find_domain
from knowhow.files import append_jsonl
from knowhow.model import load


def losses(model: torch.nn.Module, rows: list[list[int]]) -> list[np.ndarray]:
    """−log p of each token given those before it, in nats (the first: 0)."""
    made = []
    with torch.inference_mode():
        for row in rows:
            logp_TV = model(input_ids=torch.tensor([row])).logits[0, :-1].float().log_softmax(-1)
            made.append(np.concatenate([[0.0], -logp_TV.gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy()]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="seedling")
    parser.add_argument("--pairs", type=int, default=200)
    asked = parser.parse_args()
    loaded = load.load(asked.model)
    made = list(find_domain("malware").generate({"tier": "F"}, seed=555, n=2 * asked.pairs))
    rows = loaded.tokenizer([example.prompt for example in made], add_special_tokens=False).input_ids
    nll = losses(loaded.model, rows)
    real, decoy = [], []
    for first in range(0, len(made), 2):
        good = first if set(made[first].label) > set(made[first + 1].label) else first + 1
        bad = good ^ 1
        if len(rows[good]) == len(rows[bad]):
            places = np.flatnonzero(np.array(rows[good]) != np.array(rows[bad]))
            real.append(nll[good][places].sum())
            decoy.append(nll[bad][places].sum())
    auc = mannwhitneyu(decoy, real).statistic / (len(real) * len(decoy))
    row = {
        "model": asked.model,
        "sha256": loaded.ref.sha256[:12],
        "pairs": len(real),
        "real": round(float(np.mean(real)), 3),
        "decoy": round(float(np.mean(decoy)), 3),
    }
    row |= {"auc": round(float(auc), 4), "pairs_right": round(float(np.mean(np.array(real) < np.array(decoy))), 4)}
    append_jsonl(Path(__file__).parent / "results" / "flow_surprise.jsonl", row)
    print(row)


if __name__ == "__main__":
    main()
