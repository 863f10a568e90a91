"""Saving: a plain Hugging Face folder, whole or not at all, the same bytes for the same model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig

from knowhow.errors import ResourceError, UsageError
from knowhow.files import write_atomic, writing
from knowhow.model import ngrams
from knowhow.model.guard import check_folder
from knowhow.model.loaded import Loaded
from knowhow.model.quiet import quiet
from knowhow.types import ModelRef

_LOCAL = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file", "merges_file")


def save(loaded: Loaded, folder: Path, *, dtype: str | None = None) -> ModelRef:
    """Writes model (in `dtype`, by default as it is), tokenizer, config and generation config; returns the folder's own reference.

    Plain `AutoModel….from_pretrained(folder)` gives the same logits (n-grams lie beside, to be added). An adapted
    model must be merged first. Weights that are NaN are refused (SafetyError)."""
    if isinstance(loaded.model, torch.nn.Module) and "peft" in type(loaded.model).__module__:
        raise UsageError("an adapted model", allowed="a whole model", fix="adapters.merge(loaded) first, or adapters.save_adapter(loaded, folder)")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(folder):
            part.mkdir(parents=True)
            _write(loaded, part, dtype)
            report = check_folder(part)
            _move(part, folder)
    except SafetensorError as error:
        if "No space" in str(error):
            raise ResourceError("the disk is full", where=str(folder), fix="free some space, then run again with --resume") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ModelRef(str(folder), None, dtype or loaded.ref.dtype, parent=loaded.ref.parent, sha256=report.sha256)


def _write(loaded: Loaded, folder: Path, dtype: str | None) -> None:
    model = loaded.model
    with quiet():
        if loaded.head == "lm" and loaded.kind == "causal":
            _valid_generation(model)
        kept = model.config.dtype
        model.save_pretrained(folder, state_dict=None if dtype is None else _cast(model.state_dict(), getattr(torch, dtype)))
        model.config.dtype = kept
        loaded.tokenizer.save_pretrained(folder)
    if loaded.ngrams is not None:
        ngrams.save(loaded.ngrams, folder)
    for name in ("config.json", "tokenizer_config.json"):
        document = json.loads((folder / name).read_bytes())
        plain = {key: value for key, value in document.items() if key not in _LOCAL}
        if dtype is not None and "dtype" in plain:
            plain["dtype"] = dtype
        write_atomic(folder / name, json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in `dtype`; tensors that share memory go on sharing it, so that tied weights are written once."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            done[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: done[(tensor.data_ptr(), tensor.shape)] for name, tensor in state.items()}


def _valid_generation(model: torch.nn.Module) -> None:
    """Some published folders carry generation settings that transformers refuses to write again; those are replaced by the model's own tokens."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig.from_model_config(model.config)


def _move(part: Path, folder: Path) -> None:
    """File by file over an existing folder (config.json last: a reader needs it first), or the whole folder at once."""
    if not folder.exists():
        part.replace(folder)
        return
    kinds = ("*.safetensors", "*.safetensors.index.json", ngrams.WORDS)
    stale = [path for pattern in kinds for path in folder.glob(pattern) if not (part / path.name).exists()]
    for path in sorted(part.rglob("*"), key=lambda path: path.name == "config.json"):
        if path.is_file():
            target = folder / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    for path in stale:
        path.unlink()
