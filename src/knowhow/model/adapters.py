"""LoRA through PEFT: added to a base that stays as it is, saved in PEFT's format, merged on request."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers.pytorch_utils import Conv1D

from knowhow.errors import SafetyError, UsageError
from knowhow.files import read_json, write_atomic, write_json, writing
from knowhow.model.guard import check_folder
from knowhow.model.load import head_modules
from knowhow.model.loaded import Loaded, digest_tensors, without_adapter
from knowhow.model.quiet import quiet

TARGETS = ("auto", "attn", "mlp", "all")
BASE_FILE = "knowhow_base.json"
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_LAYER = re.compile(r"\.\d+\.")


def add_lora(
    loaded: Loaded,
    *,
    rank: int,
    alpha: float,
    targets: str | Sequence[str] = "auto",
    ranks: Mapping[str, int] | None = None,
    new_rows: Sequence[int] = (),
    dropout: float = 0.0,
    seed: int = 0,
) -> Loaded:
    """The model with trainable LoRA matrices (A drawn from `seed`, B zero: the logits do not change yet) and everything else frozen.

    `targets`: attn, mlp, all (both, which is what auto takes) or names of linear modules. A classifying head trains whole; `new_rows` are embedding rows that
    train whole (words that `vocabulary.extend` added). `ranks`: a rank for each module, in place of `rank` and `targets` (PEFT's `rank_pattern`); each
    keeps the scale alpha / rank. The base module is taken over: use the result, not `loaded.model`, from here on."""
    if isinstance(loaded.model, PeftModel):
        raise UsageError("a model that has an adapter already", fix="adapters.merge it first")
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise UsageError(f"rank {rank}, alpha {alpha}, dropout {dropout}", allowed="rank from 1, alpha above 0, dropout from 0 to below 1")
    names = lora_targets(loaded.model, targets if ranks is None else list(ranks))
    linear = [module for name, module in loaded.model.named_modules() if name in set(names)]
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    if any(not 0 <= row < rows for row in new_rows):
        raise UsageError(f"new_rows up to {max(new_rows)}", allowed=f"rows of the embedding, 0 to {rows - 1}")
    scale = alpha / rank
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=_short(loaded.model, names), lora_dropout=dropout, bias="none",
        rank_pattern=dict(ranks or {}), alpha_pattern={name: scale * own for name, own in (ranks or {}).items()},
        fan_in_fan_out=bool(linear) and all(isinstance(module, Conv1D) for module in linear),
        modules_to_save=_whole(loaded.model) or None,
        trainable_token_indices={_embedding_name(loaded.model): sorted(set(new_rows))} if new_rows else None,
        task_type=_task_type(loaded), base_model_name_or_path=loaded.ref.source,
    )  # fmt: skip
    frozen = base_digest(loaded.model)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(loaded.model, config)
    return replace(loaded, model=model.eval(), frozen=frozen)


def save_adapter(loaded: Loaded, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors in PEFT's format, and the digest of the base that it belongs to.

    The base's weights must be what they were when the adapter was added (a difference is our own bug)."""
    model = _adapted(loaded)
    assert base_digest(model) == loaded.frozen, "the base weights changed under an adapter"
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    config = {key: sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value for key, value in config.items()}
    write_atomic(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_json(folder / BASE_FILE, {"source": loaded.ref.source, "sha256": loaded.ref.sha256, "parent": loaded.ref.parent, "weights": loaded.frozen})


def load_adapter(base: Loaded, folder: Path, *, trainable: bool = False) -> Loaded:
    """`base` with the adapter of `folder` (guarded first). The base module is taken over.

    Raises UsageError when the adapter was trained on other base weights, or for a model that is not like this one."""
    report = check_folder(folder)
    if report.kind != "adapter":
        raise UsageError(f"{folder} is no adapter", allowed="a folder with adapter_config.json", where=str(folder))
    frozen = base_digest(base.model)
    if (report.path / BASE_FILE).is_file():
        made_for = read_json(report.path / BASE_FILE).get("weights")
        if made_for != frozen:
            got = f"the adapter belongs to base weights {str(made_for)[:16]}…, these are {frozen[:16]}…"
            raise UsageError(got, allowed="the base (with its added vocabulary) that the adapter was trained on", where=str(folder))
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model = PeftModel.from_pretrained(base.model, str(report.path), is_trainable=trainable, local_files_only=True, use_safetensors=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UsageError(f"the adapter does not fit this base: {str(error)[:300]}", allowed="an adapter of the same architecture", where=str(folder)) from error
    return replace(base, model=model.eval(), ref=replace(base.ref, adapter=str(folder)), frozen=frozen)


def merge(loaded: Loaded) -> Loaded:
    """A plain model with the adapter's update added to its weights: the same logits, no PEFT. The module is taken over."""
    model = _adapted(loaded)
    if base_digest(model) != loaded.frozen:
        raise SafetyError("the base weights are not those that the adapter was added to", fix="load base and adapter again")
    with quiet():
        plain = model.merge_and_unload(safe_merge=True)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    return replace(loaded, model=plain.eval(), frozen="", ref=replace(loaded.ref, parent=loaded.ref.sha256, sha256="", adapter=None))


def lora_targets(model: torch.nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear modules inside the layers that `targets` means; UsageError listing what there is when it means none."""
    inner = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D) and _LAYER.search(f"{name}.")]
    if isinstance(targets, str):
        if targets not in TARGETS:
            raise UsageError(f"targets {targets!r}", allowed=f"{', '.join(TARGETS)}, or a list of module names")
        wanted = {"attn": True, "mlp": False}.get(targets)
        return [name for name in inner if wanted is None or bool(_ATTENTION.search(name)) == wanted]
    ends = tuple(targets)
    found = [name for name in inner if any(name == end or name.endswith(f".{end}") for end in ends)]
    if not found or not all(any(name == end or name.endswith(f".{end}") for name in found) for end in ends):
        have = sorted({name.rsplit(".", 1)[-1] for name in inner})
        raise UsageError(f"targets {list(targets)}", allowed=f"linear modules of this model: {', '.join(have)}")
    return found


def base_digest(model: torch.nn.Module) -> str:
    """Digest of the weights that an adapter leaves untouched, under the names that they have without one; fresh heads and trained rows are not among them."""
    tensors: dict[str, torch.Tensor] = {}
    names = dict(model.named_parameters(remove_duplicate=False))
    inner = without_adapter(model)
    whole = tuple(f"{name}." for name in _whole(inner))
    for name, parameter in names.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter.base_layer", "").replace(".token_adapter", "")
        if "lora_" in name or "trainable_tokens_" in name or "modules_to_save" in name or plain.startswith(whole) or any(f".{end}" in plain for end in whole):
            continue
        tensors[plain] = parameter
    return digest_tensors(tensors)


def _whole(model: torch.nn.Module) -> list[str]:
    """Modules that an adapter trains and saves whole: a classifying head, and an encoder's pooler (many checkpoints have none, so theirs is fresh)."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    poolers = {"pooler" for name, _ in model.named_modules() if name.endswith(".pooler")}
    return [*head_modules(model), *poolers]


def _adapted(loaded: Loaded) -> Any:
    if not isinstance(loaded.model, PeftModel):
        raise UsageError("a model without an adapter", allowed="one from add_lora or load_adapter")
    return loaded.model


def _short(model: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """Names as PEFT matches them by their ends: the part after the layer's number where that means exactly these modules, the full names otherwise."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name in names:
        ends[name[[match.end() for match in _LAYER.finditer(name)][-1] :]].append(name)
    meant = [name for name, _ in model.named_modules() if any(name.endswith(f".{end}") for end in ends)]
    return sorted(ends) if sorted(meant) == sorted(names) else sorted(names)


def _embedding_name(model: torch.nn.Module) -> str:
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding).rsplit(".", 1)[-1]


def _task_type(loaded: Loaded) -> TaskType:
    if loaded.head != "lm":
        return TaskType.SEQ_CLS
    return TaskType.CAUSAL_LM if loaded.kind == "causal" else TaskType.FEATURE_EXTRACTION
