"""Exact and near duplicates: MinHash with banding (Broder 1997; Leskovec et al. 2020, ch. 3), every pair checked by the Jaccard similarity of its sketches.

Shapes: N texts, K permutations, P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from knowhow.data.shingles import SKETCH, Sketches, mix, normalise, ranges, sketch

PERMUTATIONS = 96
_RECALL = 0.99
_CHUNK_ROWS, _CHUNK_LETTERS = 8192, 1 << 21
_PAIRS = 1 << 18
_ALL_PAIRS = 8
"""In a bucket of so many texts every pair is looked at; in a larger one each text is compared with the first and with its neighbour."""


def exact(texts: Iterable[str]) -> np.ndarray:
    """N cluster numbers, dense from 0 in order of first occurrence: the same after `normalise` (64-bit digests)."""
    return dense(digests(texts))


def digests(texts: Iterable[str]) -> np.ndarray:
    """N uint64: the first 8 bytes of each normalised text's blake2b."""
    joined = b"".join(_digest(normalise(text)) for text in texts)
    return np.frombuffer(joined, dtype=np.uint64)


def clusters(
    texts: Iterable[str], *, threshold: float = 0.8, permutations: int = PERMUTATIONS, seed: int = 0, seen: Callable[[int], None] | None = None
) -> np.ndarray:
    """N cluster numbers, dense from 0 in order of first occurrence: exact duplicates, and chains of pairs whose shingle sets have a Jaccard
    similarity of at least `threshold` (exact for texts of up to 256 shingles, estimated from 256 above; a pair at the threshold is found with
    probability .99). `seen(n)` is called as texts are read. Memory: about 1 kB per short text."""
    return exact_and_near(texts, threshold=threshold, permutations=permutations, seed=seed, seen=seen)[1]


def exact_and_near(
    texts: Iterable[str], *, threshold: float = 0.8, permutations: int = PERMUTATIONS, seed: int = 0, seen: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What `exact` and `clusters` return, in one reading."""
    codes, sketches = _read(texts, threshold, permutations, seed, seen)
    parent = dense(codes)
    first = np.unique(parent, return_index=True)[1]
    count = len(first)
    links = [np.zeros((2, 0), np.int64)]
    for part in sketches:
        part = part.of(np.isin(part.rows, first, assume_unique=True))
        owner = parent[part.rows]
        links += [owner[linked] for linked in part.joined(threshold)]
    left, right = np.concatenate(links, axis=1)
    labels = connected_components(coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count)), directed=False)[1]
    return parent, dense(labels[parent])


def near_pairs(texts: Iterable[str], *, threshold: float = 0.8, permutations: int = PERMUTATIONS, seed: int = 0, first: int = 0) -> np.ndarray:
    """P×2 rows (left < right, right ≥ `first`, sorted) of exact or near duplicates. Every pair within a bucket is looked at: for comparing
    thousands of new texts (from row `first` on) with each other and with known ones, not for a million."""
    codes, sketches = _read(texts, threshold, permutations, seed, None)
    found = [_bucket_pairs(codes, limit=len(codes), first=first)]
    for part in sketches:
        begin = int(np.searchsorted(part.rows, first))
        every = np.concatenate([np.zeros((0, 2), np.int64), *(_bucket_pairs(band, limit=len(band), first=begin) for band in part.bands.T)])
        found += [part.rows[chunk[part.similarity(chunk) >= threshold]] for chunk in _chunks(np.unique(every, axis=0))]
    return np.unique(np.concatenate(found), axis=0)


@dataclass(frozen=True)
class _Part:
    """Sketches of one kind of shingle: `matrix` N×2^31 of ones, `bands` N×(K/r) uint64, `rows` N."""

    rows: np.ndarray
    matrix: csr_matrix
    bands: np.ndarray

    def of(self, chosen: np.ndarray) -> _Part:
        return self if chosen.all() else _Part(self.rows[chosen], self.matrix[chosen], self.bands[chosen])

    def joined(self, threshold: float) -> Iterator[np.ndarray]:
        """2×P arrays of similar pairs (positions); a pair already joined through others is not looked at again."""
        size = len(self.rows)
        groups = np.arange(size)
        for band in self.bands.T:
            pairs = _bucket_pairs(band, limit=_ALL_PAIRS)
            pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
            kept = [chunk[self.similarity(chunk) >= threshold] for chunk in _chunks(pairs)]
            if not any(len(chunk) for chunk in kept):
                continue
            left, right = np.concatenate(kept).T
            yield np.stack([left, right])
            edges = coo_matrix((np.ones(len(left), np.int8), (groups[left], groups[right])), shape=(size, size))
            groups = connected_components(edges, directed=False)[1][groups]

    def similarity(self, pairs: np.ndarray) -> np.ndarray:
        """Jaccard similarity of P pairs of positions; where a sketch is full, among the hashes that both sketches reach (Cohen & Kaplan 2007)."""
        left, right = pairs.T
        shared = np.diff(self.matrix[left].multiply(self.matrix[right]).indptr)
        sizes = np.diff(self.matrix.indptr)
        union = (sizes[left] + sizes[right] - shared).astype(np.float64)
        for at in np.flatnonzero((sizes[left] == SKETCH) | (sizes[right] == SKETCH)):
            one, two = self._hashes(left[at]), self._hashes(right[at])
            reach = min(ends[-1] for ends in (one, two) if len(ends) == SKETCH)
            union[at] = np.searchsorted(one, reach, "right") + np.searchsorted(two, reach, "right") - shared[at]
        return shared / np.maximum(union, 1)

    def _hashes(self, position: int) -> np.ndarray:
        return self.matrix.indices[self.matrix.indptr[position] : self.matrix.indptr[position + 1]]


def band_rows(threshold: float, permutations: int) -> int:
    """Hashes per band r: the most that still find a pair at the threshold with probability .99, 1 - (1 - t^r)^(K/r)."""
    fits = [r for r in range(1, permutations + 1) if 1 - (1 - threshold**r) ** (permutations // r) >= _RECALL]
    return max(fits, default=1)


def _read(texts: Iterable[str], threshold: float, permutations: int, seed: int, seen: Callable[[int], None] | None) -> tuple[np.ndarray, tuple[_Part, _Part]]:
    """Digests of all texts, and the letter and word sketches with their bands; texts are held a chunk at a time."""
    draws = np.random.Generator(np.random.PCG64(seed)).integers(1 << 32, size=(2, permutations), dtype=np.uint64).astype(np.uint32)
    multipliers, offsets = draws[0] | np.uint32(1), draws[1]
    width = band_rows(threshold, permutations)
    codes, found, row = [], ([], []), 0
    for chunk in _text_chunks(texts):
        codes.append(np.frombuffer(b"".join(map(_digest, chunk)), dtype=np.uint64))
        for kind, part in zip(found, sketch(chunk, row)):
            kind.append((part, _bands(part, multipliers, offsets, width)))
        row += len(chunk)
        if seen is not None:
            seen(row)
    both = tuple(_assembled(kind, permutations // width) for kind in found)
    return np.concatenate([np.zeros(0, np.uint64), *codes]), (both[0], both[1])


def _bands(part: Sketches, multipliers: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """N×(K/width) uint64: the minima under each permutation h → a·h + b mod 2^32, hashed together band by band."""
    count = len(offsets) // width
    bands = np.zeros((len(part.rows), count), np.uint64)
    if not len(part.rows):
        return bands
    hashes = (part.hashes.astype(np.uint32) << np.uint32(1)) * np.uint32(0x9E3779B1)
    for index in range(count * width):
        minima = np.minimum.reduceat(hashes * multipliers[index] + offsets[index], part.starts[:-1])
        bands[:, index // width] = mix(bands[:, index // width] ^ minima.astype(np.uint64)) + np.uint64(index)
    return bands


def _assembled(parts: list[tuple[Sketches, np.ndarray]], count: int) -> _Part:
    """Chunks joined; each list entry is let go once it is copied."""
    rows = np.concatenate([np.zeros(0, np.int64), *(part.rows for part, _ in parts)])
    bands = np.concatenate([np.zeros((0, count), np.uint64), *(band for _, band in parts)])
    hashes = np.concatenate([np.zeros(0, np.int32), *(part.hashes for part, _ in parts)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.starts) for part, _ in parts)])
    parts.clear()
    starts = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix((np.ones(len(hashes), np.int8), hashes, starts), shape=(len(rows), 2**31 - 1), copy=False)
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return _Part(rows, matrix, bands)


def _bucket_pairs(keys: np.ndarray, *, limit: int, first: int = 0) -> np.ndarray:
    """P×2 positions (left < right, right ≥ `first`) with equal keys: every pair of a bucket of up to `limit`, else each with the bucket's first and with
    the one before it."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])[: len(keys)])
    sizes = np.diff(np.concatenate([starts, [len(keys)]]))
    place = np.arange(len(keys)) - np.repeat(starts, sizes)
    right = np.flatnonzero((place > 0) & (order >= first))
    small = np.repeat(sizes, sizes)[right] <= limit
    counts = np.where(small, place[right], 1)
    left = ranges(right - counts, counts)
    crowded = right[~small & (place[right] > 1)]
    pairs = ((left, np.repeat(right, counts)), (crowded - place[crowded], crowded))
    return np.concatenate([np.stack([order[one], order[other]], axis=1) for one, other in pairs])


def _chunks(pairs: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs), _PAIRS):
        yield pairs[start : start + _PAIRS]


def _text_chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Normalised texts, at most _CHUNK_ROWS of them or about _CHUNK_LETTERS characters at a time."""
    chunk, letters = [], 0
    for text in map(normalise, texts):
        chunk.append(text)
        letters += len(text)
        if len(chunk) >= _CHUNK_ROWS or letters >= _CHUNK_LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _digest(normalised: str) -> bytes:
    return hashlib.blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def dense(keys: np.ndarray) -> np.ndarray:
    """Equal keys → equal numbers, dense from 0 in order of first occurrence."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
