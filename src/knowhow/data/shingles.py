"""Texts as sets of hashed shingles, made for a whole chunk of texts at once.

Shapes: N texts, S shingles of all texts together, K permutations. Shingle hashes are below 2^31 so that they fit SciPy's 32-bit sparse indices.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LETTERS, WORDS = 5, 3
"""Length of a shingle in characters and in words (the sizes of Broder 1997 and of Lee et al. 2022 are 5 and more words; short rows need shorter)."""
LONG, SHORT = 40, 50
"""Texts of at least LONG words have word shingles, those below SHORT have letter shingles; between, both, so that no near pair falls between two stools."""
SKETCH = 256
"""At most so many shingles per text are kept, those of smallest hash (bottom-k, Cohen & Kaplan 2007): exact for short texts, a fair sample of long."""

_BITS = 31
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sketches:
    """Sorted distinct shingle hashes per text: those of text `rows[i]` are `hashes[starts[i]:starts[i+1]]`. `hashes` int32 (S), `starts` int64 (N+1)."""

    rows: np.ndarray
    hashes: np.ndarray
    starts: np.ndarray


def normalise(text: str) -> str:
    """NFKC, casefold, white space collapsed: what counts as the same text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def sketch(texts: Sequence[str], first_row: int) -> tuple[Sketches, Sketches]:
    """(letter sketches of short texts, word sketches of long ones) of normalised texts; `first_row` is the row of texts[0]."""
    points, starts = _code_points(texts)
    spaces = points == 32
    words = np.diff(np.concatenate([[0], np.cumsum(spaces)])[starts]) + 1
    short, long = np.flatnonzero(words < SHORT), np.flatnonzero(words >= LONG)
    return _letters(points, starts, short, first_row), _words(points, spaces, starts, long, first_row)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): uint64 in, well spread uint64 out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts as one uint32 array, and where each starts (N+1)."""
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    return points, np.concatenate([[0], np.cumsum(lengths)])


def _letters(points: np.ndarray, starts: np.ndarray, chosen: np.ndarray, first_row: int) -> Sketches:
    """Windows of LETTERS characters; a shorter text is one window."""
    windows = mix(_rolled(points.astype(np.uint64), LETTERS))
    lengths = np.diff(starts)[chosen]
    counts = np.maximum(lengths - LETTERS + 1, 1)
    index = ranges(starts[chosen], counts)
    whole = lengths < LETTERS
    hashes = windows[np.minimum(index, len(windows) - 1)] if len(windows) else np.zeros(len(index), np.uint64)
    if whole.any():
        at = (np.cumsum(counts) - counts)[whole]
        hashes[at] = _segments(points.astype(np.uint64), starts[chosen][whole], starts[chosen][whole] + lengths[whole])
    return _kept(hashes, counts, chosen + first_row)


def _words(points: np.ndarray, spaces: np.ndarray, starts: np.ndarray, chosen: np.ndarray, first_row: int) -> Sketches:
    """Windows of WORDS words (texts here have at least LONG)."""
    if not len(chosen):
        return Sketches(chosen, np.zeros(0, np.int32), np.zeros(1, np.int64))
    breaks = np.flatnonzero(spaces)
    begins = np.unique(np.concatenate([starts[:-1], breaks + 1]))
    begins = begins[begins < len(points)]
    ends = np.concatenate([begins[1:], [len(points)]])
    hashed = _rolled(mix(_segments(points.astype(np.uint64), begins, ends - np.isin(ends - 1, breaks))), WORDS)
    first = np.searchsorted(begins, starts[chosen])
    after = np.searchsorted(begins, starts[chosen + 1])
    counts = after - first - WORDS + 1
    return _kept(mix(hashed[ranges(first, counts)]), counts, chosen + first_row)


def _rolled(values: np.ndarray, width: int) -> np.ndarray:
    """Hash of every window of `width` values (uint64): a polynomial in an odd multiplier."""
    size = max(len(values) - width + 1, 0)
    hashes = np.zeros(size, np.uint64)
    for offset in range(width):
        hashes = hashes * _MULTIPLIER + values[offset : offset + size]
    return hashes


def _segments(values: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hash of each values[begin:end]: the sum of mixed (value, place) pairs, so that it depends on the order."""
    lengths = ends - begins
    index = ranges(begins, lengths)
    place = index - np.repeat(begins, lengths)
    mixed = mix(values[index] * _MULTIPLIER + place.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    cuts = np.concatenate([[0], np.cumsum(lengths)])
    return sums[cuts[1:]] - sums[cuts[:-1]]


def ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin, begin+1, … (count numbers) for each begin, one after another."""
    offsets = np.repeat(np.cumsum(counts) - counts, counts)
    return np.arange(int(counts.sum())) - offsets + np.repeat(begins, counts)


def _kept(hashes: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> Sketches:
    """Distinct hashes per row, sorted, at most SKETCH of them."""
    owner = np.repeat(np.arange(len(rows), dtype=np.uint64), counts)
    keys = np.sort((owner << np.uint64(_BITS)) | (hashes >> np.uint64(64 - _BITS)))
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    owner = (keys >> np.uint64(_BITS)).astype(np.int64)
    sizes = np.bincount(owner, minlength=len(rows))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if (sizes > SKETCH).any():
        kept = np.arange(len(keys)) - np.repeat(starts[:-1], sizes) < SKETCH
        keys, sizes = keys[kept], np.minimum(sizes, SKETCH)
        starts = np.concatenate([[0], np.cumsum(sizes)])
    return Sketches(rows, (keys & np.uint64((1 << _BITS) - 1)).astype(np.int32), starts)
