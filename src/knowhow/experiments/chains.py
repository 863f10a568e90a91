"""Chains whose entropies are known exactly, of one or two tokens of memory, before a small attention-only model.

Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch

from knowhow.experiments.attention_only import AttentionOnly
from knowhow.experiments.language import Language, chain, entropy_rate, next_token, walks
from knowhow.experiments.system import Drawn, System
from knowhow.types import Batch


def bigram_chain(seed: int, *, vocab: int = 32, rows: int = 32, length: int = 48, width: int = 48, tilt: float = 1.0, memory: int = 1) -> System:
    """One layer of one head on walks. `tilt`: how unequal the tokens' shares are; `memory` 2: the token before the last chooses between two chains.

    Facts, in nats: `uniform_entropy`, `unigram_entropy` H1, `bigram_entropy` H2 (of the next token given the last, whatever the memory)."""
    logits_1VV = chain(seed, vocab).log()[None] + tilt * torch.randn(vocab, generator=torch.Generator().manual_seed(seed + 1))
    tables_MVV = torch.softmax(logits_1VV if memory == 1 else logits_1VV + chain(seed + 2, vocab).log()[:, None], -1)

    def draw(generator: torch.Generator) -> Batch:
        if memory == 1:
            return next_token(walks(tables_MVV[0], rows, length + 1, generator))
        tokens = list(torch.randint(vocab, (2, rows), generator=generator))
        for _ in range(length - 1):
            tokens.append(torch.multinomial(tables_MVV[tokens[-2], tokens[-1]], 1, generator=generator)[:, 0])
        return next_token(torch.stack(tokens, 1))

    unigram, bigram = entropies(tables_MVV)
    facts = {"uniform_entropy": float(torch.tensor(vocab).log()), "unigram_entropy": unigram, "bigram_entropy": bigram}
    return System(AttentionOnly(seed, vocab=vocab, layers=1, heads=1, width=width), Language(), Drawn(draw, seed), facts)


def entropies(tables_MVV: torch.Tensor) -> tuple[float, float]:
    """H(next) and H(next | last) of the stationary chain, in nats; one table, or V, chosen by the token before the last."""
    V = tables_MVV.shape[-1]
    exact_MVV = tables_MVV.double()
    step_VVV = (exact_MVV / exact_MVV.sum(-1, keepdim=True)).expand(V, V, V)
    pair_VV = torch.full((V, V), 1 / V**2, dtype=torch.float64)
    for _ in range(500):
        pair_VV = torch.einsum("ab,abc->bc", pair_VV, step_VVV)
    share_V = pair_VV.sum(0)
    return float(-(share_V * share_V.log()).sum()), entropy_rate(pair_VV / pair_VV.sum(1, keepdim=True))
