"""YAML text into plain values that remember the line they were written on.

A recipe is untrusted input: no tags, no aliases, no duplicate keys, capped in size and depth. Plain words follow YAML 1.2's core schema, so that
`no` stays a word, `1e-3` is a number and `2024-05-01` is a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from knowhow.errors import UsageError

MAX_BYTES, MAX_DEPTH = 1_000_000, 32

Key = tuple[str | int, ...]

_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None, ".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf")}
_WORDS |= {cased: value for word, value in (("null", None), ("true", True), ("false", False)) for cased in (word, word.title(), word.upper())}
_QUOTE = "check the indentation, and put text that has `: `, `#` or brackets in quotes"
_DEEP, _LEVELS = f"values nested more than {MAX_DEPTH} deep", "a recipe has at most five levels"
_PLAIN = "save the file as plain UTF-8 text"
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """`value`: plain dicts, lists and scalars; `places`: where each key path was written (`recipe.yaml:12`, `--set seed=3`)."""

    value: Any
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """The place of a key, or of the nearest section round it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, "")


def scalar(text: str) -> Any:
    """A plain word as a value: `1e-3` → 0.001, `no` → "no"."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def parse_file(path: Path) -> Document:
    """Raises UsageError when the file is missing, a folder, too large, not UTF-8 or not YAML."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            fix = "keep data in its own file and name it under `data`"
            raise UsageError(f"a recipe of {size:,} bytes", allowed=f"at most {MAX_BYTES:,} bytes", fix=fix, where=str(path))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError("no such file", allowed="a recipe (YAML)", fix=_neighbours(path), where=str(path)) from error
    except IsADirectoryError as error:
        raise UsageError("a folder", allowed="a recipe (YAML file)", fix=_neighbours(path / "recipe"), where=str(path)) from error
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", allowed="a readable recipe (YAML file)", where=str(path)) from error
    if len(data) > MAX_BYTES:
        raise UsageError("a recipe without end", allowed=f"at most {MAX_BYTES:,} bytes", where=str(path))
    return parse(_decode(data, path.name), path.name)


def parse(text: str, name: str) -> Document:
    """`name` is what errors call the text: a file's name or an override. Raises UsageError."""
    document = Document(None)
    try:
        value = _Reader(yaml.parse(text, Loader=_LOADER), name, document.places).document()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        if "nesting depth" in str(error.problem):
            raise UsageError(_DEEP, allowed=_LEVELS, where=f"{name}:{line + 1}") from error
        lines = text.splitlines() or [""]
        shown = lines[min(line, len(lines) - 1)]
        fix = "indent with spaces, not with tabs" if "\t" in shown[: len(shown) - len(shown.lstrip())] else _QUOTE
        raise UsageError(f"not YAML: {error.problem or error.context} (`{shown.strip()[:80]}`)", allowed="YAML", fix=fix, where=f"{name}:{line + 1}") from error
    except yaml.reader.ReaderError as error:
        raise UsageError(f"a character that YAML does not allow (code {error.character!r})", fix=_PLAIN, where=name) from error
    except UnicodeEncodeError as error:
        raise UsageError("half of a surrogate pair, which is no character", fix=_PLAIN, where=name) from error
    return Document(value, document.places)


class _Reader:
    """Recursive descent over YAML events; `places` is filled on the way."""

    def __init__(self, events: Iterator[Any], name: str, places: dict[Key, str]) -> None:
        self.events, self.name, self.places = events, name, places

    def document(self) -> Any:
        """The only document of the stream; None when it is empty."""
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self._node(next(self.events), ())
        next(self.events)
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            self._refuse(following, "a second document (after `---`)", "one recipe per file")
        return value

    def _node(self, event: Any, key: Key) -> Any:
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"an alias (*{event.anchor})", "values written out")
        if event.tag is not None:
            self._refuse(event, f"a tag ({event.tag})", "plain values without tags")
        if len(key) > MAX_DEPTH:
            self._refuse(event, _DEEP, _LEVELS)
        self.places.setdefault(key, self._place(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(key)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(key)
        if UNPRINTABLE.search(event.value):
            self._refuse(event, f"a control character or half of a surrogate pair in {event.value[:40]!r}", "printable text")
        return scalar(event.value) if event.implicit[0] else event.value

    def _mapping(self, key: Key) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                self._refuse(event, "a key that is not a word", "keys are plain words")
            name = event.value
            if name in items:
                self._refuse(event, f"the key `{name}` twice (first at {self.places[*key, name]})", "each key once")
            self.places[*key, name] = self._place(event)
            items[name] = self._node(next(self.events), (*key, name))
        return items

    def _sequence(self, key: Key) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*key, len(items))))
        return items

    def _place(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}"

    def _refuse(self, event: Any, got: str, allowed: str) -> NoReturn:
        raise UsageError(got, allowed=allowed, where=self._place(event))


def _decode(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError("UTF-16 text", allowed="UTF-8 text", fix="save the file as UTF-8", where=name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"a byte that is not UTF-8 (0x{data[error.start]:02x})", allowed="UTF-8 text", fix=_PLAIN, where=f"{name}:{line}") from error


def _neighbours(path: Path) -> str:
    """What lies beside a recipe that is not there."""
    folder = path.parent
    found = sorted(item.name for item in folder.iterdir() if item.suffix in (".yaml", ".yml"))[:8] if folder.is_dir() else []
    return f"recipes in {folder}: {', '.join(found)}" if found else "`knowhow init` writes one"
