"""Rows from text files: JSONL, JSON arrays, plain text. Each source streams dicts and names file and line in its errors."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from knowhow.data import streams
from knowhow.errors import UsageError

_SPACE = re.compile(r"[ \t\r\n]*")
_LABELLED = re.compile(r"(__label__\S+|\d{1,3})[ \t]+(?=\S)")
_PEEK = 200
_LONGEST_TOKEN = 16
"""An error so near to the end of what was read may be a token (true, \\u00e9, -1.5e-300) that was cut in two."""


@dataclass(frozen=True)
class JsonLines:
    """One JSON object per line; blank lines are passed over."""

    path: Path
    row_limit: int = streams.ROW_LIMIT
    encoding: str = "utf-8"

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError for a line that is not a JSON object."""
        for number, line in streams.lines(self.path, limit=self.row_limit, encoding=self.encoding):
            if line and not line.isspace():
                yield _object(line, f"{self.path}:{number}")


@dataclass(frozen=True)
class JsonArray:
    """A file that is one JSON array of objects; read object by object."""

    path: Path
    row_limit: int = streams.ROW_LIMIT
    encoding: str = "utf-8"

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError where the array breaks off, and for an element that is not an object."""
        yield from _elements(_Text(self), self)


@dataclass(frozen=True)
class PlainText:
    """One row per line, blank lines passed over: {text}, or {label, text} when every line begins with `__label__x` or with one of a few small numbers."""

    path: Path
    row_limit: int = streams.ROW_LIMIT
    encoding: str = "utf-8"

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError when a file of labelled lines has a line without a label."""
        labelled = self._labelled()
        for number, line in self._filled():
            if not labelled:
                yield {"text": line}
                continue
            match = _LABELLED.match(line)
            if match is None:
                raise UsageError(
                    f"a line without a label: {line[:80]!r}",
                    where=f"{self.path}:{number}",
                    allowed="like the first lines: a label, a space, the text",
                    fix="add the label, or remove the line",
                )
            yield {"label": match[1].removeprefix("__label__"), "text": line[match.end() :]}

    def _filled(self) -> Iterator[tuple[int, str]]:
        return ((number, line) for number, line in streams.lines(self.path, limit=self.row_limit, encoding=self.encoding) if line and not line.isspace())

    def _labelled(self) -> bool:
        matches = [_LABELLED.match(line) for _, line in islice(self._filled(), _PEEK)]
        labels = {match[1] for match in matches if match}
        return len(matches) > 1 and all(matches) and (len(labels) <= max(1, len(matches) // 2) or all(label.startswith("__label__") for label in labels))


def _object(text: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        got = f"not JSON ({error.msg} at column {error.colno}): …{text[max(0, error.pos - 30) : error.pos + 30]}…"
        raise UsageError(got, where=where, allowed="one JSON object per line", fix="correct or remove the line") from error
    except (RecursionError, ValueError) as error:
        raise UsageError(
            f"JSON that cannot be read ({type(error).__name__}: nested too deeply, or a number of too many digits)",
            where=where,
            fix="correct or remove the line",
        ) from error
    return _checked(row, text, where)


def _checked(row: Any, text: str, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(
            f"a JSON {type(row).__name__}: {text[:80]}",
            where=where,
            allowed='an object per row, like {"text": "…", "label": "…"}',
            fix="turn the row into an object",
        )
    streams.refuse_lone_surrogates(text, row, where)
    return row


class _Text:
    """A window of decoded text that moves through the file; `pos` is the next character to read, `line` the line that it is on."""

    def __init__(self, source: JsonArray) -> None:
        self.path, self.line, self.pos, self.buffer, self.ended = source.path, 1, 0, "", False
        self._decoder = codecs.getincrementaldecoder(source.encoding)()
        self._chunks, self._read, self._line_ends = streams.chunks(source.path), 0, 0

    def more(self) -> bool:
        """Drop what was read and at least double what is left; False when there was nothing more."""
        left, gained, pieces = len(self.buffer) - self.pos, 0, [self.buffer[self.pos :]]
        while gained <= left and not self.ended:
            chunk = next(self._chunks, b"")
            self.ended = not chunk
            pieces.append(self._decode(chunk))
            gained += len(pieces[-1])
        self.buffer, self.pos = "".join(pieces), 0
        return gained > 0

    def _decode(self, chunk: bytes) -> str:
        first = self._read == 0
        if first:
            streams.refuse_byte_order_mark(chunk, self.path)
        try:
            text = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            kept_back = len(error.object) - len(chunk)
            line = 1 + self._line_ends + error.object[: error.start].count(b"\n")
            raise streams.wrong_encoding(error, self.path, line=line, offset=self._read - kept_back) from error
        self._read += len(chunk)
        self._line_ends += text.count("\n")
        return text.removeprefix("\ufeff") if first else text

    def peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            self.advance(_SPACE.match(self.buffer, self.pos).end())
            if self.pos < len(self.buffer):
                return self.buffer[self.pos]
            if not self.more() and self.pos >= len(self.buffer):
                return ""

    def advance(self, pos: int) -> None:
        self.line += self.buffer.count("\n", self.pos, pos)
        self.pos = pos

    def where(self) -> str:
        return f"{self.path}:{self.line}"


def _elements(text: _Text, source: JsonArray) -> Iterator[Mapping[str, Any]]:
    decoder = json.JSONDecoder()
    if text.peek() != "[":
        raise _broken(text, "no array")
    text.pos += 1
    first = True
    while (mark := text.peek()) != "]":
        if not first:
            if mark != ",":
                raise _broken(text, f"{mark!r} where ',' or ']' belongs" if mark else "the array is not closed (cut off?)")
            text.pos += 1
            text.peek()
        first = False
        yield _element(text, decoder, source.row_limit)
    text.pos += 1
    if text.peek():
        raise _broken(text, "text after the end of the array")


def _element(text: _Text, decoder: json.JSONDecoder, limit: int) -> Mapping[str, Any]:
    while True:
        where = text.where()
        try:
            row, end = decoder.raw_decode(text.buffer, text.pos)
        except json.JSONDecodeError as error:
            broken_off = error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - _LONGEST_TOKEN
            if broken_off and len(text.buffer) - text.pos > limit:
                raise streams.row_too_long(where, limit) from error
            if not broken_off or not text.more():
                raise UsageError(
                    f"not JSON ({error.msg})",
                    where=f"{text.path}:{text.line + text.buffer.count(chr(10), text.pos, error.pos)}",
                    allowed="an array of objects: [{…}, {…}]",
                    fix="correct the file, or fetch it again if it was cut off",
                ) from error
            continue
        except (RecursionError, ValueError) as error:
            raise UsageError(
                f"JSON that cannot be read ({type(error).__name__}: nested too deeply, or a number of too many digits)", where=where, fix="correct the file"
            ) from error
        if end - text.pos > limit:
            raise streams.row_too_long(where, limit)
        source = text.buffer[text.pos : end]
        text.advance(end)
        return _checked(row, source, where)


def _broken(text: _Text, got: str) -> UsageError:
    return UsageError(
        got,
        where=text.where(),
        allowed="an array of objects: [{…}, {…}], or one object per line (.jsonl)",
        fix="correct the file, or fetch it again if it was cut off",
    )
