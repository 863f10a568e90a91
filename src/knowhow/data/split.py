"""Rows into train, valid and test: what belongs together stays together, labels are spread evenly, and the seed decides the rest.

Shapes: N rows, U units (rows that must not be parted), C labels, 3 parts in the order train, valid, test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from knowhow.data.dedupe import dense
from knowhow.errors import UsageError
from knowhow.types import Example

PARTS = ("train", "valid", "test")
By = Literal["auto", "random", "group", "time"]


def split(examples: Sequence[Example], *, by: By, valid: float, test: float, seed: int, clusters: np.ndarray | None) -> dict[str, np.ndarray]:
    """{train, valid, test: sorted row numbers}; a part of share 0 is empty.

    `auto`: by time where rows have one, else by group where rows have one, else by duplicate cluster. `clusters` (N, from dedupe): rows of one
    cluster stay together unless `random`, whose scores flatter when there are duplicates: the caller warns. `time`: the latest rows are the test,
    the latest of the rest the validation; a unit goes where its earliest row goes. Deterministic. Raises UsageError for labels that training
    would not see, for one label only, and when there are too few units for the parts."""
    _check_shares(valid, test, len(examples))
    labels, times, groups = [example.label for example in examples], [example.time for example in examples], [example.group for example in examples]
    by = _rule(by, times, groups)
    unit_N = np.arange(len(examples)) if by == "random" else units(groups, clusters, len(examples))
    codes = _codes(labels)
    _check_labels(codes, labels)
    parts = sum(share > 0 for share in (1.0, valid, test))
    if unit_N.max() + 1 < parts:
        got = f"{unit_N.max() + 1} independent groups for {parts} parts ({len(examples)} rows; groups and duplicates are not parted)"
        raise UsageError(got, allowed="at least one group per part", fix="add rows, name the files for valid and test, or set data.split.by: random")
    shares = np.array([1 - valid - test, valid, test])
    part = _by_time(np.array(times, float), unit_N, shares) if by == "time" else _by_labels(unit_N, codes, shares, seed)
    _check_parts(part, shares, labels, by)
    return {name: np.flatnonzero(part == index) for index, name in enumerate(PARTS)}


def _rule(by: By, times: Sequence[float | None], groups: Sequence[str | None]) -> By:
    """What `auto` means here; UsageError when the rows lack what the rule needs."""
    timed, grouped = sum(time is not None for time in times), sum(group is not None for group in groups)
    if by == "auto":
        return "time" if timed == len(times) else "group"
    if by == "time" and timed < len(times):
        fix = "name the column under data.fields.time, fill the gaps, or split by group or random"
        raise UsageError(
            f"a split by time, but {len(times) - timed} of {len(times)} rows have none", where="data.split.by", allowed="a time in every row", fix=fix
        )
    if by == "group" and grouped == 0:
        fix = "name the column under data.fields.group, or set data.split.by: auto"
        raise UsageError("a split by group, but no row has one", where="data.split.by", allowed="auto, random, group, time", fix=fix)
    return by


def units(groups: Sequence[str | None], clusters: np.ndarray | None, count: int) -> np.ndarray:
    """N unit numbers, dense in order of first occurrence: rows that share a group or a cluster, directly or through others."""
    known: dict[str, int] = {}
    node = np.array([count + known.setdefault(group, len(known)) if group is not None else -1 for group in groups], np.int64)
    rows = np.flatnonzero(node >= 0)
    left, right, size = [rows], [node[rows]], count + len(known)
    if clusters is not None:
        left.append(np.arange(count))
        right.append(size + clusters)
        size += int(clusters.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(sum(map(len, left)), np.int8), (np.concatenate(left), np.concatenate(right))), shape=(size, size))
    labels = connected_components(edges, directed=False)[1][:count]
    return dense(labels)


def _by_time(times: np.ndarray, units: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """N part numbers: cuts at the times below which the wanted shares of the rows lie; equal times are not parted."""
    ordered = np.sort(times)
    ends = np.round(np.cumsum(shares)[:2] * len(times)).astype(int)
    part = np.zeros(len(times), np.int64)
    for end in ends:
        if end < len(times):
            part += times >= ordered[end]
    if shares[1] == 0:
        part[part == 1] = 2
    earliest = np.full(units.max() + 1, 2)
    np.minimum.at(earliest, units, part)
    return earliest[units]


def _by_labels(units: np.ndarray, codes: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """N part numbers: the units of several rows one by one, largest first, then single rows label by label to fill what is missing.

    A unit goes where the sum over labels of (rows - wanted)² / wanted grows least."""
    rng = np.random.Generator(np.random.PCG64(seed))
    sizes = np.bincount(units)
    totals = np.bincount(codes)
    wanted = shares[:, None] * totals[None, :]
    have = np.zeros_like(wanted)
    open_parts = np.flatnonzero(shares > 0)
    of_unit = np.full(len(sizes), -1)
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    rows_by_unit = np.split(np.argsort(units, kind="stable"), np.cumsum(sizes)[:-1])
    for unit in order[sizes[order] > 1]:
        kinds, counts = np.unique(codes[rows_by_unit[unit]], return_counts=True)
        target = wanted[open_parts][:, kinds]
        cost = (counts * (2 * (have[open_parts][:, kinds] - target) + counts) / np.maximum(target, 1e-9)).sum(1)
        # A label's first unit belongs to training: what training never sees cannot be learned.
        chosen = 0 if (have[0, kinds] == 0).any() else open_parts[np.argmin(cost)]
        have[chosen, kinds] += counts
        of_unit[unit] = chosen
    single = np.flatnonzero(sizes == 1)
    code_of = codes[np.concatenate([rows_by_unit[unit] for unit in single])] if len(single) else single
    shuffled = rng.permutation(len(single))
    for code in range(len(totals)):
        mine = single[shuffled[code_of[shuffled] == code]]
        of_unit[mine] = np.repeat(np.arange(3), _dealt(len(mine), wanted[:, code], have[:, code]))
    return of_unit[units]


def _dealt(count: int, wanted: np.ndarray, have: np.ndarray) -> np.ndarray:
    """How many of `count` rows each of 3 parts gets: in proportion to what it lacks, whole numbers by largest remainder, training never without."""
    lack = np.maximum(wanted - have, 0)
    ideal = count * lack / lack.sum() if lack.sum() > 0 else count * wanted / max(wanted.sum(), 1e-9)
    dealt = np.floor(ideal).astype(int)
    for part in np.argsort(-(ideal - dealt), kind="stable")[: count - dealt.sum()]:
        dealt[part] += 1
    if count and dealt[0] + have[0] == 0:
        dealt[np.argmax(dealt)] -= 1
        dealt[0] += 1
    return dealt


def _codes(labels: Sequence[Any]) -> np.ndarray:
    """N stratum numbers: the label (all of them for many), one stratum for numbers and texts."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(label if isinstance(label, str | tuple) else None, len(known)) for label in labels], np.int64)


def _check_shares(valid: float, test: float, rows: int) -> None:
    if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise UsageError(f"valid {valid:g} and test {test:g}", where="data.split", allowed="shares from 0 that leave something for training", fix="lower them")
    if rows < 3:
        raise UsageError(f"{rows} rows to split", where="data.split", allowed="at least 3, better hundreds", fix="add rows")


def _check_labels(codes: np.ndarray, labels: Sequence[Any]) -> None:
    if codes.max() == 0 and isinstance(labels[0], str):
        raise UsageError(
            f"one label only: every row is {labels[0]!r}", allowed="at least two labels", fix="add rows of another label, or name the right label column"
        )


def _check_parts(part: np.ndarray, shares: np.ndarray, labels: Sequence[Any], by: By) -> None:
    empty = [name for index, name in enumerate(PARTS) if shares[index] > 0 and not (part == index).any()]
    if empty:
        kinds = len(set(labels)) if isinstance(labels[0], str | tuple) else 0
        why = f"with {kinds} labels, and a row of each goes to training" if 2 * kinds > len(part) else "in groups too large to share out"
        got = f"nothing left for {' and '.join(empty)}: {len(part)} rows {why}"
        raise UsageError(got, where="data.split", allowed="a row or more per part", fix="add rows, raise the share, or name files for valid and test")
    taught = {name for label, where in zip(labels, part) if where == 0 for name in _names(label)}
    unseen = sorted({name for label in labels for name in _names(label)} - taught)
    if unseen:
        got = f"{len(unseen)} labels that training would never see: {', '.join(unseen[:8])}"
        fix = "add earlier rows of these labels, or set data.split.by: group" if by == "time" else "add rows of these labels, or remove them"
        raise UsageError(got, where="data.split", allowed="every label in the training part", fix=fix)


def _names(label: Any) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()
