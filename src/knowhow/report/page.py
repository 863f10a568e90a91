"""A run folder → one self-contained report.html: no request to anywhere, nothing runs but the page's own two scripts, every foreign text escaped.

The Content-Security-Policy names the scripts and the style sheet by sha256, so even a hole in the escaping would not run anything.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import markupsafe
import vl_convert

from knowhow.files import write_atomic
from knowhow.report import asked, audit, changes, examples, explanation, forecasts, inside, looked, provenance, read, results, training, trust
from knowhow.report.diff import diff
from knowhow.report.numbers import decimal, duration, metric_name, number, part, percent, signed, size, span
from knowhow.report.parts import Section, Tile
from knowhow.report.text import clean
from knowhow.report.verdict import SPECIALIST, Verdict, find

__all__ = ["diff", "render", "write"]

Maker = Callable[[read.Run], Section]
# id, title, files of which at least one is needed, what fills it
SECTIONS: tuple[tuple[str, str, tuple[str, ...], Maker], ...] = (
    ("baselines", "Specialist against baselines", ("results",), results.baselines),
    ("asked", "What was asked", ("recipe",), asked.asked),
    ("audit", "The data", ("audit", "vocabulary"), audit.audit),
    ("learning", "How it learned", ("trace",), training.learning),
    ("classes", "Classes and slices", ("results", "confusion"), results.classes),
    ("calibration", "Does it know when it does not know?", ("calibration",), trust.calibration),
    ("forgetting", "What it forgot", ("forgetting",), trust.forgetting),
    ("robustness", "What it stands", ("robustness",), trust.robustness),
    ("memorisation", "What it memorised", ("memorisation",), trust.memorisation),
    ("cost", "What it cost", ("measured",), training.cost),
    ("explanation", "What answers rest on", ("findings",), explanation.explanation),
    ("inside", "Where the skill lives", ("inside",), inside.inside),
    ("changes", "What training changed", ("diff",), changes.changes),
    ("circuit", "The circuit behind the answers", ("circuit",), looked.circuit),
    ("features", "Features", ("features",), looked.features),
    ("influence", "Training rows behind answers", ("influence",), looked.influence),
    ("predictions", "Predicted and measured", ("predictions",), forecasts.predictions),
    ("examples", "Worked examples", ("samples",), examples.examples),
    ("specialist", "The specialist", ("package",), provenance.specialist),
    ("provenance", "Provenance", ("run", "measured"), provenance.provenance),
)


@dataclass(frozen=True, slots=True)
class About:
    """What stands above a page's verdict."""

    name: str
    description: str
    run: str
    subtitle: str


def write(run: Path, out: Path) -> Path:
    """Read the run folder (finished or not) and write the page to `out`; returns `out`. Raises UsageError when `run` is not a run."""
    write_atomic(out, render(read.load(run)))
    return out


def render(run: read.Run) -> str:
    """The page as text. The same files give the same bytes."""
    sections = [section(run, *entry) for entry in SECTIONS]
    told = results.verdict(run)
    recipe = run.get("recipe")
    about = About(
        clean(recipe.get("name") or run.get("run").get("name") or run.name, 80),
        clean(recipe.get("description") or "", 300),
        clean(run.get("run").get("id") or run.name, 80),
        _subtitle(recipe),
    )
    return assembled(about, told, _headline(run, told), sections)


def assembled(about: About, told: Verdict, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    """A page of sections: its style, scripts and charts inside it."""
    style, mount, vega = asset("page.css"), asset("page.js"), bundle()
    return template("page.html.j2").render(
        name=about.name,
        description=about.description,
        run_id=about.run,
        subtitle=about.subtitle,
        verdict=told,
        tiles=tiles,
        sections=sections,
        style=markupsafe.Markup(style),
        scripts=[markupsafe.Markup(vega), markupsafe.Markup(mount)],
        specs=markupsafe.Markup(_json({figure.id: figure.spec for made in sections for figure in made.figures})),
        policy=policy([vega, mount], style),
    )


def section(run: read.Run, id: str, title: str, needs: tuple[str, ...], make: Maker) -> Section:
    """One section; files that are absent or of another shape leave one line that says so."""
    if all(key in run.why for key in needs):
        return Section(id=id, title=title, missing=run.reason(*needs))
    try:
        made = make(run)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        made = Section(missing=f"the files of this section do not have the expected form: {type(error).__name__}: {clean(error, 160)}")
    return replace(made, id=id, title=title)


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script for all charts (about 0.9 MB)."""
    wanted = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle(vl_version=wanted if wanted in vl_convert.get_vegalite_versions() else None)


def policy(scripts: list[str], style: str) -> str:
    """A Content-Security-Policy that forbids every request and every script but these."""

    def quoted(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; script-src {' '.join(map(quoted, scripts))}; style-src {quoted(style)}; img-src data:; base-uri 'none'; form-action 'none'"


def _headline(run: read.Run, told: Verdict) -> tuple[Tile, ...]:
    """The few numbers that people look for first."""
    tiles = []
    own = find(run.results, model=SPECIALIST, metric=told.metric)
    if own:
        tiles.append(Tile(metric_name(told.metric), decimal(own.value), f"95% interval {span(own.low, own.high)}"))
    for gap in told.gaps[:1]:
        interval = span(gap.difference.low, gap.difference.high, sign=True)
        tiles.append(Tile(f"against {clean(gap.baseline, 24)}", signed(gap.difference.value), interval, "good" if gap.beaten else "bad"))
    measured, forgotten = run.get("measured"), run.get("forgetting")
    others = (
        (number(run.get("calibration"), "after", "ece"), percent, "calibration error", "after temperature scaling"),
        (number(forgotten, "value"), signed, "forgetting", clean(forgotten.get("unit") or "nats per token", 40)),
        (number(measured, "bytes"), size, "size", ""),
        (number(measured, "stages", "adapt"), duration, "training", ""),
    )
    return (*tiles, *(Tile(label, write(value), note) for value, write, label, note in others if value is not None))


def _subtitle(recipe: Mapping[str, Any]) -> str:
    model = part(recipe, "base").get("model")
    return " · ".join(item for item in (asked.task_name(recipe), f"from {clean(model, 120)}" if model else "") if item)


def _json(value: object) -> str:
    """JSON that may stand inside a script element: nothing in it can close the element or open a comment."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    return resources.files("knowhow.report").joinpath(name).read_text("utf-8").replace("\r\n", "\n")


def template(name: str) -> jinja2.Template:
    """Every value is escaped and cleaned on its way out; undefined names are our own bug."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize)
    return environment.from_string(asset(name))


def _finalize(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value
