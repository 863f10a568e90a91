"""Bytes on disk (layer 0, standard library only): atomic writes, digests, JSONL that tolerates a torn last line.

Every file the project writes goes through here, so that a kill at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from knowhow.errors import ResourceError, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system says when there is no more room for a file."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value gives the same text; lone surrogates survive as escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)


def digest(value: Any) -> str:
    """sha256 of bytes, or of the canonical JSON of anything else."""
    return hashlib.sha256(value if isinstance(value, bytes) else canonical(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """{relative path: sha256} of every file under `folder`, sorted; names in `without` are left out (measured.json: times, dates)."""
    skip = set(without)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skip)
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in paths}


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name, fsync, rename, fsync the folder. Raises ResourceError when the disk is full, UsageError when it may not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Atomic JSON; dataclasses become objects, NaN becomes null."""
    write_atomic(path, json.dumps(_finite(value), indent=indent, sort_keys=True, ensure_ascii=True, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Raises UsageError naming file and position when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not JSON: {error}", where=str(path), fix="restore the file, or remove it and run again") from error


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one record; a torn last line left by a kill is closed first, so the new record never joins it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(_finite(row), ensure_ascii=True, default=_plain).encode() + b"\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Records in order; lines that are not JSON objects (torn by a kill) are passed over. Nothing when the file is absent."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


class writing:
    """Turns the operating system's write errors into named ones; `path` is what was being written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        number = None if error is None else system_error(error)
        if number in FULL:
            free = shutil.disk_usage(existing_parent(self.path)).free
            got = "a file larger than this system allows" if number == errno.EFBIG else f"the disk is full ({free / 1e6:.0f} MB free)"
            raise ResourceError(got, where=str(self.path), fix="free some space (`knowhow runs gc`), then run it again") from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR):
            raise UsageError(f"cannot write here: {os.strerror(number)}", where=str(self.path), fix="choose a folder that you may write to") from error


def system_error(error: BaseException) -> int | None:
    """The operating system's number of an error; libraries written in Rust (safetensors, tokenizers) give it in their message alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in [path, *path.absolute().parents] if parent.is_dir())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    return _finite(_plain(value))
