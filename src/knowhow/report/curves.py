"""Charts of one quantity against another: learning curves, reliability, risk–coverage. See charts.py for how specs are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from knowhow.report.charts import ACCENT, INK, LINE, OTHER, QUIET, WARN, Layer, Row, linear, on, rows_axis, spec

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
    if phases:
        base = on("phases").encode(x=x)
        name = base.mark_text(align="left", dx=5, fontSize=11, color=QUIET).encode(text="label:N", y=alt.value(8))
        layers += [base.mark_rule(strokeDash=[4, 4], color=LINE), name]
    if train:
        base = on("train").encode(x=x)
        band = base.mark_area(color=OTHER, opacity=0.22).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
        layers += [band, base.mark_line(color=OTHER, strokeWidth=1.8).encode(y=y)]
    if valid:
        line = on("valid").mark_line(color=ACCENT, strokeWidth=2.2, point={"color": ACCENT, "size": 46, "filled": True})
        layers.append(line.encode(x=x, y=y, tooltip=[alt.Tooltip("x:Q", title="step"), alt.Tooltip("value:Q", title=title, format=".4f")]))
    if best is not None:
        ring = on("best").encode(x="x:Q", y=y)
        layers += [ring.mark_point(color=WARN, size=170, strokeWidth=2, filled=False), ring.mark_text(dy=-16, fontSize=11.5, color=INK).encode(text="label:N")]
    return spec(layers, height, phases=phases, train=train, valid=valid, best=[best] if best else [])


def reliability(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    """Accuracy against confidence {confidence, accuracy, low, high, n}: grey before scaling, coloured after; the diagonal is perfect."""
    unit = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("confidence:Q", scale=unit, title="how sure it says it is", axis=alt.Axis(format="%", tickCount=5))
    y = alt.Y("accuracy:Q", scale=unit, title="how often it is right", axis=alt.Axis(format="%", tickCount=5))
    size = alt.Size("n:Q", scale=alt.Scale(range=[24, 200]), legend=None)
    told = (("confidence:Q", "confidence", ".1%"), ("accuracy:Q", "right", ".1%"), ("n:Q", "rows", ",d"))
    tooltip = [alt.Tooltip(field, title=title, format=format) for field, title, format in told]
    layers: list[Layer] = [on("exact").mark_line(strokeDash=[4, 4], strokeWidth=1.2, color=QUIET).encode(x=x, y=y)]
    for name, rows, colour, dash in (("before", before, OTHER, [5, 3]), ("after", after, ACCENT, [1, 0])):
        base = on(name).encode(x=x, tooltip=tooltip)
        if rows and name == "after":
            layers.append(base.mark_rule(color=colour, strokeWidth=1.6, opacity=0.6).encode(y=alt.Y("low:Q", scale=unit), y2="high:Q"))
        if rows:
            layers += [
                base.mark_line(color=colour, strokeWidth=2, strokeDash=dash).encode(y=y),
                base.mark_circle(color=colour, opacity=1).encode(y=y, size=size),
            ]
    return spec(layers, 330, exact=[{"confidence": at, "accuracy": at} for at in (0, 1)], before=before, after=after)


def risk_coverage(rows: Sequence[Row], *, chosen: Row | None = None, target: float | None = None) -> dict[str, Any]:
    """Error rate among the answered {coverage, risk} as less and less is answered; `chosen` {coverage, risk, label} is where it abstains."""
    risks = [float(row["risk"]) for row in rows] + ([target] if target is not None else []) + ([float(chosen["risk"])] if chosen else [])
    height = alt.Scale(domain=[0, max(max(risks) * 1.15, 0.02)], nice=False)
    x = alt.X("coverage:Q", scale=alt.Scale(domain=[0, 1], nice=False), title="share of inputs answered", axis=alt.Axis(format="%", tickCount=5))
    y = alt.Y("risk:Q", scale=height, title="error rate of the answers", axis=alt.Axis(format="~%", tickCount=5))
    tooltip = [alt.Tooltip("coverage:Q", title="answered", format=".1%"), alt.Tooltip("risk:Q", title="error rate", format=".2%")]
    base = on().encode(x=x, y=y, tooltip=tooltip)
    layers: list[Layer] = [base.mark_area(color=ACCENT, opacity=0.12), base.mark_line(color=ACCENT, strokeWidth=2.2)]
    if target is not None:
        goal = on("target").encode(y=y)
        name = goal.mark_text(align="right", dx=-4, dy=-7, fontSize=11, color=INK).encode(text="label:N", x=alt.value("width"))
        layers += [goal.mark_rule(strokeDash=[4, 4], color=QUIET), name]
    if chosen is not None:
        point = on("chosen").encode(x=x, y=y)
        layers += [point.mark_circle(color=WARN, size=130, opacity=1), point.mark_text(dy=-14, align="right", fontSize=12, color=INK).encode(text="label:N")]
    stated = [] if target is None else [{"risk": target, "label": f"stated risk {target:.1%}"}]
    return spec(layers, 330, rows=rows, target=stated, chosen=[chosen] if chosen else [])


def faithful(own: Sequence[Row], random: Sequence[Row], height: int = 260) -> dict[str, Any]:
    """Faithfulness of circuits {share, value, low, high} by size on a log axis, bands for intervals; `random` ones in grey; 1 is the whole model."""
    values = [float(row[key]) for row in (*own, *random) for key in ("low", "high")] + [0.0, 1.0]
    x = alt.X("share:Q", scale=alt.Scale(type="log"), title="share of all edges", axis=alt.Axis(grid=False, format="~%", tickCount=5))
    y = alt.Y("value:Q", title="faithfulness", scale=linear(values, pad=0.05))
    layers: list[Layer] = [on("whole").mark_line(strokeDash=[4, 4], strokeWidth=1.2, color=QUIET).encode(x=x, y=y)]
    for name, rows, colour in (("random", random, OTHER), ("own", own, ACCENT)):
        if rows:
            base = on(name).encode(x=x, tooltip=[alt.Tooltip("share:Q", format=".1%"), alt.Tooltip("value:Q", title="faithfulness", format=".2f")])
            layers += [
                base.mark_area(color=colour, opacity=0.18).encode(y=alt.Y("low:Q", title="faithfulness"), y2="high:Q"),
                base.mark_line(color=colour, strokeWidth=2.2, point={"color": colour, "size": 36, "filled": True}).encode(y=y),
            ]
    whole = [{"share": row["share"], "value": 1.0} for row in (own[0], own[-1])]
    return spec(layers, height, whole=whole, own=own, random=random)


def lives(rows: Sequence[Row], title: str, *, floors: Sequence[Row] = (), height: int = 260) -> dict[str, Any]:
    """Several measured curves {x, value, name, colour} against steps on a log axis; `floors` {value, label} are dashed levels."""
    values = [float(row["value"]) for row in (*rows, *floors)]
    steps = [float(row["x"]) for row in rows]
    scale = alt.Scale(type="log", domain=[min(steps), max(max(steps), min(steps) + 1)], nice=False)
    x = alt.X("x:Q", title="optimizer step", scale=scale, axis=alt.Axis(grid=False, format=",d", tickCount=6))
    y = alt.Y("value:Q", title=title, scale=linear(values, pad=0.06), axis=alt.Axis(tickCount=5))
    layers: list[Layer] = []
    if floors:
        base = on("floors").encode(y=y)
        name = base.mark_text(align="left", dx=4, dy=-6, fontSize=11, color=QUIET).encode(text="label:N", x=alt.value(0))
        layers += [base.mark_rule(strokeDash=[4, 4], color=QUIET), name]
    tooltip = [alt.Tooltip("name:N", title=" "), alt.Tooltip("x:Q", title="step", format=",d"), alt.Tooltip("value:Q", title=title, format=".3f")]
    line = on().mark_line(strokeWidth=2, point={"size": 28, "filled": True})
    layers.append(line.encode(x=x, y=y, color=alt.Color("colour:N", scale=None), detail="name:N", tooltip=tooltip))
    return spec(layers, height, rows=rows, floors=floors)


def timeline(rows: Sequence[Row], last: float) -> dict[str, Any]:
    """When things happened {name, low, high, label, colour}: on a log axis up to step `last`, a bar over the steps between the look before and the look at
    which it held, a dot at that look."""
    scale = alt.Scale(type="log", domain=[1, max(last, 2)], nice=False)
    x = alt.X("high:Q", title="optimizer step", scale=scale, axis=alt.Axis(grid=True, format=",d", tickCount=6))
    base = on().encode(
        y=rows_axis(rows, 300), color=alt.Color("colour:N", scale=None), tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title=" ")]
    )
    layers: list[Layer] = [
        base.mark_rule(strokeWidth=7, strokeCap="round", opacity=0.35).encode(x=alt.X("low:Q", title="optimizer step", scale=scale), x2="high:Q"),
        base.mark_circle(size=90, opacity=1).encode(x=x),
    ]
    return spec(layers, 26 * len(rows) + 10, rows=rows)
