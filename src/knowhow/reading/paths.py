"""Where a recipe's files are: relative to the recipe, or in the data folder that KNOWHOW_DATA names.

A recipe keeps its paths as they were written, so that the same recipe has the same digest wherever it lies; `locate` finds them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from knowhow.errors import UsageError
from knowhow.reading.text import Key
from knowhow.recipe import PretrainRecipe, Recipe

AnyRecipe = TypeVar("AnyRecipe", Recipe, PretrainRecipe)

_VARIABLE = re.compile(r"^\$(?:KNOWHOW_DATA|\{KNOWHOW_DATA\})(?:/|$)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA_SUFFIX = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|md|yaml|safetensors)(\.(gz|xz|zst))?$", re.IGNORECASE)
_EMBEDDED = ("seedling", "minilm")


def data_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of data made by others: KNOWHOW_DATA, else `shared/data` beside the checkout, else None."""
    environ = os.environ if environ is None else environ
    if environ.get("KNOWHOW_DATA"):
        return Path(environ["KNOWHOW_DATA"]).expanduser().absolute()
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    return beside if beside.is_dir() else None


def locate(value: str, root: Path, environ: Mapping[str, str] | None = None) -> str:
    """A path of a recipe as an absolute path; the name of an embedded model or a hub id stays as it is.

    `root`: the recipe's folder. Raises UsageError when the path needs KNOWHOW_DATA and there is none."""
    if _VARIABLE.match(value):
        return _in_data_folder(value, environ)
    path = Path(value).expanduser()
    if path.is_absolute():
        return str(path)
    beside = Path(os.path.normpath(root.absolute() / path))
    return value if not _looks_like_path(value) and not beside.exists() else str(beside)


def located(recipe: AnyRecipe, root: Path, environ: Mapping[str, str] | None = None) -> AnyRecipe:
    """The recipe with every path absolute."""
    return _mapped(recipe, lambda value: locate(value, root, environ))


def expanded(recipe: AnyRecipe, environ: Mapping[str, str] | None = None) -> AnyRecipe:
    """The recipe with $KNOWHOW_DATA filled in; paths that are relative to the recipe stay relative."""
    return _mapped(recipe, lambda value: _in_data_folder(value, environ) if _VARIABLE.match(value) else value)


def missing(recipe: Recipe | PretrainRecipe, root: Path, environ: Mapping[str, str] | None = None) -> tuple[Key, UsageError] | None:
    """The first key whose path cannot be found, with the error to show; None when all are there (hub ids are not asked for)."""
    for key, value in _named(recipe):
        try:
            found = locate(value, root, environ)
        except UsageError as error:
            return key, error
        if (found != value or _looks_like_path(value)) and not Path(found).exists():
            relative = "KNOWHOW_DATA names the folder" if _VARIABLE.match(value) else "paths are relative to the recipe's folder"
            if os.path.islink(found):
                got = f"`{'.'.join(map(str, key))}`: {found} is a symbolic link to {os.readlink(found)}, which leads nowhere"
                return key, UsageError(got, allowed="a file or folder that is there", fix="point the link at the real file")
            got = f"`{'.'.join(map(str, key))}`: nothing at {found}"
            return key, UsageError(got, allowed="a file or folder that is there", fix=_similar(Path(found), relative))
    return None


def _in_data_folder(value: str, environ: Mapping[str, str] | None) -> str:
    folder = data_folder(environ)
    if folder is None:
        fix = "export KNOWHOW_DATA=/path/to/data"
        raise UsageError(f"{value!r}, but KNOWHOW_DATA is not set", allowed="KNOWHOW_DATA: the folder that holds the data", fix=fix)
    return os.path.normpath(folder / _VARIABLE.sub("", value))


def _looks_like_path(value: str) -> bool:
    if value in _EMBEDDED:
        return False
    return value.startswith((".", "/", "~")) or value.endswith("/") or bool(_DATA_SUFFIX.search(value)) or not _HUB_ID.fullmatch(value)


def _named(recipe: Recipe | PretrainRecipe) -> Iterator[tuple[Key, str]]:
    """Each path with its key."""
    if isinstance(recipe, Recipe):
        data = recipe.data
        named: dict[Key, str | None] = {("base", "model"): recipe.base.model}
        named |= {("data", "train"): data.train, ("data", "valid"): data.valid, ("data", "test"): data.test}
        yield from ((key, value) for key, value in named.items() if value is not None)
        options: dict[Key, Mapping[str, Any]] = {("data", "options"): data.options}
        options |= {("data", "generate", "options"): data.generate.options} if data.generate else {}
        for place, mapping in options.items():
            yield from (((*place, name), value) for name, value in mapping.items() if isinstance(value, str) and _VARIABLE.match(value))
        return
    for part, corpora in (("corpora", recipe.corpora), ("valid", recipe.valid)):
        for name, corpus in corpora.items():
            yield from (((part, name, "files", index), value) for index, value in enumerate(corpus.files))


def _mapped(recipe: AnyRecipe, change: Callable[[str], str]) -> AnyRecipe:
    raw: Any = recipe.model_dump(exclude_unset=True)
    for key, value in _named(recipe):
        inner = raw
        for part in key[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else inner[part]
            if inner is None:
                break
        if inner is not None:
            inner[key[-1]] = change(value)
    return type(recipe).model_validate(raw)


def _similar(path: Path, relative: str) -> str:
    """What there is instead of a missing path."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    names = sorted(item.name for item in folder.iterdir())[:2000]
    missing_name = path.relative_to(folder).parts[0]
    close = difflib.get_close_matches(missing_name, names, n=3)
    if close:
        return f"did you mean {' or '.join(str(folder / name) for name in close)}?"
    return f"{folder} has no `{missing_name}`; {relative}"
