"""Charts of one quantity against another: learning curves, reliability, risk–coverage. See charts.py for how specs are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from knowhow.report.charts import ACCENT, INK, LINE, OTHER, QUIET, WARN, Layer, Row, data, linear, spec

POINTS = 240


def thin(rows: Sequence[tuple[float, float]], points: int = POINTS) -> list[dict[str, float]]:
    """(x, y) pairs in order of x → at most `points` buckets {x, value, low, high}: the mean, and the smallest and largest of each bucket."""
    size = max(1, -(-len(rows) // points))
    buckets = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        {"x": bucket[-1][0], "value": sum(y for _, y in bucket) / len(bucket), "low": min(y for _, y in bucket), "high": max(y for _, y in bucket)}
        for bucket in buckets
    ]


def learning(
    train: Sequence[Row], valid: Sequence[Row], title: str, *, phases: Sequence[Row] = (), best: Row | None = None, height: int = 240
) -> dict[str, Any]:
    """Training (thin band and line) and validation (points) of one quantity against steps; `phases` {x, label} are dashed lines where one begins."""
    values = [float(row[key]) for row in train for key in ("low", "high")] + [float(row["value"]) for row in valid]
    y = alt.Y("value:Q", title=title, scale=linear(values, pad=0.05), axis=alt.Axis(tickCount=5))
    x = alt.X("x:Q", title="optimizer step", axis=alt.Axis(grid=False, tickMinStep=1, format=",d", tickCount=8))
    layers: list[Layer] = []
    for phase in phases:
        base = alt.Chart(data([phase])).encode(x=x)
        layers += [
            base.mark_rule(strokeDash=[4, 4], color=LINE),
            base.mark_text(align="left", dx=5, fontSize=11, color=QUIET).encode(text="label:N", y=alt.value(8)),
        ]
    if train:
        base = alt.Chart(data(train)).encode(x=x)
        layers += [
            base.mark_area(color=OTHER, opacity=0.22).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
            base.mark_line(color=OTHER, strokeWidth=1.8).encode(y=y),
        ]
    if valid:
        line = alt.Chart(data(valid)).mark_line(color=ACCENT, strokeWidth=2.2, point={"color": ACCENT, "size": 46, "filled": True})
        layers.append(line.encode(x=x, y=y, tooltip=[alt.Tooltip("x:Q", title="step"), alt.Tooltip("value:Q", title=title, format=".4f")]))
    if best is not None:
        ring = alt.Chart(data([best]))
        layers.append(ring.mark_point(color=WARN, size=170, strokeWidth=2, filled=False).encode(x="x:Q", y=y))
        layers.append(ring.mark_text(dy=-16, fontSize=11.5, color=INK).encode(x="x:Q", y=y, text="label:N"))
    return spec(layers, height)


def reliability(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    """Accuracy against confidence {confidence, accuracy, low, high, n}: grey before scaling, coloured after; the diagonal is perfect."""
    unit = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("confidence:Q", scale=unit, title="how sure it says it is", axis=alt.Axis(format="%", tickCount=5))
    y = alt.Y("accuracy:Q", scale=unit, title="how often it is right", axis=alt.Axis(format="%", tickCount=5))
    diagonal = alt.Chart(data([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}])).mark_line(strokeDash=[4, 4], strokeWidth=1.2, color=QUIET)
    layers: list[Layer] = [diagonal.encode(x=x, y=y)]
    for rows, colour, dash in ((before, OTHER, [5, 3]), (after, ACCENT, [1, 0])):
        if not rows:
            continue
        tooltip = [
            alt.Tooltip("confidence:Q", title="confidence", format=".1%"),
            alt.Tooltip("accuracy:Q", title="right", format=".1%"),
            alt.Tooltip("n:Q", title="rows"),
        ]
        base = alt.Chart(data(rows)).encode(x=x, tooltip=tooltip)
        if rows is after:
            layers.append(base.mark_rule(color=colour, strokeWidth=1.6, opacity=0.6).encode(y=alt.Y("low:Q", scale=unit), y2="high:Q"))
        layers.append(base.mark_line(color=colour, strokeWidth=2, strokeDash=dash).encode(y=y))
        size = alt.Size("n:Q", scale=alt.Scale(range=[24, 200]), legend=None)
        layers.append(base.mark_circle(color=colour, opacity=1).encode(y=y, size=size))
    return spec(layers, 330)


def risk_coverage(rows: Sequence[Row], *, chosen: Row | None = None, target: float | None = None) -> dict[str, Any]:
    """Error rate among the answered {coverage, risk} as less and less is answered; `chosen` {coverage, risk, label} is where it abstains."""
    risks = [float(row["risk"]) for row in rows] + ([target] if target is not None else []) + ([float(chosen["risk"])] if chosen else [])
    x = alt.X("coverage:Q", scale=alt.Scale(domain=[0, 1], nice=False), title="share of inputs answered", axis=alt.Axis(format="%", tickCount=5))
    y = alt.Y(
        "risk:Q",
        scale=alt.Scale(domain=[0, max(max(risks) * 1.15, 0.02)], nice=False),
        title="error rate of the answers",
        axis=alt.Axis(format="~%", tickCount=5),
    )
    tooltip = [alt.Tooltip("coverage:Q", title="answered", format=".1%"), alt.Tooltip("risk:Q", title="error rate", format=".2%")]
    base = alt.Chart(data(rows)).encode(x=x, y=y, tooltip=tooltip)
    layers: list[Layer] = [base.mark_area(color=ACCENT, opacity=0.12), base.mark_line(color=ACCENT, strokeWidth=2.2)]
    if target is not None:
        goal = alt.Chart(data([{"risk": target, "label": f"stated risk {target:.1%}"}])).encode(y=y)
        layers += [
            goal.mark_rule(strokeDash=[4, 4], color=QUIET),
            goal.mark_text(align="right", dx=-4, dy=-7, fontSize=11, color=INK).encode(text="label:N", x=alt.value("width")),
        ]
    if chosen is not None:
        point = alt.Chart(data([chosen])).encode(x=x, y=y)
        layers += [point.mark_circle(color=WARN, size=130, opacity=1), point.mark_text(dy=-14, align="right", fontSize=12, color=INK).encode(text="label:N")]
    return spec(layers, 330)
