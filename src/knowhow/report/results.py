"""What the specialist can do: against the baselines, per class, per slice, and what it confuses with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.report import charts
from knowhow.report.numbers import DASH, better_sign, count, decimal, items, metric_name, number, part, percent, signed, slice_name, span, with_interval
from knowhow.report.parts import Figure, Key, Section, Table
from knowhow.report.read import Run
from knowhow.report.text import clean, short_names
from knowhow.report.verdict import SPECIALIST, Gap, Verdict, find, gaps, headline_metric, judge, ranked
from knowhow.types import EvalResult

MOST, HEATMAP, MOST_ROWS = 40, 30, 200
INTERVAL = "95% interval"


def verdict(run: Run) -> Verdict:
    metric = part(run.get("recipe"), "task").get("metric")
    return judge(run.results, headline_metric(run.results, metric if isinstance(metric, str) else None))


def baselines(run: Run) -> Section:
    """Forest plots of the deciding metric and of the paired differences; a table of every metric."""
    told = verdict(run)
    rows = ranked(run.results, told.metric)
    if not rows:
        return Section(missing=f"no result for {clean(told.metric, 60)} on all rows")
    figures = (_forest(rows, told), _differences(told)) if told.gaps else (_forest(rows, told),)
    others = [line for name in ("deduplicated", "novel") if (line := _on_slice(run.results, told.metric, name))]
    return Section(lead=" ".join(others), figures=figures, tables=(_paired_table(run.results, told.metric), _metrics_table(run.results)))


def _forest(rows: Sequence[EvalResult], told: Verdict) -> Figure:
    names = short_names(row.model for row in rows)
    points = [_point(names[row.model], row, charts.ACCENT if row.model == SPECIALIST else charts.OTHER) for row in rows]
    place = next((index for index, row in enumerate(rows, 1) if row.model == SPECIALIST), None)
    first = rows[0]
    if place == 1:
        doubt = ", but not clearly" if told.state == "enough" else ""
        sentence = f"The specialist is best of {len(rows)} on {metric_name(told.metric)}{doubt}: {decimal(first.value)}."
    else:
        sentence = f"{clean(first.model, 60)} is best of {len(rows)} on {metric_name(told.metric)} ({decimal(first.value)})"
        sentence += f"; the specialist is number {place}." if place else "."
    keys = (Key("accent", "specialist"), Key("other", f"the others; lines are {INTERVAL}s"))
    return Figure("forest", sentence, charts.forest(points, _axis(told.metric)), keys=keys, wide=not told.gaps)


def _axis(metric: str) -> str:
    return metric_name(metric) if better_sign(metric) > 0 else f"{metric_name(metric)} (less is better)"


def _point(name: str, row: EvalResult, colour: str) -> dict[str, Any]:
    label = f"{with_interval(row.value, row.low, row.high)}, n = {row.n:,}"
    return {"name": name, "value": row.value, "low": row.low, "high": row.high, "short": decimal(row.value), "label": label, "colour": colour}


def _differences(told: Verdict) -> Figure:
    names = short_names(gap.baseline for gap in told.gaps)
    rows = []
    for gap in told.gaps:
        low, high, value = gap.difference.low, gap.difference.high, gap.difference.value
        numbers = {"value": value, "low": low, "high": high, "short": signed(value), "label": with_interval(value, low, high, sign=True)}
        rows.append({"name": f"− {names[gap.baseline]}", **numbers, "colour": charts.ACCENT if gap.beaten else charts.WARN})
    beaten = sum(gap.beaten for gap in told.gaps)
    sentence = f"On the same rows it beats {beaten} of {len(rows)} baselines; an interval that touches zero shows no difference."
    keys = (Key("accent", "beaten"), Key("warn", "not beaten"))
    spec = charts.forest(rows, f"specialist minus baseline, {metric_name(told.metric)}", reference=(0.0, "no difference"))
    return Figure("differences", sentence, spec, keys=keys, wide=False)


def _on_slice(results: Sequence[EvalResult], metric: str, name: str) -> str:
    """One sentence on the deciding metric when only that slice counts."""
    told = judge(results, metric, name)
    own = find(results, model=SPECIALIST, metric=metric, slice=name)
    if own is None:
        return ""
    text = f"On {slice_name(name)} (n = {own.n:,}) it reaches {decimal(own.value)}"
    if not told.gaps:
        return f"{text}."
    gap = next((gap for gap in told.gaps if not gap.beaten), told.gaps[0])
    against = f"beats every baseline, {clean(gap.baseline, 40)} by" if told.state == "beats" else f"does not beat {clean(gap.baseline, 40)}:"
    return f"{text} and {against} {_difference(gap)}."


def _difference(gap: Gap) -> str:
    return with_interval(gap.difference.value, gap.difference.low, gap.difference.high, sign=True)


def _paired_table(results: Sequence[EvalResult], metric: str) -> Table:
    rows = []
    for slice in ("all", "deduplicated", "novel"):
        own = find(results, model=SPECIALIST, metric=metric, slice=slice)
        for gap in gaps(own) if own else ():
            said = "beaten" if gap.beaten else "worse than this baseline" if gap.worse else "no difference shown"
            interval = span(gap.difference.low, gap.difference.high, sign=True)
            rows.append((slice_name(slice), clean(gap.baseline, 60), signed(gap.difference.value), interval, count(gap.difference.n), said))
    columns = ("rows", "baseline", "specialist minus it", INTERVAL, "n", "verdict")
    return Table(f"Paired differences in {metric_name(metric)}", columns, tuple(rows), frozenset({2, 3, 4}))


def _metrics_table(results: Sequence[EvalResult]) -> Table:
    """Every metric of every model on all rows."""
    rows = [row for row in results if row.slice == "all"]
    order = {model: index for index, model in enumerate(dict.fromkeys([SPECIALIST, *(row.model for row in rows)]))}
    rows.sort(key=lambda row: (row.metric, order[row.model]))
    cells = tuple((metric_name(row.metric), clean(row.model, 60), decimal(row.value), span(row.low, row.high), f"{row.n:,}") for row in rows)
    note = f"{len(cells) - MOST_ROWS} more rows are in evaluate/results.json" if len(cells) > MOST_ROWS else ""
    return Table("Every metric", ("metric", "model", "value", INTERVAL, "n"), cells[:MOST_ROWS], frozenset({2, 3, 4}), note)


def classes(run: Run) -> Section:
    """Per class, per slice, and the confusion matrix."""
    told = verdict(run)
    figures = tuple(figure for figure in (_per_class(run.results, told.metric), _per_slice(run.results, told.metric), _confusion(run)) if figure is not None)
    if not figures:
        return Section(missing=run.reason("confusion") or "the results name no classes or slices")
    return Section(figures=figures)


def _per_class(results: Sequence[EvalResult], wanted: str) -> Figure | None:
    found = [row for row in results if row.slice.startswith("class:") and row.model == SPECIALIST]
    if not found:
        return None
    metric = next((name for name in (wanted, "f1") if any(row.metric == name for row in found)), found[0].metric)
    own = sorted((row for row in found if row.metric == metric), key=lambda row: -better_sign(metric) * row.value)
    labels = {row.slice: row.slice.removeprefix("class:") for row in own}
    names = short_names(labels.values())
    rival = _rival(results, wanted, metric, own[0].slice)
    rows = [_point(names[labels[row.slice]], row, charts.ACCENT) for row in own[:MOST]]
    others = [find(results, model=rival, metric=metric, slice=row.slice) for row in own[:MOST]] if rival else []
    ticks = [_point(names[labels[row.slice]], row, charts.WARN) for row in others if row is not None]
    best, worst = (f"{clean(labels[row.slice], 40)} ({decimal(row.value, 2)})" for row in (own[0], own[-1]))
    sentence = f"It knows {best} best and {worst} least." + (f" The {MOST} best of {len(own)} classes are drawn." if len(own) > MOST else "")
    cells = tuple((clean(labels[row.slice], 80), decimal(row.value), span(row.low, row.high), f"{row.n:,}") for row in own[:MOST_ROWS])
    table = Table(f"{metric_name(metric)} per class", ("class", "value", INTERVAL, "n"), cells, frozenset({1, 2, 3}))
    keys = (Key("accent", f"specialist, {metric_name(metric)}, {INTERVAL}"), *((Key("warn tick", clean(rival, 40)),) if ticks else ()))
    spec = charts.bars(rows, _axis(metric), ticks=ticks, zero_one=all(0.0 <= row.value <= row.high <= 1.0 for row in own))
    return Figure("classes", sentence, spec, table, keys, wide=len(own) > 16)


def _rival(results: Sequence[EvalResult], wanted: str, metric: str, slice: str) -> str:
    """The strongest other model that was measured on classes too."""
    models = (row.model for row in ranked(results, wanted) if row.model != SPECIALIST)
    return next((model for model in models if find(results, model=model, metric=metric, slice=slice)), "")


def _per_slice(results: Sequence[EvalResult], metric: str) -> Figure | None:
    slices = list(dict.fromkeys(row.slice for row in results if row.metric == metric and not row.slice.startswith("class:")))[:12]
    strongest = [row.model for row in ranked(results, metric) if row.model not in (SPECIALIST, "base")][:1]
    colours = {SPECIALIST: charts.ACCENT} | dict.fromkeys(strongest, charts.WARN) | {"base": charts.OTHER}
    names = short_names(slice_name(name) for name in slices)
    found = [(name, model, find(results, model=model, metric=metric, slice=name)) for name in slices for model in colours]
    rows = [_point(names[slice_name(name)], row, colours[model]) | {"model": clean(model, 40)} for name, model, row in found if row is not None]
    own = {row["name"]: row["value"] for row in rows if row["model"] == SPECIALIST}
    if len(own) < 2:
        return None
    low, high = (f"{decimal(own[name])} ({name})" for name in (min(own, key=lambda name: own[name]), max(own, key=lambda name: own[name])))
    same = decimal(min(own.values())) == decimal(max(own.values()))
    runs = f"is {decimal(min(own.values()))} on every slice" if same else f"runs from {low} to {high} between slices"
    cells = tuple((row["name"], row["model"], row["label"]) for row in rows)
    table = Table(f"{metric_name(metric)} per slice", ("slice", "model", f"value ({INTERVAL})"), cells)
    present = dict.fromkeys(row["model"] for row in rows)
    tones = {SPECIALIST: "accent", "base": "other"}
    keys = tuple(Key(tones.get(model, "warn"), model) for model in present)
    return Figure("slices", f"Its {metric_name(metric)} {runs}.", charts.grouped(rows, _axis(metric)), table, keys, wide=False)


def _confusion(run: Run) -> Figure | None:
    found = run.get("confusion")
    if "many" in found:
        return _label_by_label(found)
    labels, matrix = found.get("labels"), found.get("matrix")
    if not isinstance(labels, list) or not isinstance(matrix, list) or len(labels) < 2:
        return None
    counts = [[float(cell) for cell in row] for row in matrix]
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        raise ValueError("confusion.json: the matrix does not have one row and one column per label")
    kept = sorted(sorted(range(len(labels)), key=lambda i: -sum(counts[i]))[:HEATMAP])
    names = list(short_names(f"{labels[i]}" for i in kept).values())
    n, gold, guess = max(((counts[i][j], i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j), key=lambda slip: slip[0])
    share = percent(n / (sum(counts[gold]) or 1), 0)
    sentence = f"Its most frequent mistake: {clean(labels[gold], 40)} taken for {clean(labels[guess], 40)}, {plural_times(n)} ({share} of that class)."
    dropped = f" The {HEATMAP} largest of {len(labels)} classes are shown." if len(labels) > HEATMAP else ""
    cells = tuple((names[row], *(count(counts[i][j]) if counts[i][j] else DASH for j in kept)) for row, i in enumerate(kept))
    table = Table("True class (rows) against predicted class (columns)", ("true", *names), cells, frozenset(range(1, len(kept) + 1)))
    spec = charts.heatmap(names, [[counts[i][j] for j in kept] for i in kept])
    return Figure(
        "confusion", (sentence if n else "It makes no mistakes.") + dropped, spec, table, (Key("accent", "darker: a larger share of the true class"),)
    )


def _label_by_label(found: Mapping[str, Any]) -> Figure | None:
    """Many labels: for each, how often it was found, missed and wrongly given."""
    kinds = (("hit", "found", charts.ACCENT, "accent"), ("missed", "missed", charts.OTHER, "other"), ("false_alarm", "false alarm", charts.WARN, "warn"))
    labels = [str(label) for label in items(found, "labels")]
    named = list(zip(labels, items(found, "many")))[:MOST]
    names = short_names(label for label, _ in named)
    rows = [
        {"name": names[label], "part": told, "value": number(cells, key) or 0.0, "label": count(number(cells, key)), "colour": colour, "order": order}
        for label, cells in named
        for order, (key, told, colour, _) in enumerate(kinds)
    ]
    if not rows:
        return None
    false = max(named, key=lambda item: number(item[1], "false_alarm") or 0.0)
    missed = max(named, key=lambda item: number(item[1], "missed") or 0.0)
    sentence = f"Most often missed: {clean(missed[0], 40)} ({count(number(missed[1], 'missed'))} times); "
    sentence += f"most false alarms: {clean(false[0], 40)} ({count(number(false[1], 'false_alarm'))})."
    cells = tuple((names[label], *(count(number(cells, key)) for key, *_ in kinds)) for label, cells in named)
    table = Table("Label by label", ("label", "found", "missed", "false alarm"), cells, frozenset({1, 2, 3}))
    keys = tuple(Key(tone, told) for _, told, _, tone in kinds)
    return Figure("confusion", sentence, charts.stacked(rows, "share of the rows that have the label or were given it"), table, keys)


def plural_times(n: float) -> str:
    return "once" if n == 1 else "twice" if n == 2 else f"{count(n)} times"
