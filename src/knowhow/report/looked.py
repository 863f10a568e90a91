"""The deeper looks of `knowhow look`: the circuit of the answers, features of sites, the training rows behind an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report.curves import faithful
from knowhow.report.numbers import decimal, ends, items, number, part, percent, span
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.read import Run
from knowhow.report.text import clean

SHOWN, POINTS = 60, 64


def circuit(run: Run) -> Section:
    """Size and faithfulness of the circuit, the curve beside random circuits, its edges with what each is worth."""
    told = run.get("circuit")
    edges = [edge for edge in items(part(told, "circuit"), "edges") if isinstance(edge, list) and len(edge) == 2]
    if number(told, "share") is None:
        return Section(missing="looked/circuit.json holds no circuit")
    possible = number(told, "circuit", "possible")
    reached = told.get("reached") is True
    tiles = (
        Tile("edges", f"{len(edges):,} of {possible or 0:,.0f}", percent(number(told, "share"))),
        Tile("faithfulness", percent(number(told, "faithfulness", "value")), _ends(told, "faithfulness"), "" if reached else "warn"),
        Tile("all the others", percent(number(told, "complement", "value")), _ends(told, "complement")),
        Tile("random circuits", f"p = {decimal(number(told, 'control', 'p'))}", f"{decimal(number(told, 'control', 'draws'), 0)} of the same size"),
    )
    scored, measured = (decimal(number({"at": value}, "at"), 0) for value in (items(told, "pairs") + [None, None])[:2])
    lead = (
        f"An edge is what one part adds and another reads. Edges were scored on {scored} pairs; on {measured} other pairs the model was run with all but the "
        f"circuit's edges carrying what {clean(told.get('against', ''), 20)} say. "
        + ("" if reached else "No size that was tried is faithful enough: not supported as a circuit.")
    )
    return Section(lead=lead, tiles=tiles, figures=_curve(told), tables=(*_minimal(told), _edges(edges)))


def influence(run: Run) -> Section:
    """For each answer the training rows that helped and hurt it most, and rows that nothing else supports."""
    told = run.get("influence")
    answers = [row for row in items(told, "answers") if isinstance(row, Mapping)]
    if not answers:
        return Section(missing="looked/influence.json holds no answers")
    tables = [_driven(row) for row in answers[:20]]
    strange = tuple(
        (clean(row.get("id", ""), 60), clean(row.get("label", ""), 100), decimal(number(row, "score"), 2), clean(row.get("text", ""), 160))
        for row in items(told, "self")[:SHOWN]
        if isinstance(row, Mapping)
    )
    note = "Rows with the largest gradients of their own: hard and rare ones, and the first place to look for wrong labels."
    lead = (
        f"{clean(told.get('method', ''), 80)}, {decimal(number(told, 'rows'), 0)} of {decimal(number(told, 'of'), 0)} training rows. "
        "Scores are first-order estimates of what training on a row did for the answer; no model was trained again to test them."
    )
    return Section(
        lead=lead, tables=(*tables, Table("Rows that pull hardest for themselves", ("row", "label", "score", "text"), strange, frozenset({2}), note))
    )


def features(run: Run) -> Section:
    """Each dictionary with what it keeps beside neurons, and its strongest features with their examples and what taking them out does."""
    told = run.get("features")
    learned = [row for row in items(told, "dictionaries") if isinstance(row, Mapping)]
    if not learned:
        return Section(missing="looked/features.json holds no dictionaries")
    kept = tuple(
        (
            clean(row.get("name", ""), 60),
            clean(way.get("name", ""), 40),
            decimal(number(way, "active"), 0),
            percent(number(way, "recovered", "value")),
            span(number(way, "recovered", "low"), number(way, "recovered", "high")),
            percent(number(way, "unexplained", "value")),
            percent(number(row, "dead")) if way.get("name") == "dictionary" else "",
        )
        for row in learned
        for way in items(row, "kept")
        if isinstance(way, Mapping)
    )
    columns = ("site", "what is kept", "numbers per token", "loss recovered", "95% interval", "variance lost", "dead")
    note = "Loss recovered: 100% is the model untouched, 0% the site set to zero. Neurons and principal components keep as many numbers per token."
    lead = "Sparse dictionaries learned on the specialist's own activations, on training rows; every number here is from rows that they had not seen."
    table = Table("What dictionaries keep, beside neurons", columns, kept, frozenset({2, 3, 5, 6}), note)
    return Section(lead=lead, tables=(table, *(_strongest(row) for row in learned)))


def _ends(told: Mapping[str, Any], key: str) -> str:
    low, high = number(told, key, "low"), number(told, key, "high")
    return f"95% interval {percent(low)} to {percent(high)}"


def _curve(told: Mapping[str, Any]) -> tuple[Figure, ...]:
    own = _points(part(told, "curve"), "value")
    random = _points(part(told, "control"), "mean")
    if not own:
        return ()
    areas = f"CPR {decimal(number(told, 'curve', 'cpr', 'value'), 2)}, CMD {decimal(number(told, 'curve', 'cmd', 'value'), 2)}"
    sentence = f"Faithfulness of circuits by size, the best edges first, beside random ones ({areas}; MIB's measures)."
    return (Figure("circuit-curve", sentence, faithful(own, random), keys=(Key("accent", "best edges first"), Key("", "edges at random"))),)


def _points(told: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = []
    for row in items(told, "points")[:POINTS]:
        share, value = number(row, "share"), number(row, key)
        if share is not None and value is not None and share > 0:
            rows.append({"share": share, "value": value, **ends(row, value)})
    return rows


def _minimal(told: Mapping[str, Any]) -> tuple[Table, ...]:
    tested = [row for row in items(part(told, "minimality"), "edges") if isinstance(row, Mapping)]
    rows = tuple(
        (
            f"{clean(row.get('sender', ''), 20)} → {clean(row.get('reader', ''), 20)}",
            decimal(number(row, "value")),
            span(number(row, "low"), number(row, "high")),
            decimal(number(row, "p")),
        )
        for row in sorted(tested, key=lambda row: -(number(row, "value") or 0.0))[:SHOWN]
    )
    needed = number(told, "minimality", "needed")
    note = f"Faithfulness lost when the edge alone is left out, against random edges; {percent(needed)} of the edges tested are needed beyond chance."
    return (Table("What single edges are worth", ("edge", "faithfulness lost", "95% interval", "p"), rows, frozenset({1, 3}), note),) if rows else ()


def _edges(edges: list[list[Any]]) -> Table:
    """Readers with all that they read inside the circuit."""
    read: dict[str, list[str]] = {}
    for sender, reader in edges:
        read.setdefault(clean(reader, 20), []).append(clean(sender, 20))
    rows = tuple((reader, str(len(senders)), ", ".join(senders)) for reader, senders in read.items())
    note = "a2.h1 is head 1 of layer 2, m2 the MLP; q, k and v are what a head's queries, keys (of its group) and values read."
    return Table("The circuit's edges", ("reader", "edges", "reads"), rows[:400], frozenset({1}), note)


def _driven(row: Mapping[str, Any]) -> Table:
    rows = tuple(
        (word, clean(one.get("id", ""), 60), clean(one.get("label", ""), 100), decimal(number(one, "score"), 3), clean(one.get("text", ""), 160))
        for key, word in (("helped", "helped"), ("hurt", "held it back"))
        for one in items(row, key)[:SHOWN]
        if isinstance(one, Mapping)
    )
    alike = decimal(number(row, "also_alike"), 0)
    note = f"{alike} of the rows that helped are also among those whose words are most alike (TF-IDF)."
    caption = f"{clean(row.get('id', ''), 60)}: {clean(row.get('label', ''), 60)}"
    return Table(caption, ("", "training row", "its label", "score", "its text"), rows, frozenset({3}), note)


def _strongest(row: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f"feature {number(one, 'feature') or 0:.0f}",
            clean(one.get("label", ""), 60),
            decimal(number(one, "auc"), 2),
            decimal(number(one, "neuron_auc"), 2),
            decimal(number(one, "effect"), 2),
            decimal(number(one, "control"), 2),
            clean(one.get("verdict", ""), 30),
            clean(one.get("example", ""), 200),
        )
        for one in items(row, "strongest")[:SHOWN]
        if isinstance(one, Mapping)
    )
    columns = ("", "label", "AUC", "best neuron", "logit moves", "random features", "verdict", "strongest at")
    note = (
        "AUC: how well the feature's largest value in a text tells the label; logit moves: by so much, either way, the label's logit moves on the test rows "
        "when the feature is taken out."
    )
    return Table(f"Features of {clean(row.get('name', ''), 60)}", columns, rows, frozenset(range(2, 6)), note)
