"""How sure a number is: cluster bootstrap, paired differences, exact tests. Pure functions.

Shape letters: N rows, K clusters (independent units), D draws, S statistics.

A statistic is a function of row weights. Resampling clusters with replacement only changes how often each row counts, so a draw is a
weight vector and nothing is re-indexed: a metric made of weighted sums is recomputed for all draws by one matrix product.
All intervals here are percentile intervals (Efron & Tibshirani 1993, ch. 13): not bias-corrected, honest for n of some dozens and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats

from knowhow.types import Interval

Statistic = Callable[[np.ndarray], np.ndarray]
"""weights DN → values D (or MD, several at once). NaN where the statistic is undefined (say, the AUC of a draw without positives)."""

BLOCK = 2_000_000
"""Weights held at once (16 MB): draws are made in blocks of that many numbers."""


def resample(clusters_N: np.ndarray, *, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of DN weights: how often each row's cluster came up when K clusters are drawn with replacement (multinomial).

    The same clusters, draws and seed give the same weights, whatever is computed from them: that is what makes differences paired.
    In memory a row's weights in all draws lie together (a transposed view), so that ranking metrics can reorder rows at the speed of a copy."""
    names_K, inverse_N = np.unique(clusters_N, return_inverse=True)
    k, n = len(names_K), len(inverse_N)
    plain = k == n and bool((inverse_N == np.arange(n)).all())
    random = np.random.Generator(np.random.PCG64(seed))
    block = max(1, BLOCK // max(n, 1))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        picks_DK = random.integers(0, k, size=(size, k), dtype=np.int64)
        picks_DK += np.arange(size)[:, None] * k
        counts_KD = np.bincount(picks_DK.ravel(), minlength=size * k).reshape(size, k).T.astype(np.float64, order="C")
        yield (counts_KD if plain else counts_KD.take(inverse_N, axis=0)).T


def replicates(statistics: Sequence[Statistic], clusters_N: np.ndarray, weights_N: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """SD values of every statistic on the same draws (values of one column belong together: subtract them for paired differences).

    A statistic may give several values per draw (MD): they take M rows."""
    blocks = []
    for weights_DN in resample(clusters_N, draws=draws, seed=seed):
        if weights_N is not None:
            weights_DN *= weights_N
        blocks.append(np.vstack([statistic(weights_DN) for statistic in statistics]))
    return np.hstack(blocks)


def percentile(value: float, values_D: np.ndarray, n: int, confidence: float = 0.95) -> Interval:
    """Percentile interval. Low and high are NaN with fewer than two clusters, or when the statistic is undefined in half of the draws."""
    known_D = values_D[np.isfinite(values_D)]
    if n < 2 or 2 * len(known_D) < len(values_D) or not len(known_D):
        return Interval(float(value), float("nan"), float("nan"), n)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known_D, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), n)


def bootstrap(
    statistic: Callable[[np.ndarray], float] | Statistic,
    clusters_N: np.ndarray,
    *,
    weights_N: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    vectorised: bool = False,
) -> Interval:
    """Cluster bootstrap (percentile) of `statistic`, a function of row weights N → float; `vectorised` says that it maps DN → D.

    Rows of one cluster come and go together; `weights_N` multiply the draws (copies of a row)."""
    lifted = statistic if vectorised else rowwise(statistic)
    base_N = _weights(weights_N, len(clusters_N))
    values_D = replicates([lifted], clusters_N, base_N, draws=draws, seed=seed)[0]
    return percentile(float(lifted(base_N[None, :])[0]), values_D, len(np.unique(clusters_N)), confidence)


def paired_bootstrap(
    a: Callable[[np.ndarray], float] | Statistic,
    b: Callable[[np.ndarray], float] | Statistic,
    clusters_N: np.ndarray,
    *,
    weights_N: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    vectorised: bool = False,
) -> Interval:
    """Interval of a − b, both computed on the same draws (see `bootstrap`)."""
    first, second = (a, b) if vectorised else (rowwise(a), rowwise(b))
    return bootstrap(
        lambda weights_DN: first(weights_DN) - second(weights_DN),
        clusters_N,
        weights_N=weights_N,
        draws=draws,
        seed=seed,
        confidence=confidence,
        vectorised=True,
    )


def rowwise(statistic: Callable[[np.ndarray], float]) -> Statistic:
    """Lift a function of one weight vector to DN → D."""
    return lambda weights_DN: np.array([statistic(weights_N) for weights_N in weights_DN], dtype=np.float64)


def weighted_mean(values_N: np.ndarray) -> Statistic:
    """The weighted mean as a statistic: the plainest of them, and the right one for accuracy, losses and paired differences per row."""
    column_N = np.asarray(values_N, dtype=np.float64)
    return lambda weights_DN: ratio(weights_DN @ column_N, weights_DN.sum(1))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan), where=np.asarray(below) != 0)


def mcnemar(
    a_correct_N: np.ndarray,
    b_correct_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    clusters_N: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> float:
    """Two-sided p-value that a and b are right equally often on the same rows.

    Independent rows: McNemar's exact test (binomial over the discordant rows). Weighted or clustered rows are not independent, so there
    the sign of each cluster's summed difference is flipped at random instead, which for single rows is the same test."""
    difference_N = np.asarray(a_correct_N, dtype=np.float64) - np.asarray(b_correct_N, dtype=np.float64)
    if weights_N is None and clusters_N is None:
        wins, losses = int((difference_N > 0).sum()), int((difference_N < 0).sum())
        return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    difference_N = difference_N * _weights(weights_N, len(difference_N))
    if clusters_N is None:
        return sign_flip(difference_N, seed=seed)
    _, inverse_N = np.unique(clusters_N, return_inverse=True)
    return sign_flip(np.bincount(inverse_N, weights=difference_N), seed=seed)


def sign_flip(differences_K: np.ndarray, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided permutation p-value that K independent differences sum to 0: signs are flipped, all 2^K ways for K ≤ 12, else `draws` at random.

    The observed signs count as one of the draws, so p is never 0 (Phipson & Smyth 2010)."""
    known_K = np.abs(np.asarray(differences_K, dtype=np.float64))
    observed, slack = abs(float(np.sum(differences_K))), 1e-9 * known_K.sum()
    known_K = known_K[known_K > 0]
    if not len(known_K):
        return 1.0
    if len(known_K) <= 12:
        signs = 1 - 2 * ((np.arange(2 ** len(known_K))[:, None] >> np.arange(len(known_K))) & 1)
        return float((np.abs(signs @ known_K) >= observed - slack).mean())
    random = np.random.Generator(np.random.PCG64(seed))
    sums_D = np.zeros(draws)
    for size, count in zip(*np.unique(known_K, return_counts=True), strict=True):  # equal sizes at once: heads among their flips are binomial
        sums_D += size * (2 * random.binomial(count, 0.5, size=draws) - count)
    return float(((np.abs(sums_D) >= observed - slack).sum() + 1) / (draws + 1))


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share; `n` may be an effective (fractional) number of rows. NaN with n = 0."""
    if n <= 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(float(share), float(max(0.0, middle - half)), float(min(1.0, middle + half)), int(n))


def clopper_pearson_upper(errors: float, n: int, delta: float) -> float:
    """Upper bound of an error rate that fails with probability at most `delta` (exact binomial, one-sided). 1 with n = 0."""
    return 1.0 if n == 0 or errors >= n else float(stats.beta.ppf(1 - delta, errors + 1, n - errors))


def risk_p_value(losses_K: np.ndarray, risk: float) -> float:
    """p-value of "the mean loss is above `risk`" from K independent losses in [0, 1].

    0/1 losses: exact binomial tail. Otherwise Hoeffding–Bentkus (Bates et al. 2021, eq. 9): valid for any loss in [0, 1]."""
    n, mean = len(losses_K), float(np.mean(losses_K)) if len(losses_K) else 1.0
    if n == 0 or mean >= risk:
        return 1.0
    if np.isin(losses_K, (0.0, 1.0)).all():
        return float(stats.binom.cdf(round(mean * n), n, risk))
    kl = (mean * np.log(mean / risk) if mean > 0 else 0.0) + (1 - mean) * np.log((1 - mean) / (1 - risk))
    return float(min(1.0, np.exp(-n * kl), np.e * stats.binom.cdf(np.ceil(n * mean), n, risk)))


def effective_n(weights_N: np.ndarray, clusters_N: np.ndarray | None = None) -> float:
    """Kish's effective number of independent units: (Σw)² / Σw² over the clusters' weights."""
    weights = np.asarray(weights_N, dtype=np.float64)
    if clusters_N is not None:
        weights = np.bincount(np.unique(clusters_N, return_inverse=True)[1], weights=weights)
    return float(ratio(weights.sum() ** 2, (weights**2).sum())) if weights.any() else 0.0


def _weights(weights_N: np.ndarray | None, n: int) -> np.ndarray:
    return np.ones(n) if weights_N is None else np.asarray(weights_N, dtype=np.float64)


def holm(p_values: Sequence[float], *, level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects (Holm 1979): at most one false one in all with probability `level`."""
    held, going = [False] * len(p_values), True
    for rank, at in enumerate(np.argsort(p_values, kind="stable").tolist()):
        going = going and p_values[at] <= level / (len(p_values) - rank)
        held[at] = going
    return held
