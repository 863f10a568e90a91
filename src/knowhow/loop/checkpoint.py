"""Exact checkpoints: weights, optimizer, data position and random state in safetensors and JSON, swapped in by one rename."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from knowhow.files import read_json, write_json, writing
from knowhow.loop.average import Average
from knowhow.loop.optim import Optim


def save(folder: Path, model: torch.nn.Module, optim: Optim, progress: Mapping[str, Any], average: Average | None = None) -> None:
    """Replace the checkpoint in `folder` by this moment; `progress` is any JSON (step, tokens, batches' state, best so far).

    The new one is complete on disk before the old one goes; raises ResourceError when the disk is full."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    with writing(fresh):
        fresh.mkdir(parents=True)
        save_weights(fresh / "weights.safetensors", model)
        save_file(_contiguous(optim.state()), fresh / "optim.safetensors")
        save_file({"cpu": torch.get_rng_state()}, fresh / "random.safetensors")
        if average is not None:
            save_file(_contiguous(average.state()), fresh / "average.safetensors")
        write_json(fresh / "progress.json", progress)
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> dict[str, Any] | None:
    """Progress of the newest complete checkpoint at `folder`, None when there is none (a kill between two renames is mended)."""
    for name in (folder.name, folder.name + ".new", folder.name + ".old"):
        candidate = folder.with_name(name)
        if (candidate / "progress.json").is_file():
            if candidate != folder:
                candidate.rename(folder)
            progress: dict[str, Any] = read_json(folder / "progress.json")
            return progress
    return None


def restore(folder: Path, model: torch.nn.Module, optim: Optim, average: Average | None = None) -> None:
    """Put weights, optimizer, running mean and random state back."""
    load_weights(folder / "weights.safetensors", model)
    optim.restore(load_file(folder / "optim.safetensors"))
    if average is not None:
        average.restore(load_file(folder / "average.safetensors"))
    torch.set_rng_state(load_file(folder / "random.safetensors")["cpu"])


def kept_steps(keep: int, steps: int) -> frozenset[int]:
    """Log-spaced steps from the first to the last; the last alone where one is asked for."""
    return frozenset(np.geomspace(steps, 1, keep).round().astype(int).tolist()) if keep else frozenset()


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Trainable parameters only: a LoRA checkpoint stays small. Tied weights are saved once."""
    with writing(path):
        save_file(_contiguous({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}), path)


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Raises RuntimeError when the file does not fit the model."""
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise RuntimeError(f"{path} is damaged: {error}") from error
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if named.keys() != saved.keys():
        raise RuntimeError(f"{path} holds other parameters than the model ({len(saved)} against {len(named)})")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(saved[name])


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
