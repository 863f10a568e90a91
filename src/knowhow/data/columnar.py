"""Rows from Parquet and Arrow files, folders written by `datasets`, and the hub. Class numbers are turned into the names their schema gives."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from knowhow.data import streams
from knowhow.errors import UsageError

_BATCH = 256


@dataclass(frozen=True)
class Parquet:
    path: Path

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError when the file is not Parquet or is damaged."""
        try:
            with streams.seekable(self.path) as file:
                table = pyarrow.parquet.ParquetFile(file)
                names = _class_names(table.schema_arrow.metadata)
                for batch in table.iter_batches(batch_size=_BATCH):
                    yield from _rows(batch, names)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error, self.path, "Parquet") from error


@dataclass(frozen=True)
class ArrowFiles:
    """Arrow IPC files (either form, file or stream), one after another."""

    paths: tuple[Path, ...]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError when a file is not Arrow or is damaged."""
        for path in self.paths:
            try:
                with streams.seekable(path) as file:
                    yield from self._of_file(file)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(error, path, "Arrow") from error

    def _of_file(self, file: Any) -> Iterator[Mapping[str, Any]]:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        if whole:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = reader = pa.ipc.open_stream(file)
        names = _class_names(reader.schema.metadata)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield from _rows(batch.slice(start, _BATCH), names)


@dataclass(frozen=True)
class Hub:
    """A data set of the hub, streamed; `split` None means train, or the only one."""

    id: str
    split: str | None = None

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Raises UsageError when it cannot be reached, does not exist or has no such split."""
        # Imported here: it takes a second and only a hub id needs it.
        import datasets

        try:
            found = datasets.load_dataset(self.id, streaming=True)
            split = pick_split(list(found), self.split, where=self.id)
            features = found[split].features or {}
            names = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
            for row in found[split]:
                yield _named(row, names)
        except UsageError:
            raise
        except Exception as error:  # the hub's client raises dozens of types of its own for names, network and formats
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"the hub's data set {self.id!r} cannot be read: {reason}",
                where=self.id,
                allowed="a file, a folder, or a hub id that this machine can reach",
                fix="check the name and the network, or download it and give its path",
            ) from error


def saved_folder(folder: Path, split: str | None) -> ArrowFiles:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`; its Arrow files are read directly.

    Raises UsageError when the split is not there or the listed files are missing or lie outside the folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        part = pick_split([str(name) for name in splits], split, where=str(folder))
        return saved_folder(_inside(folder, part), None)
    listed = [str(entry.get("filename", "")) for entry in _json(folder / "state.json").get("_data_files", [])]
    paths = tuple(_inside(folder, name) for name in listed)
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise UsageError(
            f"the folder lacks {', '.join(missing) or 'data files'}",
            where=str(folder),
            allowed="a folder written by datasets' save_to_disk, complete",
            fix="save or copy it again",
        )
    return ArrowFiles(paths)


def is_saved_folder(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def pick_split(splits: Sequence[str], wanted: str | None, *, where: str) -> str:
    """`wanted`, else the only one, else train."""
    choice = wanted or (splits[0] if len(splits) == 1 else "train")
    if choice not in splits:
        raise UsageError(f"no split {choice!r}", where=where, allowed=", ".join(splits), fix="name one of these splits")
    return choice


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes()[: streams.ROW_LIMIT])
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}", where=str(path), fix="save the data set again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path.name} holds no object", where=str(path), fix="save the data set again")
    return content


def _inside(folder: Path, name: str) -> Path:
    """`folder/name`, where name is a plain name: what a data folder says is not a path to follow."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise UsageError(f"the file name {name!r} leads out of the folder", where=str(folder), allowed="plain file names", fix="save the data set again")
    return folder / name


def _rows(batch: pa.RecordBatch, names: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any]]:
    for row in batch.to_pylist():
        yield _named(row, names)


def _named(row: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    return {key: _plain(value, names.get(key)) for key, value in row.items()}


def _plain(value: Any, names: Sequence[str] | None) -> Any:
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if names is not None and isinstance(value, list):
        return [_plain(item, names) for item in value]
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return value


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Columns whose Hugging Face feature is a ClassLabel (alone or in a sequence), with the names of the classes."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        leaves = {name: _leaf(feature) for name, feature in features.items()}
        return {name: [str(label) for label in leaf["names"]] for name, leaf in leaves.items() if leaf.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _leaf(feature: Any) -> Mapping[str, Any]:
    while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    if isinstance(feature, list) and feature:
        feature = feature[0]
    return feature if isinstance(feature, dict) else {}


def _damaged(error: Exception, path: Path, kind: str) -> UsageError:
    return UsageError(
        f"not {kind}, or damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}", where=str(path), fix="fetch or write the file again"
    )
