"""(a + b) mod p from some of its p² pairs.

Shape letters: B pairs, H hidden units, P answers.
"""

from __future__ import annotations

import torch

from knowhow.experiments.system import MeanSquare, System, fixed, numbers


class Sum(torch.nn.Module):
    """W (u_a + v_b)²: a table of hidden inputs per operand, squares, a read-out (Gromov 2023)."""

    def __init__(self, seed: int, prime: int, hidden: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.left, self.right = torch.nn.Embedding(prime, hidden), torch.nn.Embedding(prime, hidden)
        self.read = torch.nn.Linear(hidden, prime, bias=False)
        for weight, size in ((self.left.weight, 0.5), (self.right.weight, 0.5), (self.read.weight, hidden**-0.5)):
            torch.nn.init.normal_(weight, std=size, generator=generator)

    def forward(self, pairs_B2: torch.Tensor) -> torch.Tensor:
        logits_BP: torch.Tensor = self.read((self.left(pairs_B2[:, 0]) + self.right(pairs_B2[:, 1])).square())
        return logits_BP


def modular_sum(seed: int, *, prime: int = 31, hidden: int = 128, share: float = 0.65, shuffled: bool = False) -> System:
    """Full-batch squares of one-hot answers on a random `share` of the pairs. `shuffled`: the answers are dealt out at random, once.

    Facts: `prime`, `share`."""
    generator = torch.Generator().manual_seed(seed)
    pairs_N2 = torch.cartesian_prod(torch.arange(prime), torch.arange(prime))
    shown_B2 = pairs_N2[torch.randperm(len(pairs_N2), generator=generator)[: round(share * len(pairs_N2))]]
    answers_B = shown_B2.sum(1) % prime
    if shuffled:
        answers_B = answers_B[torch.randperm(len(answers_B), generator=generator)]
    batch = numbers(shown_B2, torch.nn.functional.one_hot(answers_B, prime).float())
    return System(Sum(seed, prime, hidden), MeanSquare(), fixed(batch), {"prime": prime, "share": share})
