"""Where it all came from: the packaged folder, digests, seeds, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knowhow.report.numbers import in_order, items, part, plural
from knowhow.report.parts import Section, Table
from knowhow.report.read import Run
from knowhow.report.text import clean


def specialist(run: Run) -> Section:
    """The packaged folder: limits, licence, digest, files."""
    manifest = run.get("package")
    files = part(manifest, "files")
    limits = tuple(clean(limit, 600) for limit in items(manifest, "limits"))
    listed = Table("Files and their sha256", ("file", "sha256"), tuple((clean(name, 120), clean(value, 80)) for name, value in list(files.items())[:100]))
    lead = f"{plural(len(files), 'file')}, each with its digest." + (" What to know before using it:" if limits else "")
    return Section(lead=lead, notes=limits, tables=(_pairs("The folder", manifest, ("name", "licence", "parent", "digest")), listed))


def provenance(run: Run) -> Section:
    """Run, seeds, stage seals, versions, machine."""
    about, measured = run.get("run"), run.get("measured")
    stages = part(about, "stages")
    named = [(name, stages[name]) for name in in_order(stages)]
    seals = tuple((clean(name, 40), clean(stage.get("digest", "") if isinstance(stage, Mapping) else stage, 80)) for name, stage in named)
    tables = [_pairs("The run", about, ("id", "name", "knowhow", "recipe_sha256", "seed")), Table("Seals of the stages", ("stage", "sha256"), seals)]
    tables += [_pairs(caption, part(measured, key), tuple(part(measured, key))[:60]) for key, caption in (("versions", "Versions"), ("machine", "Machine"))]
    return Section(tables=tuple(tables))


def _pairs(caption: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> Table:
    """Named values that are there, as rows of two cells."""
    rows = tuple((clean(key.replace("_", " "), 60), _plain(values[key])) for key in keys if values.get(key) not in (None, ""))
    return Table(caption, ("", ""), rows)


def _plain(value: Any) -> str:
    return clean(", ".join(str(item) for item in value) if isinstance(value, list) else value, 200)
