"""From what the user wrote (a file, a folder, a hub id) to a Source of rows."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow.data import columnar, streams, tables, textual
from knowhow.errors import SafetyError, UsageError
from knowhow.protocols import Source

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "text", ".text": "text",
}  # fmt: skip
_ALLOWED = (
    "JSONL, JSON array, CSV, TSV, Parquet, Arrow, plain text (.jsonl .json .csv .tsv .parquet .arrow .txt, each also .gz .xz .zst), a datasets folder, org/name"
)
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".dill"}
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive (xlsx, npz …)", b"%PDF": "a PDF", b"SQLite format 3": "a SQLite database", b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file", b"BZh": "a bzip2 archive", b"7z\xbc\xaf": "a 7-Zip archive", b"\x80\x04\x95": "a pickle", b"MZ": "a Windows program",
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class _Filled:
    """A source that must give at least one row."""

    source: Source
    where: str

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError when there is none, besides the source's own errors."""
        empty = True
        for row in self.source.rows():
            empty = False
            yield row
        if empty:
            raise _empty("no rows (only blank lines, or a header alone)", self.where)


def open_source(where: str | Path, *, name: str | None = None, row_limit: int = streams.ROW_LIMIT, encoding: str = "utf-8") -> Source:
    """The rows of a file, of a folder saved by `datasets`, or of a hub id; nothing but the first bytes is read yet.

    `name`: the split of a folder or hub id that has several. `row_limit`: bytes. Raises UsageError (what was got, what is allowed, the nearest
    name that exists) and SafetyError for pickles."""
    text = str(where)
    path = Path(text).expanduser()
    try:
        found = path.exists()
        if not found and path.is_symlink():
            path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(error, text) from error
    if not found:
        if _is_hub_id(where):
            return _Filled(columnar.Hub(text, name), text)
        raise _missing(path)
    if path.is_dir():
        return _Filled(_folder(path, name), text)
    if not path.is_file():
        raise UsageError("neither a file nor a folder (a device, pipe or socket)", where=text, allowed=_ALLOWED, fix="write its content to a file first")
    return _Filled(_file(path, row_limit, encoding), text)


def _file(path: Path, row_limit: int, encoding: str) -> Source:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PICKLES:
        got = f"a {suffixes[-1]} file may be a pickle, and a pickle runs code when it is opened"
        raise SafetyError(got, where=str(path), allowed=_ALLOWED, fix="export the rows as JSONL or Parquet")
    try:
        start = streams.head(path)
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror or error}", where=str(path), fix="choose a file that you may read") from error
    if not start.strip():
        raise _empty("the file is empty", str(path))
    kept = [suffix for suffix in suffixes if suffix not in streams.COMPRESSIONS]
    kind = FORMATS.get(kept[-1] if kept else "") or _sniff(start)
    _refuse_foreign(start, kind, path)
    if kind == "json" and not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        kind = "jsonl"
    match kind:
        case "jsonl":
            return textual.JsonLines(path, row_limit, encoding)
        case "json":
            return textual.JsonArray(path, row_limit, encoding)
        case "csv" | "tsv":
            return tables.Table(path, kind == "tsv", row_limit, encoding)
        case "parquet":
            return columnar.Parquet(path)
        case "arrow":
            return columnar.ArrowFiles((path,))
        case "text":
            return textual.PlainText(path, row_limit, encoding)
    raise UsageError(f"a file of an unknown kind ({path.suffix or 'no suffix'})", where=str(path), allowed=_ALLOWED, fix="rename or convert the file")


def _sniff(start: bytes) -> str | None:
    """The kind of a file whose name does not tell."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    marks = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"{": "jsonl", b"[": "json"}
    return next((kind for mark, kind in marks.items() if text.startswith(mark)), None)


def _refuse_foreign(start: bytes, kind: str | None, path: Path) -> None:
    mark = next((mark for mark in _FOREIGN if start.startswith(mark)), None)
    if mark is not None and (len(mark) > 3 or b"\0" in start[:1024]):
        raise UsageError(f"{_FOREIGN[mark]}, not {kind or 'rows'}", where=str(path), allowed=_ALLOWED, fix="export the rows in one of these formats")


def _folder(path: Path, name: str | None) -> Source:
    if columnar.is_saved_folder(path):
        return columnar.saved_folder(path, name)
    inside = sorted(entry.name for entry in path.iterdir() if _has_known_suffix(entry) and entry.is_file())
    listed = f"name one of its files: {', '.join(inside[:8])}" if inside else "name a file"
    raise UsageError("a folder where a file belongs", where=str(path), allowed=_ALLOWED, fix=listed)


def _has_known_suffix(path: Path) -> bool:
    bare = path.with_suffix("") if path.suffix.lower() in streams.COMPRESSIONS else path
    return bare.suffix.lower() in FORMATS


def _is_hub_id(where: str | Path) -> bool:
    """`org/name` as the user wrote it; a folder of the first part's name, or a data file's suffix, makes it a path."""
    text = str(where)
    if isinstance(where, Path) or not _HUB_ID.fullmatch(text):
        return False
    return not Path(text.split("/")[0]).exists() and Path(text).suffix.lower() not in {*FORMATS, *streams.COMPRESSIONS, *_PICKLES}


def _missing(path: Path) -> UsageError:
    """Says which part of the path does not exist, and the nearest name that does."""
    lost = path
    while not lost.parent.exists() and lost.parent != lost:
        lost = lost.parent
    try:
        beside = sorted(entry.name for entry in lost.parent.iterdir())
    except OSError:
        beside = []
    near = difflib.get_close_matches(lost.name, beside, n=1, cutoff=0.5)
    what = "file" if lost == path else "folder"
    fix = f"did you mean {lost.parent / near[0]} ?" if near else f"in {lost.parent} there is: {', '.join(beside[:8]) or 'nothing'}"
    return UsageError(f"no {what} {lost.name!r}", where=str(path), allowed=_ALLOWED, fix=fix)


def _unreachable(error: Exception, text: str) -> UsageError:
    looping = isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno == errno.ELOOP)
    if looping:
        return UsageError("a symbolic link that leads back to itself", where=text, allowed=_ALLOWED, fix="point the link at the real file")
    if isinstance(error, FileNotFoundError):
        return UsageError("a symbolic link to a file that does not exist", where=text, allowed=_ALLOWED, fix="point the link at the real file")
    return UsageError(
        f"a path that cannot be reached ({error.strerror if isinstance(error, OSError) else error})", where=text, allowed=_ALLOWED, fix="correct the path"
    )


def _empty(got: str, where: str) -> UsageError:
    return UsageError(got, where=where, allowed="at least one row", fix="check that the right file was named, and that writing it ended well")
