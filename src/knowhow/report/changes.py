"""What changed from base to specialist: which parts moved by weights, what putting the base's part back does, which heads took other roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report.charts import ACCENT, OTHER, forest, grid
from knowhow.report.numbers import decimal, ends, items, number, part, percent, span
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.read import Run
from knowhow.report.text import clean

CELLS, LAYERS, SHOWN = 2048, 256, 40
LEAD = (
    "Attention, MLPs, embedding and last norm: the base's weights of one part were put back into the specialist, all else left as it is. Heads: the base's "
    "activations of one head were put in, which carry whatever changed up to there. Beside each the same change in random directions, of equal size, on the "
    "first half of the answers: a part counts only where the base's does more harm than that."
)
NAMES = {"attn": "attention", "mlp": "MLP", "embed": "embedding", "final": "last norm", "head": "head"}


def changes(run: Run) -> Section:
    """Map, curve, roles and matrices; nothing for a run without a base of the same shape."""
    told = run.get("diff")
    cells = [row for row in items(told, "components")[:CELLS] if isinstance(row, Mapping) and number(row, "effect", "drop", "value") is not None]
    if not cells:
        return Section(missing=clean(told.get("why") or "explain/diff.json holds no parts", 300))
    tiles = (
        Tile("specialist", decimal(number(told, "specialist", "value"), 2), "margin of the right answers, nats"),
        Tile("base with its head", decimal(number(told, "base", "value"), 2), _ends(part(told, "base"))),
        Tile("what training gave", decimal(number(told, "gap", "value"), 2), _ends(part(told, "gap"))),
    )
    figures = (_map(cells), *_curve(told))
    return Section(lead=LEAD, tiles=tiles, figures=figures, tables=(_parts(cells), *_roles(told), *_matrices(told)))


def _ends(row: Mapping[str, Any]) -> str:
    return f"95% interval {span(number(row, 'low'), number(row, 'high'))}"


def _layer(row: Mapping[str, Any]) -> str:
    layer = number(row, "layer")
    return "outside" if layer is None else f"layer {layer:.0f}"


def _column(row: Mapping[str, Any]) -> str:
    kind, head = clean(row.get("kind", ""), 20), number(row, "head")
    return f"h{head:.0f}" if kind == "head" and head is not None else NAMES.get(kind, kind)


def _held(row: Mapping[str, Any]) -> bool:
    low = number(row, "effect", "beyond", "low")
    return low is not None and low > 0


def _map(cells: list[Mapping[str, Any]]) -> Figure:
    within = [row for row in cells if number(row, "layer") is not None]
    drops = [number(row, "effect", "drop", "value") or 0.0 for row in within]
    top = max([*drops, 1e-9])
    rows = [
        {
            "row": _layer(row),
            "column": _column(row),
            "share": min(max(drop, 0.0) / top, 1.0),
            "text": decimal(drop, 1),
            "label": f"{decimal(drop, 2)} ({span(number(row, 'effect', 'drop', 'low'), number(row, 'effect', 'drop', 'high'))}); "
            f"random {decimal(number(row, 'effect', 'control', 'value'), 2)}; weights moved {percent(number(row, 'size', 'relative'))}",
            "colour": ACCENT if _held(row) else OTHER,
        }
        for row, drop in sorted(zip(within, drops, strict=True), key=lambda pair: number(pair[0], "layer") or 0.0)
    ]
    best = max(cells, key=lambda row: number(row, "effect", "drop", "value") or 0.0)
    sentence = (
        f"Nats that the right answers lose when a part is put back to the base's. Most: {_column(best)}, {_layer(best)} "
        f"({decimal(number(best, 'effect', 'drop', 'value'), 1)}; random {decimal(number(best, 'effect', 'control', 'value'), 1)})."
    )
    keys = (Key("accent", "more than the random change, the whole interval"), Key("", "not supported"))
    return Figure("changes-map", sentence, grid(rows, "layer", "part"), keys=keys)


def _curve(told: Mapping[str, Any]) -> tuple[Figure, ...]:
    """How much of the gain the base has when it is given the parts one after the other, most effective first."""
    curves = [row for row in items(told, "curves") if isinstance(row, Mapping)]
    chosen = next((row for row in curves if "effect" in str(row.get("order", ""))), None)
    random = next((row for row in curves if "random" in str(row.get("order", ""))), None)
    kept = items(chosen, "kept")[:LAYERS]
    rows = []
    drawn = {count: number(one, "value") for count, one in zip(items(random, "counts"), items(random, "kept"))}
    for count, one in zip(items(chosen, "counts"), kept):
        value = number(one, "value")
        if value is not None:
            label = f"{percent(value)} {span(number(one, 'low'), number(one, 'high'))}; in random order {percent(drawn.get(count))}"
            rows.append({"name": f"{count} parts", "value": value, "short": percent(value), "label": label, "colour": ACCENT, **ends(one, value)})
    if not rows:
        return ()
    needed = number(chosen, "needed")
    said = "no number tried keeps 90% of it" if needed is None else f"{needed:.0f} of {len(items(chosen, 'names'))} keep 90% of it"
    half = next((count for count in drawn if count in {len(items(chosen, "names")) // 2, needed}), None)
    beside = f" As many in random order keep {percent(drawn[half])}." if half is not None else ""
    sentence = (
        f"The base given the specialist's parts, most effective first: share of what training gave. {said}.{beside} "
        "The order was measured on these very answers, which flatters it."
    )
    return (Figure("changes-curve", sentence, forest(rows, "share of the gain", reference=(1.0, "all")), wide=False),)


def _parts(cells: list[Mapping[str, Any]]) -> Table:
    ordered = sorted(cells, key=lambda row: -(number(row, "effect", "drop", "value") or 0.0))[:SHOWN]
    rows = tuple(
        (
            f"{_column(row)}, {_layer(row)}",
            decimal(number(row, "effect", "drop", "value"), 2),
            span(number(row, "effect", "drop", "low"), number(row, "effect", "drop", "high")),
            decimal(number(row, "effect", "control", "value"), 2),
            percent(number(row, "size", "relative")),
            percent(number(row, "size", "share")),
        )
        for row in ordered
    )
    columns = ("part", "nats lost", "95% interval", "random", "weights moved", "share of the change")
    return Table("Parts put back to the base's (of heads the activations)", columns, rows, frozenset({1, 3, 4, 5}))


def _roles(told: Mapping[str, Any]) -> tuple[Table, ...]:
    moved = [row for row in items(part(told, "roles"), "moved") if isinstance(row, Mapping) and row.get("sure") is True][:SHOWN]
    rows = tuple(
        (
            f"head {number(row, 'head') or 0:.0f} of {_layer(row)}",
            clean(row.get("score", ""), 20),
            decimal(number(row, "before"), 2),
            decimal(number(row, "after"), 2),
            span(number(row, "change", "low"), number(row, "change", "high"), sign=True),
        )
        for row in moved
    ) or (("none", "no head's role changed beyond chance", "", "", ""),)
    if not part(told, "roles"):
        return ()
    note = "Changes that hold at 5% among all heads and scores (sign-flip test, Holm) and are at least .05 of attention."
    return (Table("Heads whose role changed", ("head", "score", "base", "specialist", "change, 95% interval"), rows, frozenset({2, 3}), note),)


def _matrices(told: Mapping[str, Any]) -> tuple[Table, ...]:
    found = [row for row in items(told, "weights") if isinstance(row, Mapping) and row.get("head") is None and part(row, "shape")]
    found.sort(key=lambda row: -(number(row, "size", "share") or 0.0))
    rows = tuple(
        (
            clean(row.get("name", ""), 60),
            percent(number(row, "size", "relative")),
            percent(number(row, "size", "share")),
            decimal(number(row, "shape", "stable_rank"), 1),
            decimal(number(row, "shape", "stable_rank_random"), 1),
            decimal(number(row, "shape", "left"), 2),
            decimal(number(row, "shape", "left_random"), 2),
        )
        for row in found[:SHOWN]
    )
    note = "Stable rank: how many directions the update has; alignment: how far its first directions are those of the matrix; random: without structure."
    columns = ("matrix", "moved", "share of the change", "stable rank", "random", "alignment", "random")
    return (Table("Matrices that moved most", columns, rows, frozenset(range(1, 7)), note),) if rows else ()
