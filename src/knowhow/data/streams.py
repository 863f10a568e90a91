"""Bytes to text: decompression, decoding, lines and their limits. Every failure names file, line and byte offset."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from knowhow.errors import UsageError

ROW_LIMIT = 8 * 2**20
CHUNK = 1 << 20

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BYTE_ORDER_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def compression(path: Path) -> str | None:
    """`gzip`, `xz`, `zstd` or None, read from the first bytes; a name that promises otherwise is an error."""
    with path.open("rb") as file:
        head = file.read(6)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    promised = COMPRESSIONS.get(path.suffix.lower())
    if promised and promised != found:
        raise UsageError(
            f"the name ends in {path.suffix}, but the file is not {promised} (it begins with {head!r})",
            where=str(path),
            fix="give the file its true name, or fetch it again",
        )
    return found


def chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content in pieces of about a megabyte, never the whole. Raises UsageError for a truncated or damaged archive."""
    done = 0
    try:
        for chunk in _decompressed(path, compression(path)):
            done += len(chunk)
            yield chunk
    except _BROKEN as error:
        reason = "ends too early (truncated)" if _truncated(error) else f"is damaged: {error}"
        raise UsageError(f"the compressed file {reason}, after {done:,} bytes of content", where=str(path), fix="fetch or compress the file again") from error
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror or error}", where=str(path), fix="choose a readable file") from error


def head(path: Path, size: int = 1 << 16) -> bytes:
    """The first `size` bytes of content."""
    taken = bytearray()
    for chunk in chunks(path):
        taken += chunk
        if len(taken) >= size:
            break
    return bytes(taken[:size])


@contextmanager
def seekable(path: Path) -> Iterator[IO[bytes]]:
    """The content as a file that can seek; a compressed one is first unpacked to a nameless temporary file."""
    if compression(path) is None:
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        for chunk in chunks(path):
            file.write(chunk)
        file.seek(0)
        yield file


def lines(path: Path, *, limit: int = ROW_LIMIT, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end). A UTF-8 byte order mark is dropped.

    Raises UsageError for a wrong encoding, a NUL byte or a line of more than `limit` bytes."""
    offset = 0
    for number, raw in enumerate(_raw_lines(chunks(path), limit), start=1):
        start = offset
        offset += len(raw) + 1
        if number == 1:
            refuse_byte_order_mark(raw, path)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > limit:
            raise row_too_long(f"{path}:{number}", limit)
        yield number, decode(raw, path, encoding=encoding, line=number, offset=start).removesuffix("\r")


def decode(raw: bytes, path: Path, *, encoding: str, line: int, offset: int) -> str:
    """Text of `raw`, which begins at byte `offset` of the file; UsageError where it is not `encoding` or holds NUL."""
    if b"\0" in raw:
        at = offset + raw.index(b"\0")
        raise UsageError(
            f"a NUL byte at byte {at:,}",
            where=f"{path}:{line}",
            allowed="text in UTF-8",
            fix=f"a UTF-16 or binary file? convert it: iconv -f utf-16 -t utf-8 {path.name}",
        )
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise wrong_encoding(error, path, line=line, offset=offset) from error


def wrong_encoding(error: UnicodeDecodeError, path: Path, *, line: int, offset: int) -> UsageError:
    """`offset`: byte of the file at which `error.object` begins."""
    got = f"byte 0x{error.object[error.start]:02x} at byte {offset + error.start:,} is not {error.encoding.upper()} ({error.reason})"
    return UsageError(got, where=f"{path}:{line}", allowed="text in UTF-8", fix=f"convert it: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}")


def refuse_byte_order_mark(raw: bytes, path: Path) -> None:
    """UsageError when the file begins like UTF-16 or UTF-32."""
    name = next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    if name:
        raise UsageError(
            f"the file is {name} (byte order mark)",
            where=f"{path}:1",
            allowed="text in UTF-8",
            fix=f"convert it: iconv -f {name.lower()} -t utf-8 {path.name} > utf8-{path.name}",
        )


def refuse_lone_surrogates(source: str, row: Any, where: str) -> None:
    """UsageError when the parsed `row` holds half a surrogate pair; `source` is the JSON text, looked through first because escapes are rare."""
    if not _SURROGATE_ESCAPE.search(source):
        return
    field = next((name for name, value in row.items() if holds_surrogate(name) or holds_surrogate(value)), None)
    if field is not None:
        raise UsageError(
            f"field {field!r} holds a lone surrogate, which is no character",
            where=where,
            allowed="text that can be written as UTF-8",
            fix="remove the broken escape (\\ud800 to \\udfff without its other half)",
        )


def lone_surrogate(text: str) -> bool:
    """True when `text` cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def holds_surrogate(value: Any) -> bool:
    """True when a text anywhere in parsed JSON cannot be written as UTF-8."""
    if isinstance(value, str):
        return lone_surrogate(value)
    if isinstance(value, dict):
        return any(holds_surrogate(item) for item in (*value.keys(), *value.values()))
    return isinstance(value, list) and any(holds_surrogate(item) for item in value)


def row_too_long(where: str, limit: int) -> UsageError:
    return UsageError(
        f"a row of more than {limit:,} bytes", where=where, allowed=f"at most {limit / 2**20:g} MB per row", fix="split the row, or raise the limit (row_limit)"
    )


def _decompressed(path: Path, kind: str | None) -> Iterator[bytes]:
    if kind == "zstd":
        yield from _zstd(path)
        return
    openers = {"gzip": gzip.open, "xz": lzma.open, None: io.open}
    with openers[kind](path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _zstd(path: Path) -> Iterator[bytes]:
    """Frames one after another; the library's own reader takes a truncated frame for a finished one, so the end is checked here.

    Fed in small sips: one block of a few bytes can unpack to 128 kB, so a megabyte at once could fill the memory."""
    sip, ready = 512, bytearray()
    with path.open("rb") as file:
        rest = file.read(sip)
        while rest:
            frame = zstandard.ZstdDecompressor().decompressobj()
            while not frame.eof:
                if not rest:
                    raise EOFError
                ready += frame.decompress(rest)
                if len(ready) >= CHUNK:
                    yield bytes(ready)
                    ready.clear()
                rest = b"" if frame.eof else file.read(sip)
            rest = frame.unused_data or file.read(sip)
    yield bytes(ready)


def _truncated(error: Exception) -> bool:
    return isinstance(error, EOFError) or "ended before" in str(error)


def _raw_lines(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > limit:
            break
    if rest:
        yield rest
