"""What single heads do on given rows: where they look, and which activations stand out behind them. What their weights could do: explain/spectra.py.

Shape letters: B rows, T positions (queries), S positions (keys), L layers, H heads, D model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from knowhow.errors import UsageError
from knowhow.explain.inputs import real_tokens, rows_of
from knowhow.model.replay import Recording
from knowhow.model.sites import Body, body
from knowhow.model.taps import tap

Tensor = torch.Tensor
THRESHOLDS: Mapping[str, float] = MappingProxyType({"previous": 0.4, "duplicate": 0.4, "induction": 0.4, "sink": 0.3})
"""The score from which a head has a role: 0.3 for sinks is Gu et al.'s ε; 0.4 for the others is a convention of ours."""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Mean attention (0 to 1) that a head's queries pay to their targets, by name of score, each BLH; NaN in rows without such a query."""

    values: Mapping[str, Tensor]

    @property
    def means(self) -> dict[str, Tensor]:
        """LH of each score, over the rows that have it."""
        return {name: value_BLH.nanmean(0) for name, value_BLH in self.values.items()}

    def roles(self, thresholds: Mapping[str, float] = THRESHOLDS) -> tuple[tuple[str, ...], ...]:
        """Of each layer and head the largest mean score that reaches its threshold, or "other". Raises UsageError for a score that is not there."""
        unknown = [name for name in thresholds if name not in self.values]
        if unknown or not thresholds:
            raise UsageError(f"a threshold of {', '.join(unknown) or 'no score'}", allowed=", ".join(self.values))
        names = list(thresholds)
        means_NLH = torch.stack([self.means[name].nan_to_num(0.0) for name in names])
        floors_N11 = torch.tensor([thresholds[name] for name in names], device=means_NLH.device).view(-1, 1, 1)
        best_LH = torch.where(means_NLH >= floors_N11, means_NLH, -1.0).max(0)
        pairs = zip(best_LH.values.tolist(), best_LH.indices.tolist(), strict=True)
        return tuple(tuple(names[which] if value >= 0 else "other" for value, which in zip(*row, strict=True)) for row in pairs)


@torch.no_grad()
def head_scores(model: torch.nn.Module, inputs: Mapping[str, Any], *, rows: int = 8) -> HeadScores:
    """Scores of every head on given token rows (`inputs`: the model's keyword arguments, input_ids BT; padding is no query and no target).

    previous: attention of each token to the one before. duplicate: to earlier occurrences of the same token (Wang et al. 2022, arXiv 2211.00593).
    induction: to the tokens after those ("prefix matching", Olsson et al. 2022, arXiv 2209.11895; meant for `repeated_tokens`, where only a copy has a
    past). sink: to the first token (Gu et al. 2024, arXiv 2410.10781), the first token's own query left out. `rows`: the most that run together.
    Raises UsageError for no rows, a model in training, and one whose attention cannot be looked into."""
    tokens_BT = inputs["input_ids"]
    if not len(tokens_BT) or rows < 1:
        raise UsageError(f"{len(tokens_BT)} rows, {rows} together", allowed="at least 1")
    depth, found = at_rest(model).depth, []
    for index in torch.arange(len(tokens_BT), device=tokens_BT.device).split(rows):
        part = rows_of(inputs, index)
        with tap(model, "layers.*.attn.pattern") as seen:
            model(**part)
        wanted = targets(part["input_ids"], real_tokens(part))
        patterns = [seen[f"layers.{layer}.attn.pattern"] for layer in range(depth)]
        found.append({name: torch.stack([attention_to(pattern, *where) for pattern in patterns], 1) for name, where in wanted.items()})
    return HeadScores({name: torch.cat([part[name] for part in found]) for name in found[0]})


def targets(tokens_BT: Tensor, real_BT: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a score → (which keys are targets BTS, which queries count BT)."""
    T = tokens_BT.shape[1]
    both_BTS = real_BT[:, :, None] & real_BT[:, None]
    before_TS = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril(-1)
    same_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None]) & before_TS & both_BTS
    after_BTS = torch.zeros_like(same_BTS)
    after_BTS[:, :, 1:] = same_BTS[:, :, :-1]
    first_BS = real_BT & (real_BT.cumsum(1) == 1)
    previous_TS = before_TS.triu(-1)
    found = {"previous": previous_TS & both_BTS, "duplicate": same_BTS, "induction": after_BTS & before_TS, "sink": first_BS[:, None] & before_TS & both_BTS}
    return {name: (target_BTS, target_BTS.any(2)) for name, target_BTS in found.items()}


def attention_to(pattern_BHTS: Tensor, target_BTS: Tensor, query_BT: Tensor) -> Tensor:
    """Mean over the queries that count of the attention that falls on their targets, BH; NaN for rows without such a query."""
    # where, not a product: a padded query's probabilities need not be finite
    paid_BHT = torch.where((target_BTS & query_BT[..., None])[:, None], pattern_BHTS.float(), 0.0).sum(3)
    return paid_BHT.sum(2) / query_BT.sum(1)[:, None]


def repeated_tokens(vocabulary: Sequence[int], *, rows: int, period: int, repeats: int = 2, seed: int = 0, first: int | None = None) -> Tensor:
    """Token rows B × T of `period` random tokens, all different, said `repeats` times over (Olsson et al. 2022); `first` stands before them (a BOS).

    Raises UsageError for fewer tokens than the period, and for fewer than 2 repeats."""
    if not 1 <= period <= len(set(vocabulary)) or repeats < 2 or rows < 1:
        got = f"{rows} rows of period {period}, {repeats} times, from {len(set(vocabulary))} tokens"
        raise UsageError(got, allowed="at least one row, two repeats, and as many tokens as the period is long")
    random, known = torch.Generator().manual_seed(seed), torch.tensor(sorted(set(vocabulary)))
    drawn_BT = torch.stack([known[torch.randperm(len(known), generator=random)[:period]] for _ in range(rows)]).repeat(1, repeats)
    return drawn_BT if first is None else torch.cat([torch.full((rows, 1), first), drawn_BT], 1)


@dataclass(frozen=True, slots=True)
class Massive:
    """One massive activation: where in which layer's resid_post it stands."""

    layer: int
    row: int
    position: int
    feature: int
    value: float


def massive(recorded: Recording, *, size: float = 100.0, ratio: float = 1000.0) -> tuple[Massive, ...]:
    """Values of resid_post beyond `size` and beyond `ratio` times the median magnitude of their row in that layer (Sun et al. 2024, arXiv 2402.17762).

    Largest first; padding is left out. Raises UsageError for a size or ratio below 0."""
    if size < 0 or ratio < 0:
        raise UsageError(f"size {size}, ratio {ratio}", allowed="numbers from 0 on")
    found, real_BT = [], real_tokens(recorded.inputs)
    for layer, stream_BTD in enumerate(recorded.stream[1:]):
        for row, (values_TD, real_T) in enumerate(zip(stream_BTD.float(), real_BT, strict=True)):
            size_TD = values_TD.abs()
            high_TD = (size_TD > size) & (size_TD > ratio * size_TD[real_T].median()) & real_T[:, None]
            found += [Massive(layer, row, at, feature, float(values_TD[at, feature])) for at, feature in high_TD.nonzero().tolist()]
    return tuple(sorted(found, key=lambda one: -abs(one.value)))


def kurtosis(recorded: Recording) -> Tensor:
    """Pearson's kurtosis of the D values at each token's resid_post (3 for normal ones, about D with one value alone), mean over real tokens, BL."""
    real_BT, found = real_tokens(recorded.inputs).float(), []
    for stream_BTD in recorded.stream[1:]:
        centred_BTD = stream_BTD.double() - stream_BTD.double().mean(-1, keepdim=True)
        tailed_BT = centred_BTD.pow(4).mean(-1) / centred_BTD.square().mean(-1).square().clamp_min(1e-300)
        found.append((tailed_BT * real_BT).sum(1) / real_BT.sum(1))
    return torch.stack(found, 1).float()


def at_rest(model: torch.nn.Module) -> Body:
    if model.training:
        raise UsageError("a model in training", allowed="a model in eval mode, where nothing is dropped at random", fix="call model.eval() first")
    return body(model)
