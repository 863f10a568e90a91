"""Refuses hostile folders and files before any library opens them (exit 4, with the reason).

A model folder may hold safetensors, JSON, plain text and pictures. Anything that could run (pickles under any name, Python, shared objects, remote-code
keys), that leaves the folder (links, ../ in an index), that lies about its size, or that would poison results (NaN weights) is refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowhow.errors import SafetyError, UsageError
from knowhow.files import digest, digest_file
from knowhow.model import configs, templates, weights

FILES_LIMIT, DEPTH_LIMIT, JSON_LIMIT, TOKENIZER_LIMIT = 20_000, 8, 32 << 20, 256 << 20
DATA_LIMIT = 256 << 30
CODE = frozenset({".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".jar", ".whl", ".egg", ".pth"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".h5", ".hdf5", ".keras", ".mar", ".nemo"})
# What a file's first bytes give away. Protocol 0 pickles are plain text, so only files that are not text by name are matched against it.
MAGIC = (
    (re.compile(rb"\x7fELF|MZ[\x00-\x08\x80-\xff]|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe", re.DOTALL), "a program"),
    (re.compile(rb"#!"), "a script"),
    (re.compile(rb"\x93NUMPY"), "a numpy file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive (pickle)"),
    (re.compile(rb"\x80[\x00-\x05][\x80-\x95}\]()cK\x8c]", re.DOTALL), "a pickle"),
)
TEXT_PICKLE = re.compile(rb"c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n|\((d|l)p0\n")
TEXTS = frozenset({".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".jinja", ".yaml", ".yml", ".html"})
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
SEALED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|adapter_config)\.json"
    r"|[\w.-]+\.safetensors(\.index\.json)?|ngrams\.json|merges\.txt|vocab\.txt|tokenizer\.model|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja"
)
_UNOPENED = frozenset({".git", ".cache"})


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What a folder was found to hold. `sha256` digests the files that a model is made of: weights, configs, tokenizer, templates."""

    path: Path
    kind: str
    model_type: str
    parameters: int
    weight_bytes: int
    files: Mapping[str, str]
    sha256: str


def check_folder(path: Path) -> GuardReport:
    """Every check of this page on a model or adapter folder. Raises SafetyError (refused) or UsageError (something is missing)."""
    if not path.is_dir():
        got = f"{path} is a file" if path.exists() else f"{path} does not exist"
        raise UsageError(got, allowed="a folder with config.json, tokenizer files and safetensors weights", where=str(path))
    root = path.resolve()
    names = {file.relative_to(root).as_posix(): file for file in _walk(root)}
    for file in names.values():
        _check_name(file)
    documents = {name: _document(file) for name, file in names.items() if name.endswith(".json")}
    adapter = _kind(root, names)
    headers = {name: weights.read_header(file) for name, file in names.items() if name.endswith(".safetensors")}
    used = _used_weights(root, names, documents, headers, adapter=adapter)
    kind = ""
    if adapter:
        configs.check_adapter_config(documents["adapter_config.json"], where=str(names["adapter_config.json"]))
    else:
        shapes = {tensor: info.shape for name in used for tensor, info in headers[name].tensors.items()}
        kind = configs.check_config(documents["config.json"], shapes, where=str(names["config.json"]))
        _check_tokenizer(root, names)
    _check_templates(names, documents)
    sealed = {name: weights.scan(file, headers[name]) for name, file in names.items() if name in headers}
    sealed |= {name: digest_file(file) for name, file in names.items() if SEALED.fullmatch(name) and name not in headers}
    count = sum(weights.parameters(headers[name]) for name in used)
    held = sum(headers[name].size - headers[name].offset for name in used)
    return GuardReport(root, "adapter" if adapter else "model", kind, count, held, dict(sorted(sealed.items())), digest(dict(sorted(sealed.items()))))


def check_file(path: Path, *, root: Path | None = None, limit: int = DATA_LIMIT) -> Path:
    """A recipe's own data file: regular, at most `limit` bytes, no pickle, and (a link's target too) within `root`, by default its own folder.

    Returns the real path. Raises UsageError when it is not there or no file, SafetyError when it is refused."""
    try:
        real = path.resolve(strict=True)
        mode = real.stat()
    except (OSError, RuntimeError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{str(path)!r}: {got}", allowed="a file that can be read", where=str(path)) from None
    if stat.S_ISDIR(mode.st_mode):
        raise UsageError(f"{path} is a folder", allowed="a file", where=str(path))
    if not stat.S_ISREG(mode.st_mode):
        raise SafetyError(f"{path} is a device, pipe or socket", allowed="a regular file", where=str(path))
    if (root is not None or path.is_symlink()) and not real.is_relative_to((root or path.parent).resolve()):
        raise SafetyError(f"{path} leads out of its folder to {real}", allowed="a file within the folder", fix="give the real path", where=str(path))
    if mode.st_size > limit:
        raise SafetyError(f"{path} has {mode.st_size / 1e9:.2f} GB", allowed=f"at most {limit / 1e9:.2f} GB", where=str(path))
    _check_name(path)
    if real.name != path.name:
        _check_name(real)
    return real


def _walk(root: Path) -> Iterator[Path]:
    """Regular files under `root`; anything else is refused."""
    stack, seen = [(root, 0)], 0
    while stack:
        folder, depth = stack.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            seen += 1
            if seen > FILES_LIMIT or depth > DEPTH_LIMIT:
                raise SafetyError(f"more than {FILES_LIMIT} files or {DEPTH_LIMIT} levels of folders", where=str(root))
            if entry.is_symlink():
                fix = "copy the folder with its links followed (cp -rL), or give the hub's name of the model"
                raise SafetyError(f"symbolic link {entry.name} -> {os.readlink(entry.path)}", allowed="regular files", fix=fix, where=entry.path)
            if entry.is_dir(follow_symlinks=False):
                if depth or entry.name not in _UNOPENED:
                    stack.append((Path(entry.path), depth + 1))
            elif not entry.is_file(follow_symlinks=False):
                raise SafetyError(f"{entry.name} is a device, pipe or socket", allowed="regular files", where=entry.path)
            else:
                yield Path(entry.path)


def _check_name(file: Path) -> None:
    """The name's endings, then the first bytes, for what would run when opened."""
    endings = {suffix.lower() for suffix in file.suffixes[-2:]}
    if file.suffix.lower() in PICKLES:
        fix = "save the weights as safetensors (model.save_pretrained does)"
        raise SafetyError(f"pickle-like file {file.name}", allowed="safetensors, JSON and text", fix=fix, where=str(file))
    if endings & CODE:
        raise SafetyError(f"program file {file.name}", allowed="safetensors, JSON and text", fix="remove it if the model does not need it", where=str(file))
    if file.suffix == ".safetensors":
        return
    with file.open("rb") as handle:
        start = handle.read(128)
    found = next((meaning for magic, meaning in MAGIC if magic.match(start)), "")
    if not found and file.suffix.lower() not in TEXTS and TEXT_PICKLE.match(start):
        found = "a pickle"
    if found:
        raise SafetyError(f"{file.name} is {found}, whatever its name says", allowed="safetensors, JSON and text", where=str(file))


def _document(file: Path) -> Any:
    limit = TOKENIZER_LIMIT if file.name in ("tokenizer.json", "vocab.json") else JSON_LIMIT
    size = file.stat().st_size
    if size > limit:
        raise SafetyError(f"{file.name} has {size} bytes", allowed=f"at most {limit}", where=str(file))
    document = weights.strict_json(file.read_bytes(), where=str(file), unique=file.name not in ("tokenizer.json", "vocab.json"))
    configs.check_keys(document, where=str(file))
    if file.name == "generation_config.json" and isinstance(document, dict):
        configs.check_ranges(document, where=str(file))
    return document


def _kind(root: Path, names: Mapping[str, Path]) -> bool:
    """True for an adapter. Both configs in one folder make a library follow the adapter's base to wherever it names."""
    if "adapter_config.json" in names:
        if "config.json" in names:
            fix = "keep the adapter in a folder of its own"
            raise SafetyError("config.json and adapter_config.json in one folder: libraries then open the adapter's base", fix=fix, where=str(root))
        return True
    if "config.json" not in names:
        raise UsageError("a folder without config.json", allowed="a Hugging Face model folder, or a PEFT adapter folder", where=str(root))
    return False


def _used_weights(
    root: Path, names: Mapping[str, Path], documents: Mapping[str, Any], headers: Mapping[str, weights.Header], *, adapter: bool
) -> tuple[str, ...]:
    """Names of the weight files that a library would open; every index in the folder is checked on the way."""
    shards: tuple[str, ...] = ()
    for name, document in documents.items():
        if name.endswith(".index.json"):
            folder = Path(name).parent
            beside = {Path(file).name: header for file, header in headers.items() if Path(file).parent == folder}
            found = weights.check_index(names[name], document, beside)
            shards = found if name == "model.safetensors.index.json" else shards
    single = "adapter_model.safetensors" if adapter else "model.safetensors"
    if single in headers:
        return (single,)
    if shards and not adapter:
        return shards
    fix = "save the weights as safetensors; shards need their model.safetensors.index.json"
    raise UsageError(f"a folder without {single}", allowed="safetensors weights", fix=fix, where=str(root))


def _check_tokenizer(root: Path, names: Mapping[str, Path]) -> None:
    if not any(all(name in names for name in need) for need in TOKENIZERS):
        allowed = "tokenizer.json (or vocab.json with merges.txt, or vocab.txt)"
        fix = "save the tokenizer beside the weights: tokenizer.save_pretrained(folder); a tokenizer.model alone must be converted first"
        raise UsageError("a model folder without tokenizer files", allowed=allowed, fix=fix, where=str(root))


def _check_templates(names: Mapping[str, Path], documents: Mapping[str, Any]) -> None:
    """Every chat template of the folder: files, and texts inside tokenizer and processor configs."""
    for name, file in names.items():
        if name.endswith((".jinja", ".jinja2", ".j2")):
            if file.stat().st_size > templates.LENGTH_LIMIT:
                templates.check("x" * (templates.LENGTH_LIMIT + 1), where=str(file))
            templates.check(file.read_bytes().decode("utf-8", "replace"), where=str(file))
    for name, document in documents.items():
        if not name.endswith(("tokenizer.json", "vocab.json")):
            for path, key, value in configs.walk(document):
                if key == "chat_template":
                    for text in _texts(value):
                        templates.check(text, where=f"{names[name]} {path}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item.get("template") if isinstance(item, dict) else item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
