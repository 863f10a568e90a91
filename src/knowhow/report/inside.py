"""Where the skill lives: a map of parts by what the answers lose without them, the layer in which answers appear, head roles, sinks; each with its control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report.charts import ACCENT, OTHER, forest, grid
from knowhow.report.numbers import decimal, ends, items, number, percent, span
from knowhow.report.parts import Figure, Key, Section, Table
from knowhow.report.read import Run
from knowhow.report.text import clean

ROLES = {"previous": "previous token", "duplicate": "duplicate token", "induction": "induction", "sink": "sink"}
FLOORS = {"previous": 0.4, "duplicate": 0.4, "induction": 0.4, "sink": 0.3}
"""The scores from which a head has a role; those of explain/heads.py."""
CELLS, LAYERS = 4096, 256
LEAD = (
    "Each part was made to say the same everywhere (its mean over the texts), and the specialist was asked again. Beside it stands the same part moved as far "
    "in a random direction: a part counts only where the answers lose more than that."
)


def inside(run: Run) -> Section:
    """Map, lens, roles and stream; nothing where the file has no map."""
    told = run.get("inside")
    cells = [row for row in items(told, "map")[:CELLS] if isinstance(row, Mapping) and number(row, "fall") is not None and number(row, "layer") is not None]
    if not cells:
        return Section(missing=clean(told.get("why") or "explain/inside.json holds no map of parts", 300))
    figures = (_map(cells, told), *_lens(told))
    return Section(lead=LEAD, figures=figures, tables=(*_claims(told), _parts(cells), *_roles(told), *_stream(told)))


def layer_name(row: Mapping[str, Any]) -> str:
    return f"layer {number(row, 'layer') or 0:.0f}"


def part_name(row: Mapping[str, Any]) -> str:
    kind = clean(row.get("part", ""), 12)
    return f"head {number(row, 'head') or 0:.0f}" if kind == "head" else {"attn": "attention", "mlp": "MLP"}.get(kind, kind)


def _map(cells: list[Mapping[str, Any]], told: Mapping[str, Any]) -> Figure:
    top = max(max(number(row, "fall") or 0.0 for row in cells), 1e-9)
    rows = [
        {
            "row": layer_name(row),
            "column": part_name(row).replace("head ", "h"),
            "share": min(max(number(row, "fall") or 0.0, 0.0) / top, 1.0),
            "text": decimal(number(row, "fall"), 1),
            "label": f"{decimal(number(row, 'fall'), 2)} ({span(number(row, 'low'), number(row, 'high'))}); random {decimal(number(row, 'control'), 2)}",
            "colour": ACCENT if row.get("supported") is True else OTHER,
        }
        for row in sorted(cells, key=lambda row: number(row, "layer") or 0.0)
    ]
    best = max(cells, key=lambda row: number(row, "fall") or 0.0)
    answers, groups = (decimal(number(told, key), 0) for key in ("answers", "groups"))
    sentence = (
        f"What {answers} right answers ({groups} groups of twins) lose without a part, in nats. Most at the {part_name(best)} of {layer_name(best)}: "
        f"{decimal(number(best, 'fall'), 1)}, and {decimal(number(best, 'control'), 1)} when moved as far at random."
    )
    keys = (Key("accent", "more than the random change, at 5% among all parts (sign-flip test, Holm)"), Key("", "not supported"))
    return Figure("inside-map", sentence, grid(rows, "layer", "part"), keys=keys)


def _lens(told: Mapping[str, Any]) -> tuple[Figure, ...]:
    layers = [row for row in items(told, "lens")[:LAYERS] if isinstance(row, Mapping) and number(row, "value") is not None]
    rows = []
    for row in layers:
        value = number(row, "value") or 0.0
        label = f"{decimal(value, 2)} {span(number(row, 'low'), number(row, 'high'))}"
        rows.append(
            {
                "name": f"after {layer_name(row)}",
                "value": value,
                "short": decimal(value, 1),
                "label": label,
                "colour": ACCENT if value > 0 else OTHER,
                **ends(row, value),
            }
        )
    if not rows:
        return ()
    below = [at for at, row in enumerate(rows) if float(str(row["value"])) <= 0]
    stands = rows[below[-1] + 1 if below else 0]["name"] if not below or below[-1] + 1 < len(rows) else "after no layer"
    sentence = f"Logit lens: the margin of the answer if a layer were the last, mean over answers. On average the answer stands {stands}."
    return (Figure("inside-lens", sentence, forest(rows, "margin in nats", reference=(0.0, "given")), wide=False),)


def _claims(told: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = tuple(
        (
            clean(row.get("claim", ""), 300),
            decimal(number(row, "effect"), 2),
            decimal(number(row, "control"), 2),
            span(number(row, "interval", "low"), number(row, "interval", "high")),
            clean(row.get("verdict", ""), 20) if row.get("verdict") == "supported" else f"not supported ({clean(row.get('verdict', ''), 20)})",
        )
        for row in items(told, "findings")[:100]
        if isinstance(row, Mapping)
    )
    note = "The part was chosen on every other group of answers (a text and its twins are one group) and tested on the rest."
    columns = ("claim", "found", "random change", "difference, 95% interval", "verdict")
    return (Table("What was claimed and tested", columns, rows, frozenset({1, 2}), note),) if rows else ()


def _parts(cells: list[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            f"{part_name(row)} of {layer_name(row)}",
            decimal(number(row, "fall"), 2),
            span(number(row, "low"), number(row, "high")),
            decimal(number(row, "control"), 2),
            percent(number(row, "lost")),
            percent(number(row, "control_lost")),
        )
        for row in sorted(cells, key=lambda row: -(number(row, "fall") or 0.0))[:60]
    )
    columns = ("part", "nats lost", "95% interval", "random", "answers lost", "random")
    return Table("Parts, the strongest first", columns, rows, frozenset({1, 3, 4, 5}))


def _roles(told: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = []
    for row in items(told, "heads")[:CELLS]:
        scores = {name: number(row, name) or 0.0 for name in ROLES}
        held = [name for name in ROLES if scores[name] >= FLOORS[name]]
        if isinstance(row, Mapping) and held:
            role = ", ".join(ROLES[name] for name in held)
            rows.append((f"head {number(row, 'head') or 0:.0f} of {layer_name(row)}", role, *(decimal(scores[name], 2) for name in ROLES)))
    note = (
        "Mean share of attention: to the token before, to earlier copies of the token, to what followed them (on repeated random tokens), to the first token. "
        "A role is named from .4 on, a sink from .3. That a head attends so does not say that answers need it: see the map."
    )
    columns = ("head", "role", *ROLES.values())
    if not items(told, "heads"):
        return ()
    found = tuple(rows) or (("none", "no head reaches a threshold", *["" for _ in ROLES]),)
    return (Table("What single heads look at", columns, found, frozenset(range(2, 6)), note),)


def _stream(told: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = tuple(
        (layer_name(row), decimal(number(row, "sink"), 3), decimal(number(row, "kurtosis"), 1), decimal(number(row, "massive"), 0))
        for row in items(told, "stream")[:LAYERS]
        if isinstance(row, Mapping)
    )
    note = (
        "Sink: mean attention to the first token. Kurtosis of the stream after the layer: 3 is normal, large means outliers that low bits would clip. "
        "Massive: values above 100 and 1,000 times the median."
    )
    return (Table("Sinks and massive activations", ("layer", "sink", "kurtosis", "massive activations"), rows, frozenset({1, 2, 3}), note),) if rows else ()
