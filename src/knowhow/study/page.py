"""The page of a study: what happened when, the curves behind it, which data brought a head about. One self-contained file, like a build's report."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow.files import read_json, write_atomic
from knowhow.report import charts, curves
from knowhow.report.numbers import count, decimal, plural, signed
from knowhow.report.page import About, assembled
from knowhow.report.parts import Figure, Key, Section, Table, Tile
from knowhow.report.text import clean
from knowhow.report.verdict import Verdict
from knowhow.study.crossings import Row, Series, combined, series
from knowhow.study.story import HEAD_SCORE, NO_LAW, Floors, head_columns, losses_by_corpus, rank_columns, relative, short, training_loss

COLOURS = 8
TITLES = {"previous": "the token before", "induction": "what followed the same token earlier", "sink": "the first token"}
TABLES = {"1": "unigram", "2": "bigram", "3": "trigram", "unigram": "unigram", "five_gram": "5-gram"}
CLASSES = ("copied", "fresh", "repeated", "first", "common", "middling", "rare", "space", "word", "number", "punctuation", "other")
Curves = Mapping[str, Series]


def write(folder: Path, rows: Sequence[Row], floors: Floors | None = None) -> Path:
    """`folder`/page.html from story.json there and the rows; returns its path."""
    told = read_json(folder / "story.json")
    lead, subtitle = "The life of a training run, told from what observers kept of it.", f"study of a {told['kind']}"
    about = About(clean(told["name"], 80), lead, clean(folder.parent.name, 80), subtitle)
    made = assembled(about, verdict(told), tiles(told, rows), sections(told, rows, floors or {}))
    write_atomic(folder / "page.html", made)
    return folder / "page.html"


def sections(told: Mapping[str, Any], rows: Sequence[Row], floors: Floors) -> list[Section]:
    made = [
        ("events", "What happened when", events(told)),
        ("losses", "Loss and the n-gram tables", losses(rows, floors)),
        ("classes", "Which tokens were learnt", classes(rows)),
        ("heads", "What heads came to do", heads(rows)),
        ("data", "Which step and which data brought a head about", brought(told)),
        ("ranks", "Rank", ranks(rows)),
        ("sparsity", "Sparsity and outliers", sparse(rows)),
        ("labels", "Labels inside the model", labels(rows)),
        ("watched", "How it was watched", watched(told, rows)),
    ]
    return [Section(id, title, one.lead, one.tiles, one.figures, one.tables, one.notes, one.samples, one.missing) for id, title, one in made]


def verdict(told: Mapping[str, Any]) -> Verdict:
    """The line under the title: to the run's end, cut short, or broken down."""
    happened = [event for event in told["events"] if event["step"] is not None]
    lawful = [event for event in happened if event["law"] != NO_LAW]
    heard = f"{len(happened)} of {len(told['events'])} things that were watched for happened; {len(lawful)} of them are named by a law."
    if told["ended"]:
        return Verdict("enough", f"The run broke down after step {told['last_look']:,}", f"{told['ended']}. The story ends there. {heard}", "", "")
    if told["missing"]:
        return Verdict("unknown", "Part of the run was not watched", f"{told['missing']}. {heard}", "", "")
    return Verdict("beats", f"Watched to its end, step {told['last_look']:,}", heard, "", "")


def tiles(told: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Tile, ...]:
    _, looks = training_loss(rows)
    first = next((event for event in told["events"] if event["what"].endswith("head") and event["step"] is not None), None)
    parts = [Tile("looks", str(len(rows)), "log-spaced"), Tile("steps", count(told["last_look"]))]
    if looks:
        parts.append(Tile("training loss", decimal(looks[-1][1], 2), f"from {decimal(looks[0][1], 2)}"))
    parts.append(Tile("first head with a role", short(first["site"]) if first else "none", f"by step {first['step']:,}" if first else ""))
    return tuple(parts)


def when(event: Mapping[str, Any]) -> str:
    """The steps in which it happened: after the look before it, by the look at which it held."""
    if event["step"] is None:
        return "did not happen"
    return f"by step {event['step']:,}" if event["before"] is None else f"{event['before']:,} to {event['step']:,}"


def events(told: Mapping[str, Any]) -> Section:
    """A timeline of what happened, and a table of all that was watched for with the law that says it should come."""
    happened = [event for event in told["events"] if event["step"] is not None]
    rows = [
        {
            "name": _named(event), "low": max(1, event["before"] or 1), "high": max(1, event["step"]), "label": f"{when(event)}: {event['told']}",
            "colour": charts.OTHER if event["law"] == NO_LAW else charts.ACCENT,
        }
        for event in happened
    ]  # fmt: skip
    cells = tuple((_named(event), when(event), event["told"], event["law"]) for event in told["events"])
    notes = ("An event lies somewhere between two looks; it counts when the next two looks agree with it.",)
    keys = (Key("accent", "a law says it should come"), Key("other", NO_LAW))
    figures = (
        (
            Figure(
                "timeline",
                "When each thing came: a bar from the look before to the look at which it held.",
                curves.timeline(rows, told["last_look"]),
                keys=keys,
            ),
        )
        if rows
        else ()
    )
    return Section(figures=figures, tables=(Table("Everything that was watched for", ("what", "steps", "what is seen", "law"), cells),), notes=notes)


def _named(event: Mapping[str, Any]) -> str:
    return clean(f"{event['what']} {short(event['site'])}".strip(), 60)


def losses(rows: Sequence[Row], floors: Floors) -> Section:
    """Held-out loss by corpus beside the losses of n-gram tables, and how near the model stands to each table."""
    figures = []
    for at, (corpus, column) in enumerate(losses_by_corpus(rows).items()):
        looks = series(rows, column)
        known = {key: series(rows, f"{column}.{key}")[0][1] for key in ("1", "2", "3") if series(rows, f"{column}.{key}")} or floors.get(corpus, {})
        levels = [{"value": value, "label": TABLES[key]} for key, value in known.items() if key in TABLES]
        sentence = f"The loss on {corpus} goes from {decimal(looks[0][1], 2)} to {decimal(looks[-1][1], 2)} nats per token."
        figures.append(_figure(f"loss-{at}", sentence, {corpus: looks}, "loss", floors=levels))
        nearness = {TABLES[key]: series(rows, f"ngrams.{corpus}.kl.{key}") for key in ("1", "2", "3")}
        if any(nearness.values()):
            figures.append(
                _figure(f"kl-{at}", f"How far the model of {corpus} is from each table; the lowest point is where it was most like it.", nearness, "KL, nats")
            )
    if not figures:
        column, looks = training_loss(rows)
        return Section(figures=(_figure("loss", "Training loss at the looks.", {column: looks}, "loss"),)) if looks else Section(missing="no loss was kept")
    return Section(figures=tuple(figures))


def classes(rows: Sequence[Row]) -> Section:
    """Loss by class of token."""
    known = {name: series(rows, f"tokens.loss.{name}") for name in CLASSES}
    groups = (
        ("context", CLASSES[:4], "what the context has shown before"),
        ("frequency", CLASSES[4:7], "how common the token is"),
        ("kind", CLASSES[7:], "what it is made of"),
    )
    figures = [
        _figure(f"class-{name}", f"Loss by {why}.", {each: known[each] for each in members}, "loss")
        for name, members, why in groups
        if any(known[each] for each in members)
    ]
    return Section(figures=tuple(figures)) if figures else Section(missing="the run has no next-token targets, or its life was kept without token classes")


def heads(rows: Sequence[Row]) -> Section:
    """The heads that got furthest in each role."""
    figures = []
    for role, title in TITLES.items():
        looks = {short(site): series(rows, column) for site, column in head_columns(rows, role).items()}
        best = dict(sorted(((site, each) for site, each in looks.items() if each), key=lambda pair: -max(value for _, value in pair[1]))[:4])
        if best:
            site, top = next((site, max(value for _, value in each)) for site, each in best.items())
            sentence = f"Attention to {title}: {site} reaches {decimal(top, 2)}."
            figures.append(_figure(f"heads-{role}", sentence, best, "mean attention", floors=[{"value": HEAD_SCORE, "label": "a role"}]))
    return Section(figures=tuple(figures)) if figures else Section(missing="heads were not watched in this run")


def brought(told: Mapping[str, Any]) -> Section:
    """For the head that rose most in each role: the steps, and what each kind of data asks of it."""
    if not told["heads"]:
        return Section(missing="no head's score rose by 0.05 or more, or no weights were kept: there is nothing to trace")
    tables, notes = [], []
    for rise in told["heads"]:
        site = f"L{rise['layer']}H{rise['head']}"
        ends = f"{decimal(rise['low'], 2)} at step {rise['before']:,}, {decimal(rise['high'], 2)} at step {rise['step']:,}"
        caption = f"{site}, attention to {TITLES[rise['role']]}: {ends}"
        cells = tuple(
            (clean(one["data"], 40), _slope(one["slope"], one["low"], one["high"]), _slope(one["shuffled"], one["shuffled_low"], one["shuffled_high"]),
             f"{one['others']:+.2g}", signed(one["cosine"], 3), "yes" if one["pushes"] else "no") for one in rise["data"]
        )  # fmt: skip
        columns = ("data", "slope of the score", "tokens shuffled", "other heads of the layer", "cosine", "pushes it up")
        tables.append(Table(caption, columns, cells, frozenset({1, 2, 3, 4}), f"At the weights kept at step {rise['weights_at']:,}."))
        pushing = [clean(one["data"], 40) for one in rise["data"] if one["pushes"]]
        notes.append(f"{site}: {'pushed up by ' + ', '.join(pushing) if pushing else 'no kind of data pushes it up beyond its controls at these weights'}.")
    notes.append("Slope: change of the score along −∇loss of these rows, per unit of rate of plain descent; 95% intervals over chunks of rows.")
    return Section(tables=tuple(tables), notes=tuple(notes))


def _slope(value: float, low: float | None, high: float | None) -> str:
    return f"{value:+.2g}" + (f" ({low:+.2g} to {high:+.2g})" if low is not None and high is not None else "")


def ranks(rows: Sequence[Row]) -> Section:
    """Ranks of weights against their start, and of gradients and updates as they are, in the middle of all matrices."""
    kept = {f"{metric.replace('_', ' ')}": relative(rows, rank_columns(rows, metric)) for metric in ("stable_rank", "effective_rank")}
    figures = []
    if any(kept.values()):
        ends = ", ".join(f"{name} {each[-1][1]:.0%}" for name, each in kept.items() if each)
        figures.append(_figure("ranks", f"Rank of the weights against the first look, median over matrices; at the end {ends}.", kept, "share of the start"))
    steps = {part: combined(rows, rank_columns(rows, "stable_rank", part), statistics.median) for part in ("gradient", "update")}
    if any(steps.values()):
        figures.append(_figure("step-ranks", "Stable rank of a step's gradient and of its update, median over matrices.", steps, "stable rank"))
    return Section(figures=tuple(figures)) if figures else Section(missing="spectra were not watched in this run")


def sparse(rows: Sequence[Row]) -> Section:
    """Sparsity of activations, and tails of the residual stream, by layer."""
    made = (
        ("small", r"sparsity\.layers\.(\d+)\.small", "Share of MLP activations near zero (below a tenth of the layer's root mean square).", "share"),
        ("neurons", r"sparsity\.layers\.(\d+)\.neurons", "Share of neurons in use (participation ratio of their mean energies).", "share"),
        ("kurtosis", r"outliers\.layers\.(\d+)\.kurtosis", "Kurtosis of the residual stream behind each layer (3: normal).", "kurtosis"),
    )
    figures = [_figure(name, sentence, looks, title) for name, pattern, sentence, title in made if any((looks := by_layer(rows, pattern)).values())]
    return Section(figures=tuple(figures)) if figures else Section(missing="activations were not watched in this run")


def labels(rows: Sequence[Row]) -> Section:
    """Probes by layer with their control, and the geometry of the classes."""
    score = by_layer(rows, r"probes\.layers\.(\d+)\.score")
    figures = []
    if any(score.values()):
        control = combined(rows, [name for name in _columns(rows) if re.fullmatch(r"probes\.layers\.\d+\.shuffled", name)], statistics.fmean)
        figures.append(_figure("probes", "What a linear probe reads off each layer; shuffled labels are its control.", {**score, "shuffled": control}, "score"))
    for name, title in (("nc1", "spread inside classes ÷ between them (NC1)"), ("accuracy", "accuracy"), ("cosine_mean", "mean cosine of class means")):
        looks = series(rows, f"geometry.{name}")
        if looks:
            figures.append(_figure(f"geometry-{name}", f"{title[:1].upper()}{title[1:]}: {decimal(looks[-1][1])} at the end.", {name: looks}, title))
    return Section(figures=tuple(figures)) if figures else Section(missing="the run's rows have no labels")


def watched(told: Mapping[str, Any], rows: Sequence[Row]) -> Section:
    """Looks and columns by observer."""
    groups: dict[str, int] = {}
    for name in _columns(rows):
        head = name.split(".")[0] if "." in name else "the loop"
        groups[head] = groups.get(head, 0) + 1
    cells = tuple((clean(name, 40), str(size)) for name, size in sorted(groups.items()))
    steps = ", ".join(f"{int(row['step']):,}" for row in rows)
    notes = tuple(clean(note, 400) for note in (f"Looks at steps {steps}.", told["missing"], told["ended"]) if note)
    return Section(
        lead=f"{plural(len(rows), 'look')}, {sum(groups.values())} columns.",
        tables=(Table("Columns kept", ("observer", "columns"), cells, frozenset({1})),),
        notes=notes,
    )


def by_layer(rows: Sequence[Row], pattern: str) -> dict[str, Series]:
    return {f"layer {match.group(1)}": series(rows, name) for name in _columns(rows) if (match := re.fullmatch(pattern, name))}


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "phase")]


def _figure(id: str, sentence: str, looks: Curves, title: str, *, floors: Sequence[Mapping[str, Any]] = ()) -> Figure:
    shown = {name: each for name, each in looks.items() if each}
    points = [
        {"x": max(1, step), "value": value, "name": name, "colour": f"var(--class-{at % COLOURS})"}
        for at, (name, each) in enumerate(shown.items())
        for step, value in each
    ]
    keys = tuple(Key(f"class-{at % COLOURS}", clean(name, 40)) for at, name in enumerate(shown))
    steps = sorted({step for each in shown.values() for step, _ in each})
    values = {name: dict(each) for name, each in shown.items()}
    cells = tuple((f"{step:,}", *(decimal(values[name].get(step), 3) for name in shown)) for step in steps)
    table = Table(clean(title, 60), ("step", *(clean(name, 40) for name in shown)), cells, frozenset(range(len(shown) + 1)))
    return Figure(id, clean(sentence, 300), curves.lives(points, clean(title, 60), floors=floors), table, keys)
