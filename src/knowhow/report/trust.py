"""How far to trust it: calibration and abstention, what it forgot, what it memorised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report import charts, curves
from knowhow.report.numbers import count, decimal, ends, items, metric_name, number, part, percent, plural, signed, span, with_interval
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.read import Run
from knowhow.report.text import clean

INTERVAL = "95% interval"


def calibration(run: Run) -> Section:
    """Reliability before and after temperature scaling; risk against coverage."""
    found = run.get("calibration")
    figures = tuple(figure for figure in (_reliability(found), _risk(found)) if figure is not None)
    tiles = []
    for key, label in (("ece", "calibration error (ECE)"), ("brier", "Brier score")):
        old, new = number(found, "before", key), number(found, "after", key)
        if new is not None:
            tiles.append(Tile(label, decimal(new), f"before scaling {decimal(old)}", "good" if old is not None and new < old else ""))
        elif old is not None:
            tiles.append(Tile(label, decimal(old), "not scaled"))
    if number(found, "temperature") is not None:
        tiles.append(Tile("temperature", decimal(number(found, "temperature"), 2), "fitted on validation only"))
    return Section(tiles=tuple(tiles), figures=figures) if tiles or figures else Section(missing="evaluate/calibration.json holds no bins and no scores")


def _reliability(found: Mapping[str, Any]) -> Figure | None:
    before, after = _bins(found, "before"), _bins(found, "after")
    if not before and not after:
        return None
    old, new = number(found, "before", "ece"), number(found, "after", "ece")
    scaled = f" ({percent(old)} before one temperature, {decimal(number(found, 'temperature'), 2)}, scaled it)" if new is not None and old is not None else ""
    sentence = f"Its confidence is off by {percent(old if new is None else new)} on average{scaled}; on the dashed line it would be exact."
    keys = (Key("other", "before"),) * bool(before) + (Key("accent", "after; larger dots hold more rows"),) * bool(after)
    return Figure("reliability", sentence, curves.reliability(before, after), _bins_table(after or before), keys, wide=False)


def _bins(found: Mapping[str, Any], side: str) -> list[dict[str, float]]:
    result = []
    for row in items(part(found, side), "bins")[:60]:
        confidence, accuracy, n = (number(row, key) for key in ("confidence", "accuracy", "n"))
        if confidence is None or accuracy is None or not n:
            continue
        result.append({"confidence": confidence, "accuracy": accuracy, "n": n, **ends(row, accuracy)})
    return result


def _bins_table(rows: list[dict[str, float]]) -> Table:
    cells = tuple((percent(row["confidence"]), percent(row["accuracy"]), f"{percent(row['low'])} to {percent(row['high'])}", count(row["n"])) for row in rows)
    return Table("Confidence against accuracy", ("confidence", "right", INTERVAL, "rows"), cells, frozenset({0, 1, 2, 3}))


def _risk(found: Mapping[str, Any]) -> Figure | None:
    pairs = [(number(row, "coverage"), number(row, "risk")) for row in items(found, "risk_coverage")]
    rows = sorted(({"coverage": c, "risk": r} for c, r in pairs if c is not None and r is not None), key=lambda row: row["coverage"])
    if not rows:
        return None
    step = max(1, len(rows) // 200)
    rows = [*rows[:-1:step], rows[-1]]
    said = part(found, "abstention")
    target, threshold = number(said, "risk"), number(said, "threshold")
    bound = number(said, "upper") if number(said, "bound") is None else number(said, "bound")
    coverage = number(said, "coverage") if number(said, "test_coverage") is None else number(said, "test_coverage")
    sentence = f"Answering everything, it is wrong {percent(rows[-1]['risk'])} of the time."
    chosen = None
    if coverage and threshold is not None:
        nearest = min(rows, key=lambda row: abs(row["coverage"] - coverage))
        chosen = {"coverage": coverage, "risk": nearest["risk"], "label": f"answers {percent(coverage, 0)}"}
        most = f" and is wrong at most {percent(bound)} of the time" if bound is not None else ""
        sentence += f" Silent below {percent(threshold)} confidence, it answers {percent(coverage, 0)}{most}."
    elif target is not None:
        sentence += f" No threshold keeps the stated risk of {percent(target)}: it would have to stay silent."
    cells = tuple((percent(row["coverage"]), percent(row["risk"], 2)) for row in rows[:: max(1, len(rows) // 20)])
    table = Table("Risk at each coverage", ("answered", "error rate"), cells, frozenset({0, 1}))
    keys = (Key("accent", "specialist"),) + (Key("warn", "where it falls silent"),) * bool(chosen)
    return Figure("risk", sentence, curves.risk_coverage(rows, chosen=chosen, target=target), table, keys, wide=False)


def forgetting(run: Run) -> Section:
    """The rise of the NLL on general text, with its interval and the recipe's limit."""
    found = run.get("forgetting")
    value, low, high = _interval(found, "value")
    if value is None:
        return Section(missing="evaluate/forgetting.json holds no value")
    unit = clean(found.get("unit") or "nats per token", 40)
    before, after = decimal(number(found, "before")), decimal(number(found, "after"))
    budget = number(run.get("recipe"), "budget", "forgetting")
    moved = "rose" if low > 0 else "fell" if high < 0 else "did not change measurably"
    sentence = f"On general text its loss {moved}: {signed(value)} {unit} ({INTERVAL} {span(low, high, sign=True)}), from {before} to {after}."
    if budget is not None:
        kept = "kept" if high <= budget else "not shown to be kept" if low <= budget else "broken"
        sentence += f" The budget of {signed(budget)} is {kept}."
    colour = charts.WARN if budget is not None and high > budget else charts.ACCENT
    label = with_interval(value, low, high, sign=True)
    row = {"name": "specialist − base", "value": value, "low": low, "high": high, "short": signed(value), "label": label, "colour": colour}
    cells = ((unit, before, after, signed(value), span(low, high, sign=True), count(number(found, "n"))),)
    table = Table("Forgetting", ("unit", "before", "after", "rise", INTERVAL, "n"), cells, frozenset({1, 2, 3, 4, 5}))
    spec = charts.forest([row], f"rise of the loss on general text, {unit}", reference=(0.0, "nothing forgotten"))
    return Section(figures=(Figure("forgetting", sentence, spec, table),))


def robustness(run: Run) -> Section:
    """What rewrites that change nothing do to its answers."""
    rows = [row for row in run.files["robustness"] if isinstance(row, Mapping) and number(row, "difference", "value") is not None][:20]
    if not rows:
        return Section(missing="evaluate/robustness.json holds no measurements")
    drawn, cells = [], []
    for row in rows:
        value, low, high = _interval(part(row, "difference"), "value")
        label = with_interval(value, low, high, sign=True)
        colour = charts.WARN if high < 0 else charts.ACCENT
        drawn.append(
            {"name": clean(row.get("rewrite"), 60), "value": value, "low": low, "high": high, "short": signed(value), "label": label, "colour": colour}
        )
        cells.append((clean(row.get("rewrite"), 60), decimal(number(row, "value")), signed(value), span(low, high, sign=True), count(number(row, "rows"))))
    worse = [row["name"] for row in drawn if row["colour"] == charts.WARN]
    name = clean(metric_name(str(rows[0].get("metric"))), 60)
    fallen = (
        f"{plural(len(worse), 'rewrite', 'rewrites')} that change nothing cost it {name}: {', '.join(worse)}."
        if worse
        else f"No rewrite costs it {name} for sure."
    )
    table = Table("Rewritten rows against the same rows as they were", ("rewrite", name, "difference", INTERVAL, "rows"), tuple(cells), frozenset({1, 2, 3, 4}))
    return Section(figures=(Figure("robustness", fallen, charts.forest(drawn, f"change of {name}", reference=(0.0, "unmoved")), table),))


def memorisation(run: Run) -> Section:
    """Planted canaries, verbatim extraction, membership inference."""
    found = run.get("memorisation")
    tiles = []
    mean, most, planted = (number(found, "canaries", key) for key in ("exposure_mean", "exposure_max", "n"))
    if mean is not None:
        # a secret that was never seen has a uniform rank, and the mean of -log2 of it is 1/ln 2
        chance = number(found, "canaries", "chance") or 1.44
        note = f"mean of {count(planted)} planted secrets, highest {decimal(most, 1)}; chance is {decimal(chance, 1)}"
        leaked = number(found, "canaries", "read_back") or 0
        told = f"{note}; {plural(leaked, 'of them', 'of them')} can be read back" if leaked else note
        tiles.append(Tile("canary exposure", f"{decimal(mean, 1)} bits", told, "warn" if leaked or mean > 5 else ""))
    share, tried = number(found, "extraction", "share"), number(found, "extraction", "n")
    if share is not None:
        tiles.append(
            Tile("repeated word for word", percent(share), f"of {count(tried)} training texts, given their beginning", "warn" if share > 0 else "good")
        )
    figures = (_membership(found),) if number(found, "membership", "auc") is not None else ()
    return Section(tiles=tuple(tiles), figures=figures) if tiles or figures else Section(missing="evaluate/memorisation.json holds no measurements")


def _membership(found: Mapping[str, Any]) -> Figure:
    auc, low, high = _interval(part(found, "membership"), "auc")
    apart = "can be told from unseen ones better than chance" if low > 0.5 else "could not be told from unseen ones"
    colour = charts.WARN if low > 0.5 else charts.ACCENT
    row = {"name": "membership AUC", "value": auc, "low": low, "high": high, "short": decimal(auc), "label": with_interval(auc, low, high), "colour": colour}
    sentence = f"By the loss alone, rows it was trained on {apart}: AUC {decimal(auc)} ({INTERVAL} {span(low, high)})."
    table = Table("Membership inference", ("", "AUC", INTERVAL), (("training rows against unseen rows", decimal(auc), span(low, high)),), frozenset({1, 2}))
    return Figure("membership", sentence, charts.forest([row], "AUC", reference=(0.5, "chance")), table)


def _interval(found: Mapping[str, Any], key: str) -> tuple[float | None, float, float]:
    """(value, low, high); a missing end is the value itself."""
    value, low, high = number(found, key), number(found, "low"), number(found, "high")
    middle = value or 0.0
    return value, middle if low is None else low, middle if high is None else high
