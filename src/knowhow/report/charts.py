"""Charts as data: Vega-Lite specs. Colours are CSS variables, so one spec serves light, dark and paper; widths follow the page.

Rows hold plain numbers; their strings pass `clean_rows` on the way in. Configuration that all charts share lives in page.js.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from knowhow.report.text import clean_rows

ACCENT, OTHER, INK, QUIET, LINE, PAPER, WARN = (f"var(--{name})" for name in ("accent", "other", "ink", "ink-3", "line", "paper", "warn"))
Row = Mapping[str, Any]
Layer = alt.Chart | alt.LayerChart
ROW_HEIGHT = 40
CHECKED = False


def spec(layers: Sequence[Layer], height: int, **tables: Sequence[Row]) -> dict[str, Any]:
    """Layers as one chart that fills the width of its place and is `height` pixels high; `tables` are the rows that its layers name.

    Altair's own check against its schema takes half of the time of a report, so that only the tests ask for it (CHECKED)."""
    made = alt.layer(*layers).properties(width="container", height=height).to_dict(validate=CHECKED)
    made.pop("config", None)
    return made | {"datasets": {name: clean_rows(rows) for name, rows in tables.items()}}


def on(name: str = "rows") -> alt.Chart:
    """A chart over the table of that name."""
    return alt.Chart(alt.NamedData(name=name))


def linear(values: Sequence[float], *, pad: float = 0.08, floor: float | None = None, ceiling: float | None = None) -> alt.Scale:
    """A linear scale round all values, with room for labels at both ends."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * pad
    ends = [low - room, high + room]
    return alt.Scale(domain=[ends[0] if floor is None else max(ends[0], floor), ends[1] if ceiling is None else min(ends[1], ceiling)], nice=False, zero=False)


def rows_axis(rows: Sequence[Row], limit: int = 220) -> alt.Y:
    """One band per row, in the order given."""
    order = list(dict.fromkeys(row["name"] for row in clean_rows(rows)))
    return alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=limit, domain=False, ticks=False, grid=False, labelPadding=10))


def reference_line(title: str) -> list[Layer]:
    """A dashed vertical line with its name above the plot, where the table `reference` {at, label} says; `title` is that of the axis it shares."""
    base = on("reference").encode(x=alt.X("at:Q", title=title))
    rule = base.mark_rule(strokeDash=[4, 4], strokeWidth=1.2, color=QUIET)
    return [rule, base.mark_text(fontSize=11, color=QUIET).encode(text="label:N", y=alt.value(-11))]


def halo(base: alt.Chart, **place: Any) -> list[Layer]:
    """Text with a rim of the paper's colour, so that lines behind it do not cross it."""
    rim = base.mark_text(fontSize=12.5, fill=PAPER, stroke=PAPER, strokeWidth=4, strokeJoin="round", **place)
    return [rim, base.mark_text(fontSize=12.5, fill=INK, **place)]


def forest(rows: Sequence[Row], title: str, *, reference: tuple[float, str] | None = None) -> dict[str, Any]:
    """Point and interval per row {name, value, low, high, short, label, colour}; `reference` is a dashed line (where, what)."""
    values = [float(row[key]) for row in rows for key in ("low", "high", "value")] + ([reference[0]] if reference else [])
    scale = linear(values, pad=0.12)
    x = alt.X("value:Q", scale=scale, title=title)
    base = on().encode(y=rows_axis(rows), tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title=title)])
    colour = alt.Color("colour:N", scale=None)
    layers: list[Layer] = reference_line(title) if reference else []
    layers += [
        base.mark_rule(strokeWidth=3, strokeCap="round").encode(x=alt.X("low:Q", scale=scale, title=title), x2="high:Q", color=colour),
        base.mark_circle(size=120, opacity=1).encode(x=x, color=colour),
        *halo(base.encode(x=x, text="short:N"), dy=-14),
    ]
    return spec(layers, ROW_HEIGHT * len(rows) + 10, rows=rows, reference=[{"at": reference[0], "label": reference[1]}] if reference else [])


def grouped(rows: Sequence[Row], title: str) -> dict[str, Any]:
    """Several models on each row {name, model, value, low, high, label, colour}: points with intervals, one under the other."""
    models = list(dict.fromkeys(row["model"] for row in clean_rows(rows)))
    scale = linear([float(row[key]) for row in rows for key in ("low", "high", "value")])
    offset = alt.YOffset("model:N", sort=models, scale=alt.Scale(paddingOuter=0.6))
    tooltip = [alt.Tooltip("name:N", title=" "), alt.Tooltip("model:N", title="model"), alt.Tooltip("label:N", title=title)]
    base = on().encode(y=rows_axis(rows), yOffset=offset, color=alt.Color("colour:N", scale=None), tooltip=tooltip)
    layers: list[Layer] = [
        base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x=alt.X("low:Q", scale=scale, title=title), x2="high:Q"),
        base.mark_circle(size=80, opacity=1).encode(x=alt.X("value:Q", scale=scale, title=title)),
    ]
    height = (18 * len(models) + 16) * len({row["name"] for row in rows})
    return spec(layers, height, rows=rows)


def bars(rows: Sequence[Row], title: str, *, ticks: Sequence[Row] = (), zero_one: bool = False, height: int = 28) -> dict[str, Any]:
    """Horizontal bars {name, value, label, low?, high?, colour}; `ticks` {name, value, label} mark another model on the same rows."""
    top = max([float(row.get("high") or row["value"]) for row in rows] + [float(tick["value"]) for tick in ticks] + [1e-12])
    x = alt.X("value:Q", scale=alt.Scale(domain=[0, 1 if zero_one else top * 1.15], nice=False), title=title)
    y = rows_axis(rows, 180)
    base = on().encode(y=y, tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title=title)])
    layers: list[Layer] = [base.mark_bar(cornerRadiusEnd=3, height={"band": 0.62}).encode(x=x, color=alt.Color("colour:N", scale=None))]
    if any(row.get("low") is not None for row in rows):
        layers.append(base.mark_rule(strokeWidth=1.6, color=INK).encode(x="low:Q", x2="high:Q"))
    else:
        layers.append(base.mark_text(align="left", dx=6, fontSize=11.5, color=INK).encode(x=x, text="label:N"))
    if ticks:
        marks = on("ticks").mark_tick(thickness=3, color=WARN, size=height * 0.74)
        layers.append(marks.encode(y=y, x=x, tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title="baseline")]))
    return spec(layers, height * len(rows) + 6, rows=rows, ticks=ticks)


def stacked(rows: Sequence[Row], title: str, height: int = 30) -> dict[str, Any]:
    """Bars made of parts {name, part, value, label, colour, order}, each row its own sum of 1."""
    x = alt.X("value:Q", stack="normalize", title=title, axis=alt.Axis(format="%", grid=False))
    tooltip = [alt.Tooltip("name:N", title=" "), alt.Tooltip("part:N", title="class"), alt.Tooltip("label:N", title="rows")]
    chart = on().mark_bar(stroke=PAPER, strokeWidth=1, height={"band": 0.7})
    names = len({row["name"] for row in rows})
    return spec(
        [chart.encode(x=x, y=rows_axis(rows), color=alt.Color("colour:N", scale=None), order="order:Q", tooltip=tooltip)], height * names + 6, rows=rows
    )


def heatmap(labels: Sequence[str], matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Confusion matrix: each row is a true class, shade is the share of that row; counts are written in while they fit."""
    cells = []
    for gold, counts in zip(labels, matrix):
        total = sum(counts) or 1.0
        for guess, n in zip(labels, counts):
            share = n / total
            cells.append(
                {"gold": gold, "guess": guess, "n": n, "share": share, "label": f"{n:,.0f}" if n else "", "text": f"{n:,.0f} ({share:.0%} of the row)"}
            )
    order = [row["gold"] for row in clean_rows([{"gold": label} for label in labels])]
    axis = {"domain": False, "ticks": False, "grid": False, "labelLimit": 150}
    x = alt.X("guess:N", sort=order, title="predicted", axis=alt.Axis(orient="top", labelAngle=-38, labelAlign="left", **axis))
    base = on().encode(x=x, y=alt.Y("gold:N", sort=order, title="true", axis=alt.Axis(**axis)))
    tooltip = [alt.Tooltip("gold:N", title="true"), alt.Tooltip("guess:N", title="predicted"), alt.Tooltip("text:N", title="rows")]
    shade = alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None)
    layers: list[Layer] = [base.mark_rect(fill=ACCENT, stroke=PAPER, strokeWidth=2, cornerRadius=3).encode(fillOpacity=shade, tooltip=tooltip)]
    if len(labels) <= 14:
        ink = alt.condition("datum.share > 0.5", alt.value(PAPER), alt.value(INK))
        layers.append(base.mark_text(fontSize=11.5).encode(text="label:N", color=ink))
    return spec(layers, max(120, (34 if len(labels) <= 14 else 18) * len(labels)), rows=cells)


def grid(rows: Sequence[Row], row_title: str, column_title: str) -> dict[str, Any]:
    """Cells {row, column, share, label, text, colour}: shade is `share` (0 to 1), `text` stands in the cell, `label` is told on hover."""
    ordered = [list(dict.fromkeys(cell[key] for cell in clean_rows(rows))) for key in ("row", "column")]
    axis = {"domain": False, "ticks": False, "grid": False, "labelLimit": 150}
    x = alt.X("column:N", sort=ordered[1], title=column_title, axis=alt.Axis(orient="top", labelAngle=0, **axis))
    base = on().encode(x=x, y=alt.Y("row:N", sort=ordered[0], title=row_title, axis=alt.Axis(**axis)))
    tooltip = [alt.Tooltip("row:N", title=row_title), alt.Tooltip("column:N", title=column_title), alt.Tooltip("label:N", title="nats")]
    shade = alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.05, 1]), legend=None)
    layers: list[Layer] = [
        base.mark_rect(stroke=PAPER, strokeWidth=2, cornerRadius=3).encode(fillOpacity=shade, fill=alt.Fill("colour:N", scale=None), tooltip=tooltip)
    ]
    if len(ordered[1]) <= 14:
        ink = alt.condition("datum.share > 0.5", alt.value(PAPER), alt.value(INK))
        layers.append(base.mark_text(fontSize=11.5).encode(text="text:N", color=ink))
    return spec(layers, max(80, 30 * len(ordered[0])), rows=rows)
