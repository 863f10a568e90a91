"""A language model that reads the answer before the text: P(text | labels). Bayes' rule turns its likelihoods into an answer.

Such a generative classifier learns from every token of a text, not from its label's few bits, and compares what it expected with what came by the
likelihood itself, which a classifying head has to learn to do (Yogatama et al. 2017, arXiv 1703.01898; Min et al. 2022, arXiv 2108.04106, "noisy
channel"). It costs one pass per label (one label) or two (many). Shape letters: N examples, C labels, P prefix tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tokenizers import AddedToken

from knowhow.errors import UsageError
from knowhow.files import digest
from knowhow.model import infer
from knowhow.model.loaded import Loaded
from knowhow.model.vocabulary import grow, spelled
from knowhow.protocols import Progress

NO, YES, UNKNOWN = 0, 1, 2
_STATES = ("no", "yes", "unknown")
_SMALL = 0.02
"""Deviation of a new row, in those of the table: after the first norm only its direction counts, and a short row turns quickly."""
_LARGE = 60.0
"""Nats: a logit beyond it says nothing more, and its sigmoid is still no 0."""


def conditioned(loaded: Loaded, labels: Sequence[str], *, many: bool, seed: int = 0) -> Loaded:
    """`loaded` (a causal language model) with a control token per label, or three for many labels (no, yes, unknown), known to tokenizer and embedding.

    Tokens that the folder has already are kept as they are; rows of new ones are drawn from `seed`.
    `context` of the result is what is left for a text. Raises UsageError for an encoder and for labels that are the same once spelled as tokens."""
    if loaded.kind != "causal":
        fix = "take a causal base, or the objective classify"
        raise UsageError("objective channel with an encoder, which gives no likelihood of a text", allowed="a causal language model", fix=fix)
    names = [name for label in labels for name in _names(label, many)]
    if len(set(names)) != len(names):
        raise UsageError("labels that are the same once spelled as tokens", allowed="labels that differ in letters, digits, '.', '_', '+' or '-'")
    known = loaded.tokenizer.get_vocab()
    fresh = [name for name in names if name not in known]
    made = _extended(loaded, fresh, seed) if fresh else loaded
    return replace(made, head="channel", labels=tuple(labels), context=loaded.context - _before(len(labels), many) - 1)


def states(loaded: Loaded) -> torch.Tensor:
    """Token ids of the labels: C (one label) or C3 (many: no, yes, unknown)."""
    known = loaded.tokenizer.get_vocab()
    many = _names(loaded.labels[0], True)[0] in known
    ids = torch.tensor([[known[name] for name in _names(label, many)] for label in loaded.labels])
    return ids if many else ids[:, 0]


def prefixes(states: torch.Tensor, start: int) -> torch.Tensor:
    """What stands before a text for each question: CP (one label), or C2P (many labels: no, yes of each, all others unknown)."""
    count = len(states)
    if states.ndim == 1:
        return torch.stack([torch.full((count,), start), states], 1)
    asked_C2C = states[:, UNKNOWN].repeat(count, 2, 1)
    for label in range(count):
        asked_C2C[label, :, label] = states[label, :UNKNOWN]
    return torch.cat([torch.full((count, 2, 1), start), asked_C2C], 2)


def class_logits(
    loaded: Loaded,
    tokens: Sequence[Sequence[int]],
    *,
    only: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    precision: infer.Precision = "float32",
) -> np.ndarray:
    """NC float32 (of many labels `only` one: N1, at two passes). One label: log P(label, text) less the best one's; many: log P(text | yes) −
    log P(text | no), the other labels unknown. In nats, so of texts of hundreds of tokens mostly far from 0: fit a temperature and thresholds on
    validation before reading them as probabilities."""
    start = loaded.tokenizer.eos_token_id
    before = prefixes(states(loaded), start)
    plain = replace(loaded, head="lm", context=loaded.context + _before(len(loaded.labels), before.ndim == 3) + 1)
    wanted = before if only is None or before.ndim == 2 else before[only : only + 1]
    asked = wanted.flatten(0, -2).tolist()
    rows = [[*prefix, *row, start] for prefix in asked for row in tokens]
    starts = [1 if before.ndim == 2 else len(prefix) for prefix in asked for _ in tokens]
    nll, _ = infer.lm_nll(plain, rows, starts=starts, batch_tokens=batch_tokens, progress=progress and partial(_renamed, progress), precision=precision)
    nll_QN = nll.reshape(len(asked), len(tokens))
    if before.ndim == 2:
        return (nll_QN.min(0) - nll_QN).T.astype(np.float32)
    nll_C2N = nll_QN.reshape(len(wanted), 2, len(tokens))
    return np.clip(nll_C2N[:, NO] - nll_C2N[:, YES], -_LARGE, _LARGE).T.astype(np.float32)


def _renamed(progress: Progress, _: str, done: int, total: int) -> None:
    progress("classify", done, total)


def _before(labels: int, many: bool) -> int:
    return 1 + (labels if many else 1)


def _names(label: str, many: bool) -> list[str]:
    """Printable, and no text that a user's data is likely to hold (control tokens, so data cannot produce them)."""
    return [f"<|given:{spelled(label)}={state}|>" for state in _STATES] if many else [f"<|given:{spelled(label)}|>"]


def _extended(loaded: Loaded, names: Sequence[str], seed: int) -> Loaded:
    tokenizer, model = copy.deepcopy(loaded.tokenizer), copy.deepcopy(loaded.model)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(names))
    grow(model, max(ids) + 1)
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        spread = float(loaded.model.get_input_embeddings().weight.float().std())
        if last.weight.data_ptr() != first.weight.data_ptr():
            last.weight[ids] = 0.0
        first.weight[ids] = (torch.randn(len(ids), first.weight.shape[1], generator=generator) * _SMALL * spread).to(first.weight)
    ref = replace(loaded.ref, parent=loaded.ref.sha256, sha256=digest({"parent": loaded.ref.sha256, "given": list(names)}))
    return replace(loaded, model=model.eval(), tokenizer=tokenizer, ref=ref)
