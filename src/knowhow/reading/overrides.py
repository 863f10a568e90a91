"""Values set from outside a recipe: the environment first, then `--set key.path=value`. What is said last wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from knowhow.errors import UsageError
from knowhow.reading.text import UNPRINTABLE, Document, Key, parse, scalar

FORM = "key.path=value, e.g. seed=3, adapt.0.lr=1e-4, 'data.split={by: time}'"


def from_environment(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(origin, override) pairs of KNOWHOW_SEED and KNOWHOW_SET (`a=b;c=d`)."""
    found = [("KNOWHOW_SET", part.strip()) for part in environ.get("KNOWHOW_SET", "").split(";") if part.strip()]
    if environ.get("KNOWHOW_SEED"):
        found.append(("KNOWHOW_SEED", f"seed={environ['KNOWHOW_SEED']}"))
    return found


def apply(document: Document, overrides: Sequence[tuple[str, str]]) -> Document:
    """A new document with each (origin, `key.path=value`) put in. Raises UsageError when a path cannot be followed."""
    if not overrides:
        return document
    value, places = deepcopy(document.value), dict(document.places)
    for origin, text in overrides:
        place = f"{origin} {text}"
        key, new = _split(text, place)
        _put(value, key, new.value, place)
        for old in [known for known in places if known[: len(key)] == key]:
            del places[old]
        for length in range(1, len(key)):
            places.setdefault(key[:length], place)
        places[key] = place
        places |= {key + inner: place for inner in new.places}
    return Document(value, places)


def _split(text: str, place: str) -> tuple[Key, Document]:
    path, equals, value = text.partition("=")
    parts = [part.strip() for part in path.split(".")]
    if not equals or not all(parts):
        raise UsageError(f"{text!r}", allowed=FORM, where=place)
    if UNPRINTABLE.search(value):
        raise UsageError(f"a control character or a byte that is not UTF-8 in {value!r}", allowed="printable text", where=place)
    value = value.strip()
    written = parse(value, place) if value.startswith(("[", "{", "'", '"')) else Document(scalar(value))
    return tuple(int(part) if part.isdecimal() else part for part in parts), written


def _put(value: Any, key: Key, new: Any, place: str, above: Key = ()) -> None:
    """Sets value[key[0]][key[1]]… in place, making the sections on the way."""
    part, rest = key[0], key[1:]
    if isinstance(value, dict):
        part = str(part)
        inner = value.get(part)
    elif isinstance(value, list) and isinstance(part, int) and part < len(value):
        inner = value[part]
    else:
        raise _lost(value, part, ".".join(map(str, above)), place)
    if not rest:
        value[part] = new
        return
    if inner is None:
        inner = value[part] = [{}] if rest[0] == 0 else {}
    _put(inner, rest, new, place, (*above, part))


def _lost(value: Any, part: str | int, above: str, place: str) -> UsageError:
    if not isinstance(value, list):
        return UsageError(f"`{part}` inside `{above}`, which is {value!r}", allowed="a key of a section", where=place)
    allowed = f"the number of an item: 0 to {len(value) - 1}" if value else "nothing: the list is empty; set the whole list"
    return UsageError(f"item `{part}` of `{above}`, which has {len(value)}", allowed=allowed, where=place)
