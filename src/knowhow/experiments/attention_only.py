"""A transformer of attention layers alone, whose attention is a softmax or unnormalised sigmoids: small enough for a law's control, with what makes circuits.

Shape letters: B batch, T queries, S keys, H heads, K head size, D model, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class Output:
    """Logits BTV and, where asked for, the pattern BHTS of each layer."""

    logits: torch.Tensor
    attentions: tuple[torch.Tensor, ...]


class Attention(torch.nn.Module):
    """Causal attention with rotary positions (Su 2021). `normalised`: weights are the softmax of the scores; else σ(score − ln 16), each by itself.
    `itself` False: a query sees earlier tokens only (the first one has no other)."""

    def __init__(self, width: int, heads: int, normalised: bool, itself: bool) -> None:
        super().__init__()
        self.heads, self.normalised, self.itself = heads, normalised, itself
        self.query, self.key, self.value, self.out = (torch.nn.Linear(width, width, bias=False) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.out):
            torch.nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, stream_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        B, T, D = stream_BTD.shape
        read_BTD = F.rms_norm(stream_BTD, (D,))
        query, key, value = (part(read_BTD).view(B, T, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        query, key = turned(query), turned(key)
        scores_BHTS = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        hidden_TS = torch.ones(T, T, dtype=torch.bool, device=scores_BHTS.device).triu(int(self.itself))
        hidden_TS[0, 0] = False
        scores_BHTS = scores_BHTS.masked_fill(hidden_TS, -math.inf)
        pattern_BHTS = torch.softmax(scores_BHTS, -1) if self.normalised else torch.sigmoid(scores_BHTS - math.log(16))
        return self.out((pattern_BHTS @ value).transpose(1, 2).reshape(B, T, D)), pattern_BHTS


class AttentionOnly(torch.nn.Module):
    """Token table, `layers` of attention on a residual stream, read-out. Called as transformers' models are."""

    def __init__(self, seed: int, *, vocab: int, layers: int, heads: int, width: int, normalised: bool = True, itself: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(vocab, width)
        self.layers = torch.nn.ModuleList(Attention(width, heads, normalised, itself) for _ in range(layers))
        self.read = torch.nn.Linear(width, vocab, bias=False)
        torch.nn.init.normal_(self.embed.weight, std=1.0)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False, output_attentions: bool = False) -> Output:
        stream_BTD = self.embed(input_ids)
        patterns = []
        for layer in self.layers:
            written_BTD, pattern_BHTS = layer(stream_BTD)
            stream_BTD = stream_BTD + written_BTD
            patterns.append(pattern_BHTS)
        return Output(self.read(F.rms_norm(stream_BTD, stream_BTD.shape[-1:])), tuple(patterns) if output_attentions else ())


def turned(part_BHTK: torch.Tensor, base: float = 1000.0) -> torch.Tensor:
    """Pairs of numbers turned by position × base^(−2i/K)."""
    T, K = part_BHTK.shape[-2:]
    rates = base ** (-torch.arange(0, K, 2, device=part_BHTK.device) / K)
    angle_TK = (torch.arange(T, device=part_BHTK.device)[:, None] * rates).repeat(1, 2)
    first, second = part_BHTK.chunk(2, -1)
    return part_BHTK * angle_TK.cos() + torch.cat([-second, first], -1) * angle_TK.sin()
