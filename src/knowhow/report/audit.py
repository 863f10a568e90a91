"""The data section: duplicates, leakage, conflicts and their ceiling, label noise, truncation, balance, and what tokens cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.report import charts
from knowhow.report.numbers import count, decimal, in_order, items, number, part, percent, plural, words
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.read import Run
from knowhow.report.text import clean, short_names

CLASS_TONES = 8
MOST_CLASSES = 100


def audit(run: Run) -> Section:
    found = run.get("audit")
    rows = part(found, "rows")
    total = sum(number(rows, split) or 0 for split in rows)
    lead = f"{count(total)} rows: {words([f'{count(number(rows, split))} {clean(split, 40)}' for split in in_order(rows)])}." if rows else ""
    figures = (_balance(found), _leakage(found), _vocabulary(run))
    tables = (_examples("Duplicates found", part(found, "duplicates")), _leaking_rows(found), _examples("Labels in doubt", part(found, "label_noise")))
    return Section(
        lead=lead,
        tiles=_tiles(found, total),
        figures=tuple(figure for figure in figures if figure is not None),
        tables=tuple(table for table in tables if table is not None),
        notes=tuple(clean(warning, 400) for warning in items(found, "warnings")[:12]),
    )


def _tiles(found: Mapping[str, Any], total: float) -> tuple[Tile, ...]:
    tiles = (_duplicates_tile(found, total), _leaks_tile(found), _ceiling_tile(found), _noise_tile(found), _cut_tile(found), _words_tile(found))
    return tuple(tile for tile in tiles if tile is not None)


def _duplicates_tile(found: Mapping[str, Any], total: float) -> Tile | None:
    exact, near = number(found, "duplicates", "exact"), number(found, "duplicates", "near")
    share = f"{percent(exact / total)} of all rows; " if exact is not None and total else ""
    return None if exact is None else Tile("exact duplicates", count(exact), f"{share}{count(near)} near duplicates")


def _leaks_tile(found: Mapping[str, Any]) -> Tile | None:
    pairs = part(found, "leakage").values()
    leaks = sum((number(pair, "exact") or 0) + (number(pair, "near") or 0) for pair in pairs)
    return Tile("rows that leak", count(leaks), "between splits, exact and near", "warn" if leaks else "good") if pairs else None


def _ceiling_tile(found: Mapping[str, Any]) -> Tile | None:
    ceiling, conflicts = number(found, "conflicts", "ceiling_accuracy"), number(found, "conflicts", "inputs")
    note = f"{plural(conflicts, 'input')} with conflicting labels"
    return None if ceiling is None else Tile("highest accuracy possible", percent(ceiling), note, "warn" if ceiling < 0.98 else "")


def _noise_tile(found: Mapping[str, Any]) -> Tile | None:
    noise, rows = number(found, "label_noise", "share"), number(found, "label_noise", "suspected")
    return None if noise is None else Tile("labels in doubt", percent(noise), f"{plural(rows, 'row')} by confident learning", "warn" if noise > 0.05 else "")


def _cut_tile(found: Mapping[str, Any]) -> Tile | None:
    over = number(found, "truncation", "share")
    names = (("p50", "half within"), ("p95", "95% within"), ("longest", "longest"))
    lengths = ", ".join(f"{told} {count(length)}" for key, told in names if (length := number(found, "truncation", key)) is not None)
    return None if over is None else Tile("rows cut at the context", percent(over), f"tokens: {lengths}" if lengths else "", "warn" if over > 0.05 else "")


def _words_tile(found: Mapping[str, Any]) -> Tile | None:
    pieces = number(found, "tokens_per_word")
    return None if pieces is None else Tile("tokens per word", decimal(pieces, 2), "with the base's own tokenizer", "warn" if pieces > 2.5 else "")


def balance_parts(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{split: {label: count}}; a flat {label: count} is one split named `all rows`."""
    balance = part(found, "balances") or part(found, "balance")
    nested = {str(split): _counts(value) for split, value in balance.items() if isinstance(value, Mapping)}
    flat = _counts(balance)
    return {split: counts for split, counts in nested.items() if counts} or ({"all rows": flat} if flat else {})


def _counts(value: Mapping[str, Any]) -> dict[str, float]:
    return {str(label): n for label in value if (n := number(value, label)) is not None}


def _balance(found: Mapping[str, Any]) -> Figure | None:
    splits = balance_parts(found)
    if not splits:
        return None
    totals: dict[str, float] = {}
    for counts in splits.values():
        for label, n in counts.items():
            totals[label] = totals.get(label, 0) + n
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    kept = len(labels) if len(labels) <= CLASS_TONES else CLASS_TONES - 1
    names = short_names(labels[:kept])
    groups = [(names[label], (label,)) for label in labels[:kept]] + ([(f"{len(labels) - kept} more", tuple(labels[kept:]))] if kept < len(labels) else [])
    rows = []
    for split in in_order(splits):
        counts = splits[split]
        whole = sum(counts.values()) or 1
        for index, (name, members) in enumerate(groups):
            n = sum(counts.get(label, 0) for label in members)
            rows.append({"name": split, "part": name, "value": n, "label": f"{count(n)} ({n / whole:.1%})", "colour": f"var(--class-{index})", "order": index})
    whole = sum(totals.values()) or 1
    top, bottom = (f"{clean(label, 60)} ({percent(totals[label] / whole)} of the rows)" for label in (labels[0], labels[-1]))
    sentence = f"The largest class is {top}, the smallest {bottom}."
    ordered = [splits[split] for split in in_order(splits)]
    cells = tuple((clean(label, 80), *(count(counts.get(label, 0)) for counts in ordered)) for label in labels[:MOST_CLASSES])
    note = f"{len(labels) - MOST_CLASSES} more classes" if len(labels) > MOST_CLASSES else ""
    table = Table("Rows per class and split", ("class", *in_order(splits)), cells, frozenset(range(1, len(splits) + 1)), note)
    keys = tuple(Key(f"class-{index}", name) for index, (name, _) in enumerate(groups))
    return Figure("balance", sentence, charts.stacked(rows, "share of rows"), table, keys)


def _leakage(found: Mapping[str, Any]) -> Figure | None:
    rows = []
    for pair, leak in list(part(found, "leakage").items())[:8]:
        for kind, colour in (("exact", charts.WARN), ("near", charts.OTHER)):
            n = number(leak, kind) or 0
            rows.append({"name": f"{str(pair).replace('→', ' → ')}, {kind}", "value": n, "label": count(n), "colour": colour})
    leaks = sum(row["value"] for row in rows)
    if not leaks:
        return None
    worst = max(rows, key=lambda row: row["value"])
    sentence = f"{plural(leaks, 'row')} of one split also stand{'s' if leaks == 1 else ''} in another, most of them {clean(worst['name'], 60)}."
    return Figure("leakage", sentence, charts.bars(rows, "rows"), wide=False)


def _vocabulary(run: Run) -> Figure | None:
    before, after, added = (number(run.get("vocabulary"), key) for key in ("before", "after", "words"))
    if not before or not after:
        return None
    rows = [
        {"name": "base tokenizer", "value": before, "label": decimal(before, 1), "colour": charts.OTHER},
        {"name": "extended", "value": after, "label": decimal(after, 1), "colour": charts.ACCENT},
    ]
    told = f"{plural(added, 'new word')} cut{'s' if added == 1 else ''} an example from {decimal(before, 1)} to {decimal(after, 1)} tokens"
    return Figure("vocabulary", f"{told}: {decimal(before / after, 1)} times shorter.", charts.bars(rows, "tokens per example", height=36), wide=False)


def _examples(caption: str, found: Mapping[str, Any]) -> Table | None:
    rows = tuple((_text(example),) for example in items(found, "examples")[:5])
    return Table(caption, ("examples",), rows) if rows else None


def _leaking_rows(found: Mapping[str, Any]) -> Table | None:
    leakage = part(found, "leakage")
    rows = tuple((clean(pair, 60), _text(example)) for pair, leak in leakage.items() for example in items(leak, "examples")[:3])
    return Table("Rows that leak", ("splits", "examples"), rows[:12]) if rows else None


def _text(example: object) -> str:
    """One example of the audit: rows that belong together side by side, anything else as it is."""
    rows = items(example, "rows")
    if rows and all(isinstance(row, Mapping) for row in rows):
        kind = f"{clean(example['kind'], 40)}: " if isinstance(example, Mapping) and "kind" in example else ""
        return kind + " ↔ ".join(f"[{clean(row.get('split', ''), 20)} {clean(row.get('id', ''), 40)}] {clean(row.get('text', ''), 200)}" for row in rows[:3])
    if isinstance(example, Mapping):
        return clean(" · ".join(f"{key}: {clean(value, 160)}" for key, value in example.items()), 500)
    if isinstance(example, Sequence) and not isinstance(example, str):
        return clean(" ↔ ".join(clean(item, 160) for item in example), 500)
    return clean(example, 300)
