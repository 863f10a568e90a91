"""The audit: what a data set can and cannot teach, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knowhow.data import conflicts, lengths, noise, overlap
from knowhow.data.overlap import CUT, SHOWN, Clusters, shown
from knowhow.protocols import Progress, Tokenizer
from knowhow.types import Example, Task


def audit(
    splits: Mapping[str, Sequence[Example]],
    task: Task,
    *,
    tokenizer: Tokenizer | None,
    context: int | None,
    seed: int = 0,
    progress: Progress | None = None,
    found: Mapping[str, Clusters] | None = None,
) -> dict[str, Any]:
    """What is in the parts of a data set, as JSON. `found`: clusters of `overlap.find`, if they are at hand.

    rows {part: n}; duplicates {exact, near, splits, examples}; leakage {"a/b": {exact, near, groups, rows, examples}}; conflicts {inputs, rows,
    ceiling_accuracy, ceiling_macro_f1, ceiling_r2, splits, examples}; label_noise (of the first part) {suspected, share, sampled, accuracy,
    examples} or None; truncation {over, share, longest, p50, p95, p99, context, sampled} or None without a tokenizer; tokens_per_word; balance
    {label: rows of the first part}, balances {part: {label: rows}}; warnings [sentences]. Ceilings are weighted by the rows' weights."""
    tell: Progress = progress or (lambda what, done, total: None)
    total = sum(len(examples) for examples in splits.values())
    found = found or overlap.find(splits, seed=seed, progress=progress)
    given = _answers(splits, tell, total)
    report: dict[str, Any] = {
        "rows": {name: len(examples) for name, examples in splits.items()},
        "duplicates": overlap.duplicates(splits, found),
        "leakage": overlap.leakage(splits, found),
        "conflicts": _conflicts(splits, found, given, task),
        "label_noise": _noise(splits, found, given, task, seed, tell),
        "truncation": None,
        "tokens_per_word": None,
        "balances": {name: _balance(part, task) for name, part in given.items()},
    }
    report["balance"] = next(iter(report["balances"].values()), {})
    if tokenizer is not None and total:
        sizes = lengths.sizes(splits, task, seen=lambda done: tell("lengths", done, total))
        report["truncation"], report["tokens_per_word"] = lengths.truncation(splits, sizes, task, tokenizer=tokenizer, context=context, seed=seed)
    report["warnings"] = [*_row_warnings(report, splits), *_label_warnings(report, task)]
    tell("audit", total, total)
    return report


def _answers(splits: Mapping[str, Sequence[Example]], tell: Progress, total: int) -> dict[str, conflicts.Answers]:
    done, given = 0, {}
    for name, examples in splits.items():
        given[name] = conflicts.answers(examples)
        done += len(examples)
        tell("labels", done, total)
    return given


def _conflicts(splits: Mapping[str, Sequence[Example]], found: Mapping[str, Clusters], given: Mapping[str, conflicts.Answers], task: Task) -> dict[str, Any]:
    """Over all parts together, and each part's ceilings by itself."""
    names: dict[Any, int] = {}
    codes = [np.array([*(names.setdefault(name, len(names)) for name in part.names), -1], np.int64)[part.codes] for part in given.values()]
    both = conflicts.Answers(tuple(names), *(_joined(parts) for parts in (codes, *_columns(given))))
    inputs = _joined([part.exact for part in found.values()])
    report = conflicts.conflicts(inputs, both, task)
    per_part = {name: conflicts.conflicts(found[name].exact, part, task) for name, part in given.items()}
    return {**report, "splits": per_part, "examples": _shown_conflicts(splits, inputs, both) if report["inputs"] else []}


def _columns(given: Mapping[str, conflicts.Answers]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [part.weights for part in given.values()], [part.values for part in given.values()]


def _shown_conflicts(splits: Mapping[str, Sequence[Example]], inputs: np.ndarray, given: conflicts.Answers) -> list[dict[str, Any]]:
    """The inputs with the most weight outside their commonest label, each with its labels and how often they occur."""
    labelled = np.flatnonzero(given.codes >= 0)
    pairs, first, inverse = np.unique(np.stack([inputs[labelled], given.codes[labelled]]), axis=1, return_index=True, return_inverse=True)
    mass = np.bincount(inverse.reshape(-1), given.weights[labelled])
    starts = np.flatnonzero(np.concatenate([[True], pairs[0][1:] != pairs[0][:-1]]))
    lost = np.add.reduceat(mass, starts) - np.maximum.reduceat(mass, starts)
    ends = np.concatenate([starts[1:], [len(mass)]])
    worst = [index for index in np.argsort(-lost, kind="stable")[:SHOWN] if lost[index] > 0]
    return [
        {
            **_row(splits, int(labelled[first[starts[index]]])),
            "labels": {_label_text(given.names[pairs[1][at]]): float(mass[at]) for at in range(starts[index], ends[index])},
        }
        for index in worst
    ]


def _noise(
    splits: Mapping[str, Sequence[Example]], found: Mapping[str, Clusters], given: Mapping[str, conflicts.Answers], task: Task, seed: int, tell: Progress
) -> dict[str, Any] | None:
    """Label noise of the first part; only for tasks of one label."""
    name = next(iter(splits), None)
    if name is None or task.kind not in ("classify", "score") or task.many or not all(isinstance(label, str) for label in given[name].names):
        return None
    tell("label noise", 0, 1)
    examples, part = splits[name], given[name]
    rows = np.flatnonzero(part.codes >= 0)
    result = noise.label_noise(_Texts(examples, rows), part.codes[rows], found[name].near[rows], seed=seed)
    tell("label noise", 1, 1)
    if result is None:
        return None
    where, wrong, likely = rows[result.pop("rows")], result.pop("given"), result.pop("likely")
    suspects = [
        {**shown(examples[int(row)], name, int(row)), "label": part.names[one], "likely": part.names[other]}
        for row, one, other in list(zip(where, wrong, likely))[:SHOWN]
    ]
    return {**result, "examples": suspects}


class _Texts(Sequence[str]):
    """Inputs of chosen rows, looked up when asked for."""

    def __init__(self, examples: Sequence[Example], rows: np.ndarray) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return overlap.input_text(self.examples[int(self.rows[index])])


def _balance(part: conflicts.Answers, task: Task) -> dict[str, int]:
    """Rows per label; empty for numbers and texts."""
    if task.kind == "generate" or not all(isinstance(name, str | tuple) for name in part.names):
        return {}
    counts: Counter[str] = Counter(dict.fromkeys(task.labels, 0))
    for name, rows in zip(part.names, np.bincount(part.codes[part.codes >= 0], minlength=len(part.names)).tolist()):
        for single in name if isinstance(name, tuple) else (name,):
            counts[single] += rows
    return dict(sorted(counts.items()))


def _row_warnings(report: Mapping[str, Any], splits: Mapping[str, Sequence[Example]]) -> list[str]:
    said = []
    for pair, leak in report["leakage"].items():
        first, second = pair.split("/")
        for kind, how in (("exact", "also occur"), ("near", "have a near copy")):
            if leak[kind]:
                said.append(
                    f"{leak[kind]:,} of {leak['rows']:,} rows of {second} {how} in {first}: scores on all rows of {second} flatter; look at the novel ones."
                )
        if leak["groups"]:
            said.append(f"{leak['groups']:,} rows of {second} belong to groups that {first} has too: it is no test of new groups.")
    total, repeated = sum(report["rows"].values()), report["duplicates"]["exact"] + report["duplicates"]["near"]
    if repeated > 0.05 * total:
        said.append(f"{repeated / total:.0%} of all rows repeat another row of their part: intervals are computed over clusters, not rows.")
    for name, examples in splits.items():
        spare = len(examples) - len({example.id for example in examples})
        if spare:
            said.append(f"{spare:,} rows of {name} share an id with another row.")
    cut = report["truncation"]
    if cut and cut["over"]:
        long = f"{cut['over']:,} rows ({cut['share']:.1%}) exceed the context of {cut['context']} tokens and will be cut"
        said.append(f"{long}; the longest has {cut['longest']:,}.")
    if report["tokens_per_word"] and report["tokens_per_word"] > 3:
        said.append(f"The tokenizer needs {report['tokens_per_word']:.1f} tokens per word: domain words break to pieces; consider base.vocabulary.extend.")
    return said


def _label_warnings(report: Mapping[str, Any], task: Task) -> list[str]:
    said = []
    torn = report["conflicts"]
    ceiling = torn["ceiling_accuracy"] if torn["ceiling_accuracy"] is not None else torn["ceiling_r2"]
    if torn["inputs"] and ceiling is not None and task.kind != "generate":
        score = "accuracy" if torn["ceiling_accuracy"] is not None else "R²"
        said.append(f"{torn['inputs']:,} inputs ({torn['rows']:,} rows) carry different labels: no model can exceed {ceiling:.3f} {score}.")
    doubt = report["label_noise"]
    if doubt and doubt["share"] > 0.05:
        said.append(
            f"About {doubt['share']:.0%} of the labels look wrong to a linear model that is right {doubt['accuracy']:.0%} of the time "
            f"({doubt['suspected']:,} suspects among {doubt['sampled']:,} rows)."
        )
    taught, *others = report["balances"].items() or [("", {})]
    for name, counts in others:
        unseen = [label for label, rows in counts.items() if rows and not taught[1].get(label)]
        if unseen:
            said.append(f"{len(unseen)} labels of {name} never occur in {taught[0]}: {', '.join(unseen[:SHOWN])}: they cannot be learned.")
    filled = [rows for rows in taught[1].values() if rows]
    if len(filled) > 1 and max(filled) > 20 * min(filled):
        said.append(f"The commonest label of {taught[0]} has {max(filled):,} rows, the rarest {min(filled):,}: accuracy hides the rare ones; use macro-F1.")
    absent = [label for label in task.labels if not taught[1].get(label)] if taught[1] else []
    if absent:
        said.append(f"{len(absent)} labels of the task have no row in {taught[0]}: {', '.join(absent[:SHOWN])}.")
    return said


def _row(splits: Mapping[str, Sequence[Example]], row: int) -> dict[str, Any]:
    """The row with a number over all parts."""
    for name, examples in splits.items():
        if row < len(examples):
            return shown(examples[row], name, row)
        row -= len(examples)
    raise IndexError(row)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _label_text(label: Any) -> str:
    return ("|".join(label) if isinstance(label, tuple) else str(label))[:CUT]
