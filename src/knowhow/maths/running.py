"""Statistics of vectors that stream by, nothing stored but the statistic. Each may be kept by a tap (model/taps.py: `keep=Moments`).

Shape letters: N vectors of an update, D features, Q quantiles, K kept values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Moments:
    """Count, mean D, and covariance DD or variance D, in float64 (Chan et al. 1983: pairwise updates, stable)."""

    def __init__(self, *, covariance: bool = False) -> None:
        self._covariance = covariance
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._spread = torch.zeros(0, dtype=torch.float64)

    def update(self, values_ND: torch.Tensor) -> None:
        values_ND = values_ND.double().cpu()
        new = len(values_ND)
        if not new:
            return
        mean_D = values_ND.mean(0)
        centred_ND = values_ND - mean_D
        spread = centred_ND.T @ centred_ND if self._covariance else centred_ND.square().sum(0)
        if not self.count:
            self.count, self.mean, self._spread = new, mean_D, spread
            return
        total, gap_D = self.count + new, mean_D - self.mean
        between = torch.outer(gap_D, gap_D) if self._covariance else gap_D.square()
        self._spread = self._spread + spread + between * (self.count * new / total)
        self.mean = self.mean + gap_D * (new / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """D, unbiased."""
        return (self._spread.diagonal() if self._covariance else self._spread) / max(self.count - 1, 1)

    @property
    def covariance(self) -> torch.Tensor:
        """DD, unbiased. Asserts that it was asked for."""
        assert self._covariance, "Moments(covariance=True) keeps it"
        return self._spread / max(self.count - 1, 1)


class Quantiles:
    """Quantiles QD of each feature from a uniform sample of at most `size` vectors (reservoir sampling, Vitter 1985): exact up to `size` vectors."""

    def __init__(self, at: Sequence[float] = (0.01, 0.25, 0.5, 0.75, 0.99), *, size: int = 4096, seed: int = 0) -> None:
        self.at, self._size = torch.tensor(at, dtype=torch.float64), size
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: torch.Tensor | None = None
        self.count = 0

    def update(self, values_ND: torch.Tensor) -> None:
        values_ND = values_ND.float().cpu()
        room = self._size - (0 if self._kept is None else len(self._kept))
        first, rest = values_ND[:room], values_ND[room:]
        if len(first):
            self._kept = first.clone() if self._kept is None else torch.cat([self._kept, first])
            self.count += len(first)
        if not len(rest) or self._kept is None:
            return
        seen_N = self.count + 1 + torch.arange(len(rest))
        slot_N = (torch.rand(len(rest), generator=self._generator, dtype=torch.float64) * seen_N).long()
        for index in torch.nonzero(slot_N < self._size)[:, 0].tolist():
            self._kept[slot_N[index]] = rest[index]
        self.count += len(rest)

    @property
    def values(self) -> torch.Tensor:
        """QD float64."""
        assert self._kept is not None, "no vectors yet"
        return torch.quantile(self._kept.double(), self.at, dim=0)


class TopK:
    """The K largest values of each feature and which vector each was (its number, counted from 0 over all updates)."""

    def __init__(self, k: int = 10) -> None:
        self._k, self.count = k, 0
        self.values, self.index = torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.long)

    def update(self, values_ND: torch.Tensor) -> None:
        values_ND, seen = values_ND.float().cpu(), self.count
        self.count += len(values_ND)
        index_ND = (seen + torch.arange(len(values_ND)))[:, None].expand_as(values_ND)
        if seen:
            values_ND, index_ND = torch.cat([self.values, values_ND]), torch.cat([self.index, index_ND])
        order_KD = values_ND.sort(dim=0, descending=True, stable=True).indices[: self._k]
        self.values, self.index = values_ND.gather(0, order_KD), index_ND.gather(0, order_KD)
