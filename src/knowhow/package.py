"""A finished run's model → a specialist folder: the model's own files, knowhow.json, a model card, the recipe, the results.

Nothing here carries a time or a date, so the same run gives the same bytes. Reading validates the manifest and hashes every file again.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import knowhow
from knowhow.errors import SafetyError, UsageError
from knowhow.files import digest, digest_file, digest_folder, write_atomic, write_json, writing
from knowhow.manifest import SCHEMA_VERSION, Manifest
from knowhow.model.guard import check_folder
from knowhow.report import card
from knowhow.types import EvalResult, Interval, ModelRef, Specialist, Task

MANIFEST = "knowhow.json"
OWN = frozenset({MANIFEST, "README.md", "recipe.yaml"})
BESIDE = frozenset({"measured.json", "report.html", ".gitattributes"})
EXTRAS = frozenset({"calibration", "recipe", "input", "audit", "licences", "vocabulary", "forgetting", "memorisation", "language"})
LIMIT = 32_000_000
AGAIN = "build or copy it again"
CLOCKED = re.compile(r"second|minute|_ms$|latency|joule|watt|date|time")


def package(source: Path, out: Path, *, specialist: Specialist, extras: Mapping[str, Any], adapter: bool) -> dict[str, Any]:
    """Write the specialist folder `out` from the model (or adapter) folder `source`; returns the manifest as written.

    `extras`: calibration, input, recipe, audit, licences, vocabulary, forgetting, memorisation (JSON objects) and language (codes), all optional.
    An `out` that is already a specialist is replaced as a whole. Raises SafetyError when `source` holds what a model must not hold,
    UsageError when `out` is something else, ResourceError when the disk is full."""
    assert set(extras) <= EXTRAS, f"unknown extras {set(extras) - EXTRAS}"
    check_folder(source)
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise UsageError(f"{out} exists and is no specialist", allowed="a new folder, or a specialist to replace", fix="choose another folder", where=str(out))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with writing(out):
            _clear(out)
            part.mkdir(parents=True)
            _copy(source, part)
            manifest = _fill(part, specialist, extras, adapter=adapter)
            _swap(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def read(folder: Path) -> Manifest:
    """The validated manifest of a specialist whose files are all as they were written.

    Raises UsageError when `folder` is no specialist or from another version, SafetyError when a file was changed, added, removed or replaced by a link."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no {MANIFEST}", allowed="a specialist folder made by `knowhow build`", where=str(folder))
    manifest, document = _parse(path)
    if digest({key: value for key, value in document.items() if key != "digest"}) != manifest.digest:
        raise SafetyError(f"{MANIFEST} was changed after it was written", allowed=f"digest {manifest.digest}", fix=AGAIN, where=str(path))
    present = set(_files(folder)) - BESIDE - {MANIFEST}
    for name in manifest.files:
        # names are not paths: only what is found under the folder is ever opened
        if name not in present:
            raise SafetyError(f"{name} is not there", allowed="every file of the manifest", fix=AGAIN, where=str(folder))
        if digest_file(folder / name) != manifest.files[name]:
            raise SafetyError(f"{name} was changed after it was packaged", allowed=f"sha256 {manifest.files[name]}", fix=AGAIN, where=str(folder / name))
    for name in sorted(present - set(manifest.files)):
        raise SafetyError(f"{name} was added after packaging", allowed="the files of the manifest", fix=f"remove {name}", where=str(folder / name))
    return manifest


def as_specialist(manifest: Manifest) -> Specialist:
    """The manifest as the noun that travels between stages."""
    results = []
    for row in manifest.results:
        paired = {name: Interval(gap.value, gap.low, gap.high, gap.n) for name, gap in row.paired.items()}
        results.append(EvalResult(row.task, row.metric, row.value, row.low, row.high, row.n, row.slice, row.model, paired, row.cost))
    base, task = ModelRef(**manifest.base.model_dump()), Task(**manifest.task.model_dump())
    return Specialist(manifest.name, base, task, tuple(results), (), manifest.predictions, manifest.limits, manifest.licence, manifest.files)


def _parse(path: Path) -> tuple[Manifest, dict[str, Any]]:
    if path.stat().st_size > LIMIT:
        raise SafetyError(f"{MANIFEST} has {path.stat().st_size} bytes", allowed=f"at most {LIMIT}", where=str(path))
    try:
        document = json.loads(path.read_bytes())
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UsageError(f"a manifest of version {version}", allowed=f"version {SCHEMA_VERSION} or older", fix="update knowhow", where=str(path))
        return Manifest.model_validate(document), document
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole file"
        raise UsageError(f"{where}: {first['msg']}", allowed=f"a manifest of version {SCHEMA_VERSION}", fix="build it again", where=str(path)) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{MANIFEST} is not JSON", allowed="a specialist folder", fix=AGAIN, where=str(path)) from None


def _files(folder: Path) -> Iterator[str]:
    """Relative names of all regular files; a link or anything else is refused."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise SafetyError(f"{path.name} is a link or a device", allowed="regular files", fix="copy the folder with its links followed", where=str(path))
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _copy(source: Path, target: Path) -> None:
    """The model's files as they are; what an earlier packaging wrote is left behind."""
    for name in _files(source):
        if name in OWN | BESIDE or name.startswith(("evals/", ".git/", ".cache/")):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())


def _fill(folder: Path, specialist: Specialist, extras: Mapping[str, Any], *, adapter: bool) -> dict[str, Any]:
    """Card, recipe, results, and last the manifest with the digests of all files."""
    base = dataclasses.replace(specialist.base, source=card.portable(specialist.base.source))
    finite = tuple(_measured(row) for row in specialist.results if _finite(row))
    named = dataclasses.replace(specialist, base=base, results=finite)
    results = [_result(row) for row in finite]
    header = card.header(named, extras, adapter=adapter)
    write_atomic(folder / "README.md", f"---\n{_yaml(header)}---\n\n{card.text(named, extras, adapter=adapter)}")
    write_atomic(folder / "recipe.yaml", _yaml(dict(extras.get("recipe") or {})))
    write_json(folder / "evals/results.json", _writable(results))
    calibration = extras.get("calibration") or {}
    body = {
        "schema_version": SCHEMA_VERSION,
        "knowhow": knowhow.__version__,
        "name": named.name,
        "task": dataclasses.asdict(named.task),
        "base": dataclasses.asdict(named.base),
        "parent": named.base.parent,
        "adapter": adapter,
        "results": results,
        "findings": [dataclasses.asdict(finding) for finding in named.findings],
        "predictions": [dict(row) for row in named.predictions],
        "limits": list(named.limits),
        "licence": named.licence,
        "licences": dict(extras.get("licences") or {}),
        "calibration": {key: calibration.get(key) for key in ("temperature", "thresholds", "abstention", "false_positives")},
        "input": dict(extras.get("input") or {}),
        "vocabulary": {key: value for key, value in (extras.get("vocabulary") or {}).items() if key != "new_words"} or None,
        "audit": _without_rows(extras.get("audit")),
        "files": digest_folder(folder),
    }
    # what is hashed is what a reader will parse, so it goes through JSON once
    write_json(folder / MANIFEST, _writable(body))
    body = json.loads((folder / MANIFEST).read_bytes())
    manifest = body | {"digest": digest(body)}
    Manifest.model_validate(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _finite(row: EvalResult | Interval) -> bool:
    return all(map(math.isfinite, (row.value, row.low, row.high)))


def _measured(row: EvalResult) -> EvalResult:
    """Without the differences that have no interval: too few rows for one."""
    return dataclasses.replace(row, paired={name: gap for name, gap in row.paired.items() if _finite(gap)})


def _result(row: EvalResult) -> dict[str, Any]:
    """Without clock readings (they differ from run to run) and without paths into the run."""
    kept = dataclasses.asdict(row)
    cost = {key: value for key, value in kept["cost"].items() if not CLOCKED.search(key) and math.isfinite(value)}
    del kept["samples"]
    return kept | {"cost": cost}


def _without_rows(value: Any) -> Any:
    """An audit without its example rows: training data must not travel in a manifest."""
    return {key: _without_rows(item) for key, item in value.items() if key != "examples"} if isinstance(value, Mapping) else value


def _writable(value: Any) -> Any:
    """Lone surrogates as visible escapes, in keys too: no UTF-8 file and no JSON reader takes them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_writable(str(key)): _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list | tuple) else value


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(_writable(value), sort_keys=False, allow_unicode=True, width=10_000)


def _clear(out: Path) -> None:
    """What a killed packaging left: its half-made folder goes, an earlier specialist that it had moved aside comes back."""
    old = out.with_name(f".{out.name}.old.part")
    if old.is_dir() and not out.exists():
        old.replace(out)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        shutil.rmtree(left, ignore_errors=True)


def _swap(part: Path, out: Path) -> None:
    """`part` becomes `out`; a kill in between leaves the earlier folder aside, where the next packaging finds it."""
    old = out.with_name(f".{out.name}.old.part")
    if out.exists():
        out.replace(old)
    part.replace(out)
    shutil.rmtree(old, ignore_errors=True)
