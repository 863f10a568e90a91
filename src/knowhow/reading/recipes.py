"""`read`: a recipe file and overrides in, a checked Recipe or PretrainRecipe out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from knowhow.errors import UsageError
from knowhow.reading import overrides as override
from knowhow.reading import paths, problems, sizes
from knowhow.reading.text import Document, Key, parse_file
from knowhow.recipe import SCHEMA_VERSION, PretrainRecipe, Recipe

SCHEMA_ID = f"urn:knowhow:recipe:{SCHEMA_VERSION}"
SCHEMA_FILE = "recipe.schema.json"

MOVED_FROM_0: dict[str, Key] = {"model": ("base", "model"), "epochs": ("adapt", 0, "epochs")}
"""What version 0 (without a `schema_version`) kept at the top level."""


def read(path: Path | str, sets: Sequence[str] = (), *, environ: Mapping[str, str] | None = None, must_exist: bool = True) -> Recipe | PretrainRecipe:
    """The recipe at `path` with KNOWHOW_SET, KNOWHOW_SEED and then `sets` (`key.path=value`) put in; a file with `corpora` is a PretrainRecipe.

    Paths stay as written (see `locate`). `must_exist`: files named by the recipe must be there. Raises UsageError that names every problem."""
    environ = os.environ if environ is None else environ
    document = parse_file(Path(path))
    if document.value is None:
        raise UsageError("an empty recipe", allowed="at least `name:` and `data:`", fix="`knowhow init` writes one", where=str(path))
    if not isinstance(document.value, dict):
        got = f"a recipe that is {'a list' if isinstance(document.value, list) else 'one value'}"
        raise UsageError(got, allowed="keys and values (`name: …`)", where=str(path))
    document = _migrated(document)
    document = override.apply(document, [*override.from_environment(environ), *(("--set", text) for text in sets)])
    model = PretrainRecipe if "corpora" in document.value else Recipe
    try:
        recipe = model.model_validate(document.value)
    except ValidationError as error:
        raise problems.explain(error, document, model.model_json_schema()) from None
    found = sizes.clash(recipe) if isinstance(recipe, PretrainRecipe) else None
    if found is None and must_exist:
        found = paths.missing(recipe, Path(path).absolute().parent, environ)
    if found is not None:
        key, wrong = found
        raise UsageError(wrong.got, allowed=wrong.allowed, fix=wrong.fix, where=document.place(key))
    return recipe


def migrate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of any older version as one of the present version; values are moved, never changed. Raises UsageError for a newer one."""
    new = deepcopy(dict(raw))
    version = new.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(f"schema_version {version}", allowed=f"up to {SCHEMA_VERSION}", fix="upgrade knowhow, or write the recipe anew with `knowhow init`")
    if version in (None, 0) and ("corpora" not in new):
        for name, (section, *inner) in MOVED_FROM_0.items():
            if name in new:
                _move(new, name, section, inner)
    if version == 0:
        new["schema_version"] = SCHEMA_VERSION
    return new


def dump(recipe: Recipe | PretrainRecipe) -> str:
    """The recipe as YAML: what was said, without the defaults."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True, width=120)


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of everything that `read` takes: a specialist, or a base model when the file has `corpora`."""
    specialist, base = Recipe.model_json_schema(), PretrainRecipe.model_json_schema()
    shared = specialist.pop("$defs") | base.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "knowhow recipe",
        "type": "object",
        "if": {"required": ["corpora"]},
        "then": {"$ref": "#/$defs/PretrainRecipe"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": {"Recipe": specialist, "PretrainRecipe": base, **shared},
    }


def _migrated(document: Document) -> Document:
    try:
        value = migrate(document.value)
    except UsageError as error:
        raise UsageError(error.got, allowed=error.allowed, fix=error.fix, where=document.place(("schema_version",))) from error
    places = dict(document.places)
    for old, new in MOVED_FROM_0.items():
        if old in document.value and old not in value:
            places[new] = places[(old,)]
    return Document(value, places)


def _move(raw: dict[str, Any], name: str, section: str | int, inner: Sequence[str | int]) -> None:
    """Takes `name` from the top level into raw[section]…; what is there already wins, and then the old key stays to be named as unknown."""
    holder: Any = raw.setdefault(str(section), [{}] if inner[0] == 0 else {})
    for part in inner[:-1]:
        if not isinstance(holder, list) or not holder:
            return
        holder = holder[int(part)]
    if isinstance(holder, dict) and inner[-1] not in holder:
        holder[str(inner[-1])] = raw.pop(name)
