"""Safetensors files verified by ourselves before any library maps them.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). The library caps the header and forbids overlap; it checks neither NaN nor duplicate names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.errors import SafetyError, UsageError

HEADER_LIMIT = 32 << 20
TENSOR_LIMIT = 200_000
NAME_LIMIT = 512
RANK_LIMIT = 8
CHUNK = 16 << 20
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")

BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
# All exponent bits set means NaN or infinity; E4M3 has no infinity and its one NaN is all ones.
EXPONENT: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: `start:end` are bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a verified file holds. `offset`: where the tensors' bytes begin."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    offset: int
    size: int


def strict_json(text: bytes, *, where: str, unique: bool = True) -> Any:
    """JSON without NaN, without duplicate keys (`unique`) and without bottomless nesting. Raises SafetyError with the reason."""
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None, parse_constant=_no_constant)
    except RecursionError:
        raise SafetyError("JSON nested too deep to be read", where=where, fix="do not use this folder") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise SafetyError(f"not valid JSON: {error}", where=where, fix="get the file again from its author") from None


def read_header(path: Path) -> Header:
    """The header of `path` after every check on it. Raises SafetyError naming what is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            _refuse(path, f"truncated safetensors: a header of {length} bytes in a file of {size}")
        if length > HEADER_LIMIT:
            _refuse(path, f"oversized header: {length} bytes", allowed=f"at most {HEADER_LIMIT} bytes")
        raw = file.read(length)
    if not raw.startswith(b"{"):
        _refuse(path, "not a safetensors file (its header is no JSON object), whatever its name says")
    header = strict_json(raw, where=str(path))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "the header's __metadata__ is not a map of texts")
    if not 0 < len(header) <= TENSOR_LIMIT:
        _refuse(path, f"{len(header)} tensors in the header", allowed=f"1 to {TENSOR_LIMIT}")
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    _check_layout(path, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length, size)


def scan(path: Path, header: Header) -> str:
    """One pass over the bytes: refuses NaN and infinite weights, returns the file's sha256."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        hasher.update(file.read(header.offset))
        for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].start):
            left = tensor.end - tensor.start
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    _refuse(path, "truncated safetensors: the file shrank while it was read")
                hasher.update(chunk)
                left -= len(chunk)
                _check_values(path, name, tensor.dtype, chunk)
    return hasher.hexdigest()


def check_index(index: Path, document: Any, headers: Mapping[str, Header]) -> tuple[str, ...]:
    """Shard names of an index file, each a plain name in the same folder that is there and holds what the index says. `headers`: by shard name."""
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "an index without a weight_map")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            _refuse(index, f"shard name {shard!r} is not a plain file name", allowed="a name like model-00001-of-00002.safetensors, without folders")
        if shard not in headers:
            raise UsageError(f"the index names the shard {shard}, which is not there", where=str(index), fix="download the missing file")
        if tensor not in headers[shard].tensors:
            _refuse(index, f"the index says that {shard} holds {tensor}, and it does not")
    shards = tuple(sorted(set(weight_map.values())))
    names = [name for shard in shards for name in headers[shard].tensors]
    if len(names) != len(set(names)):
        _refuse(index, "the same tensor in two shards")
    held = sum(tensor.end - tensor.start for shard in shards for tensor in headers[shard].tensors.values())
    declared = (document.get("metadata") or {}).get("total_size", held)
    if not isinstance(declared, int | float) or not 0 <= declared <= 2 * held + 1024:
        _refuse(index, f"the index declares {declared} bytes, its shards hold {held}")
    return shards


def parameters(header: Header) -> int:
    return sum(math.prod(tensor.shape) for tensor in header.tensors.values())


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    if not name or len(name) > NAME_LIMIT or not name.isprintable():
        _refuse(path, f"tensor name {name[:80]!r}", allowed=f"1 to {NAME_LIMIT} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"the header's entry for {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        _refuse(path, f"tensor {name} has dtype {str(dtype)[:40]!r}", allowed=", ".join(sorted(BYTES)))
    if not _whole(shape) or len(shape) > RANK_LIMIT:
        _refuse(path, f"tensor {name} has shape {str(shape)[:80]}", allowed=f"at most {RANK_LIMIT} whole numbers from 0")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"tensor {name} has data_offsets {str(offsets)[:80]}", allowed="[start, end] with 0 <= start <= end")
    needed = math.prod(shape) * BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        _refuse(path, f"tensor {name}: {dtype} of shape {str(shape)[:80]} takes {needed} bytes, its offsets span {offsets[1] - offsets[0]}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], held: int) -> None:
    """Tensors lie end to end from the first byte to the last."""
    position, previous = 0, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.end > held:
            _refuse(path, f"truncated safetensors: tensor {name} ends at byte {tensor.end} of {held}")
        if tensor.start < position:
            _refuse(path, f"overlapping tensors: {name} begins at byte {tensor.start}, inside {previous}")
        if tensor.start > position:
            _refuse(path, f"a hole of {tensor.start - position} bytes before tensor {name}")
        position, previous = tensor.end, name
    if position != held:
        _refuse(path, f"{held - position} bytes after the last tensor that belong to none")


def _check_values(path: Path, name: str, dtype: str, chunk: bytes) -> None:
    if dtype == "BOOL" and np.frombuffer(chunk, np.uint8).max() > 1:
        _refuse(path, f"tensor {name} is BOOL and holds other bytes than 0 and 1")
    if dtype in EXPONENT:
        kind, mask = EXPONENT[dtype]
        bits = np.frombuffer(chunk, np.dtype(kind).newbyteorder("<"))
        if ((bits & kind(mask)) == kind(mask)).any():
            _refuse(path, f"NaN or infinite weights in tensor {name}", fix="a model with NaN weights answers nothing: train or convert it again")


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return entries


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(path: Path, reason: str, *, allowed: str = "", fix: str = "do not use this file; get it again from its author") -> None:
    raise SafetyError(reason, allowed=allowed, fix=fix, where=str(path))
