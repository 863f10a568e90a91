"""What is wrong with a recipe, all at once: file and line, key, got, allowed, nearest valid key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from knowhow.errors import UsageError
from knowhow.reading.text import Document, Key

SHOWN = 8
ALSO_CALLED = {"learning_rate": "lr", "batch_size": "batch_tokens", "num_epochs": "epochs", "max_steps": "steps", "max_length": "context", "dataset": "data"}
"""What other tools call our keys, where spelling alone would not find them."""


@dataclass(frozen=True, slots=True)
class Problem:
    key: Key
    place: str
    got: str
    allowed: str
    fix: str = ""

    def line(self) -> str:
        advice = self.fix or (f"allowed: {self.allowed}" if self.allowed else "")
        return f"{self.place}: {self.got}" + (f"; {advice}" if advice else "")


def explain(error: ValidationError, document: Document, schema: Mapping[str, Any]) -> UsageError:
    """pydantic's errors as one UsageError. `schema`: the JSON Schema of the model that was validated."""
    problems: dict[Key, Problem] = {}
    for item in error.errors(include_url=False):
        problem = _problem(item, document, schema)
        problems.setdefault(problem.key, problem)
    order = {key: position for position, key in enumerate(document.places)}
    outer = {key[:length] for key in problems for length in range(len(key))}
    found = sorted((problem for key, problem in problems.items() if key not in outer), key=lambda problem: order.get(problem.key, -1))
    if len(found) == 1:
        only = found[0]
        return UsageError(only.got, allowed=_cut(only.allowed, 600), fix=only.fix, where=only.place)
    lines = [_cut(problem.line(), 130) for problem in found[:SHOWN]] + ([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])
    got = f"{len(found)} problems\n" + "\n".join(f"          {line}" for line in lines)
    return UsageError(got, fix="change these keys; `knowhow schema` prints every key and what it allows")


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


def nearest(word: str, choices: Sequence[str]) -> str:
    """The choice most like `word`, or nothing."""
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.6)), "")


def describe(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in words: "a number above 0, or a list of these"."""
    schema = _resolve(schema, root)
    if "anyOf" in schema:
        return ", or ".join(describe(part, root) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "string":
        return f"a text like {schema['pattern']}" if "pattern" in schema else "a text"
    if kind == "array":
        return f"a list of: {describe(schema.get('items', {}), root)}"
    if kind == "boolean":
        return "true or false"
    if "properties" in schema:
        return f"a section with the keys {', '.join(schema['properties'])}"
    return "a section (key: value)" if kind == "object" else "any value"


def _problem(item: Mapping[str, Any], document: Document, schema: Mapping[str, Any]) -> Problem:
    key, value = _follow(item["loc"], document.value)
    kind = item["type"]
    if kind == "missing":
        key = (*key, item["loc"][-1])
        return Problem(key, document.place(key), f"no `{dotted(key)}`", _about(key, schema), f"add `{key[-1]}:`")
    if kind == "extra_forbidden":
        return _unknown(key, document, schema)
    if kind == "value_error":
        where = f"`{dotted(key)}`: " if key else ""
        got, _, fix = str(item["ctx"]["error"]).partition("; ")
        return Problem(key, document.place(key), where + got, "", fix)
    fix = "put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return Problem(key, document.place(key), f"`{dotted(key)}` is {_show(value)}" if key else _show(value), _about(key, schema), fix)


def _unknown(key: Key, document: Document, schema: Mapping[str, Any]) -> Problem:
    section = schema_at(key[:-1], schema)
    names = list(section.get("properties", {}))
    word = ALSO_CALLED.get(str(key[-1]), str(key[-1]))
    close = nearest(word, names)
    if close:
        fix = f"did you mean `{dotted((*key[:-1], close))}`?"
    else:
        elsewhere = {path.rpartition(".")[2]: path for path in reversed(list(_paths(schema, schema)))}
        close = nearest(word, list(elsewhere))
        fix = f"did you mean `{elsewhere[close]}`?" if close else ""
    return Problem(key, document.place(key), f"`{dotted(key)}`, which is not a key of a recipe", ", ".join(names), fix)


def schema_at(key: Key, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a JSON Schema that a key path leads to; {} when it leads nowhere."""
    schema: Mapping[str, Any] = root
    for part in key:
        schema = _child(schema, part, root)
    return next((option for option in _options(schema, root) if "properties" in option), schema)


def _child(schema: Mapping[str, Any], part: str | int, root: Mapping[str, Any]) -> Mapping[str, Any]:
    for option in _options(schema, root):
        more = option.get("additionalProperties")
        inner = option.get("items") if isinstance(part, int) else option.get("properties", {}).get(part, more if isinstance(more, dict) else None)
        if inner is not None:
            return dict(inner)
    return {}


def _options(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    schema = _resolve(schema, root)
    return [_resolve(option, root) for option in schema.get("anyOf", [schema])]


def _about(key: Key, schema: Mapping[str, Any]) -> str:
    """What a key allows, and what it is for."""
    field: Mapping[str, Any] = schema
    for part in key:
        field = _child(field, part, schema)
    purpose = field.get("description", "") or _resolve(field, schema).get("description", "")
    return describe(field, schema) + (f" ({purpose})" if purpose else "")


def _follow(location: Sequence[str | int], value: Any) -> tuple[Key, Any]:
    """pydantic's location as a key path: what it names between keys (branches of a union) is left out."""
    key: Key = ()
    for part in location:
        named = isinstance(value, dict) and part in value
        if named or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            key, value = (*key, part), value[part]
    return key, value


def _paths(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a recipe, dotted; items of a list are item 0."""
    for option in _options(schema, root):
        for name, child in option.get("properties", {}).items():
            yield prefix + name
            yield from _paths(child, root, f"{prefix}{name}.")
        if option.get("type") == "array":
            yield from _paths(option.get("items", {}), root, f"{prefix}0.")


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref", "")
    return root["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


def _range(schema: Mapping[str, Any]) -> str:
    words = (("exclusiveMinimum", "above"), ("minimum", "at least"), ("exclusiveMaximum", "below"), ("maximum", "at most"))
    said = [f"{word} {schema[name]:g}" if abs(schema[name]) < 1e6 else f"{word} {schema[name]}" for name, word in words if name in schema]
    return f" {' and '.join(said)}" if said else ""


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return f"a section ({', '.join(list(value)[:5])})" if value else "an empty section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "empty"
    return _cut(json.dumps(value, ensure_ascii=False), 80)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
