"""The figure of a law as SVG: what it predicts beside what was measured, a panel a quantity.

Points come as rows {quantity, control (empty for the law's own runs), experiment, site, seed, value, low, high, measured}; numbers or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from knowhow.report.text import clean, clean_rows

Row = Mapping[str, Any]
WIDTH, ROW_HEIGHT, SIDE = 420, 24, 300
OWN, CONTROL, INK, BAND = "#1f5fa8", "#b8322a", "#333333", "#8a8a8a"
FEW_ROWS = 6
"""Sites of a quantity that still get a row each; more of them are drawn as measured against predicted."""

WIDE = 30.0
"""Ratio of the largest to the smallest number from which an axis is logarithmic."""

PANELS = 6
"""Quantities that are drawn at most; the table has the rest."""


def svg(points: Sequence[Row]) -> str:
    """The figure; empty when nothing was measured. The same points give the same text."""
    drawn = [point for point in clean_rows(points) if point["measured"] is not None and point["value"] is not None]
    quantities = list(dict.fromkeys(point["quantity"] for point in drawn if not point["control"]))[:PANELS]
    if not quantities:
        return ""
    panels = [panel([point for point in drawn if point["quantity"] == quantity], quantity) for quantity in quantities]
    chart = (
        alt.vconcat(*panels, background="white", padding=8)
        .configure_view(stroke="#dddddd")
        .configure_concat(spacing=22)
        .configure_axis(gridColor="#eeeeee", tickCount=6)
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def panel(points: Sequence[Row], quantity: str) -> alt.LayerChart:
    own = [point for point in points if not point["control"]]
    places = {(point["experiment"], point["site"]) for point in own}
    many = len(places) > FEW_ROWS
    if many and len({point["value"] for point in own}) > 2:
        return against(points, quantity)
    return forest([{**point, "row": label(point, alone=many or len({site for _, site in places}) == 1)} for point in points], quantity)


def label(point: Row, *, alone: bool) -> str:
    """The name of a row; `alone`: sites share one."""
    first = f"control: {point['control']}" if point["control"] else f"experiment {point['experiment']}"
    return clean(first if alone else f"{first}, {point['site']}", 48)


def forest(points: Sequence[Row], quantity: str) -> alt.LayerChart:
    """A row per experiment or control: band of what is allowed, tick at what is predicted, a mark per seed at what was measured."""
    scale = axis(points)
    ends = scale.domain
    rows = [{**point, **_clipped(point, ends)} for point in points]
    order = list(dict.fromkeys(row["row"] for row in sorted(rows, key=lambda row: bool(row["control"]))))
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labelLimit=330, domain=False, ticks=False, grid=False))
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    colour = alt.condition("datum.control", alt.value(BAND), alt.value(OWN))
    x = alt.X("measured:Q", scale=scale, title="measured")
    layers = [
        base.mark_bar(height=ROW_HEIGHT - 8, opacity=0.16).encode(x=alt.X("low:Q", scale=scale, title="measured"), x2="high:Q", color=colour),
        base.mark_tick(thickness=2, size=ROW_HEIGHT - 8, color=INK).encode(x=alt.X("value:Q", scale=scale, title="measured")),
        base.transform_filter("!datum.control").mark_circle(size=46, opacity=0.85, color=OWN).encode(x=x),
        base.transform_filter("datum.control").mark_point(shape="cross", angle=45, size=60, filled=True, color=CONTROL).encode(x=x),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=ROW_HEIGHT * len(order), title=_title(quantity))


def against(points: Sequence[Row], quantity: str) -> alt.LayerChart:
    """Measured against predicted, one mark a prediction and seed; the line is where they agree, the band what is allowed."""
    scale = axis(points)
    low, high = scale.domain
    rows = sorted(({**point, **_clipped(point, scale.domain)} for point in points), key=lambda row: (bool(row["control"]), row["value"]))
    data = alt.Chart(alt.Data(values=rows))
    line = alt.Chart(alt.Data(values=[{"value": low, "measured": low}, {"value": high, "measured": high}]))
    x, y = alt.X("value:Q", scale=scale, title="predicted"), alt.Y("measured:Q", scale=scale, title="measured")
    layers = [
        line.mark_line(color=INK, strokeWidth=1).encode(x=x, y=y),
        data.transform_filter("!datum.control").mark_rule(strokeWidth=7, opacity=0.1, color=OWN).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        data.transform_filter("datum.control").mark_point(shape="cross", angle=45, size=44, filled=True, opacity=0.6, color=CONTROL).encode(x=x, y=y),
        data.transform_filter("!datum.control").mark_circle(size=40, opacity=0.85, color=OWN).encode(x=x, y=y),
    ]
    return alt.layer(*layers).properties(width=SIDE, height=SIDE, title=_title(quantity))


def axis(points: Sequence[Row]) -> alt.Scale:
    """Linear, or logarithmic where the numbers are of different orders and none is negative; the ends leave room."""
    numbers = [float(point[name]) for point in points for name in ("measured", "value", "low", "high") if point[name] is not None]
    positive = [number for number in numbers if number > 0]
    if positive and min(numbers) >= 0 and max(positive) / min(positive) > WIDE:
        return alt.Scale(type="log", domain=[min(positive) / 2, max(positive) * 2], nice=False, clamp=True)
    low, high = min(numbers), max(numbers)
    room = 0.06 * (high - low or abs(high) or 1.0)
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False, clamp=True)


def _clipped(point: Row, ends: Sequence[float]) -> dict[str, float]:
    """Numbers inside the plot; an open end of an interval is its edge."""
    given = {"low": ends[0], "high": ends[1], **{name: point[name] for name in ("value", "measured", "low", "high") if point[name] is not None}}
    return {name: min(max(float(value), ends[0]), ends[1]) for name, value in given.items()}


def _title(quantity: str) -> alt.TitleParams:
    return alt.TitleParams(clean(quantity, 110), anchor="start", fontSize=12, fontWeight="normal", color=INK)
