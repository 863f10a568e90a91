"""What a model folder's configuration may say: known architectures, numbers in range, no more parameters than the weights hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.models.auto import modeling_auto as auto

from knowhow.errors import SafetyError, UsageError

# Whole numbers by meaning; the caps are some ten times past the largest published models.
RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), (1, 1 << 17)),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), (1, 1024)),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim"), (1, 8192)),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"), (1, 1 << 21)),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), (0, 4096)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), (1, 1 << 26)),
    **dict.fromkeys(("sliding_window", "local_attention", "global_attn_every_n_layers"), (0, 1 << 26)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1, 64)),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "top_k"), (0, 1 << 26)),
    "vocab_size": (1, 1 << 23),
    "type_vocab_size": (0, 1 << 16),
    "num_labels": (0, 1 << 20),
}
FRACTIONS = ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")
# Keys by which a folder chooses what a library runs, fetches or opens.
CODE_KEYS = frozenset(
    {"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code", "configuration_files", "fast_tokenizer_files", "gguf_file"}
    | {"transformers_weights", "distributed_config", "fusion_config"}
)
KERNEL_KEYS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
FILE_KEYS = frozenset({"tokenizer_file", "vocab_file", "merges_file", "spm_file", "sp_model_file"})
LABELS_LIMIT = 1 << 16
PATTERN_LIMIT = 4096
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForSequenceClassification", "Model")


def architectures(model_type: str) -> tuple[str, ...]:
    """Class names that this kind of model may declare: transformers' own auto-mapping for causal, masked and classifying models; none when unknown."""
    mappings = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    if model_type not in mappings[0] and model_type not in mappings[1]:
        return ()
    names = [mapping.get(model_type) for mapping in (*mappings, auto.MODEL_MAPPING_NAMES)]
    flat = [name for entry in names if entry for name in ([entry] if isinstance(entry, str) else entry)]
    return tuple(dict.fromkeys(name for name in flat if name.endswith(_HEADS)))


def is_encoder(model_type: str, *, decoder: bool = False) -> bool:
    """True for models that see both sides (masked language models), unless their configuration turns them to decoders."""
    return model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder


def walk(document: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every key at any depth."""
    stack = [(path, document)]
    while stack:
        here, node = stack.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{here}.{key}".lstrip("."), key, value
                stack.append((f"{here}.{key}", value))
        elif isinstance(node, list):
            stack.extend((f"{here}[{index}]", value) for index, value in enumerate(node) if isinstance(value, dict | list))


def check_keys(document: Any, *, where: str) -> None:
    """Refuses keys that run or fetch code, at any depth of any JSON file. A vocabulary may hold such a word: there its value is a number."""
    for path, key, value in walk(document):
        if key in CODE_KEYS and value and (value is True or not isinstance(value, int | float)):
            fix = "use a model of a built-in architecture"
            raise SafetyError(f"{path} = {str(value)[:120]!r}: {key} chooses what a library runs, fetches or opens", where=where, fix=fix)
        if KERNEL_KEYS.fullmatch(key) and "/" in str(value):
            raise SafetyError(f"{path} = {str(value)[:120]!r} would fetch a kernel", where=where, fix=f"remove {path}")
        if key in FILE_KEYS and isinstance(value, str) and re.search(r"[/\\]|\.\.", value):
            raise SafetyError(f"{path} = {value[:120]!r} points out of the folder", where=where, fix=f"remove {path}, or give a plain file name")
        if key == "Regex" and len(str(value)) > PATTERN_LIMIT:
            raise SafetyError(f"{path}: a pattern of {len(value)} characters", allowed=f"at most {PATTERN_LIMIT}", where=where)


def check_config(config: Any, shapes: Mapping[str, tuple[int, ...]], *, where: str) -> str:
    """Architecture, ranges, and layers and vocabulary against the tensors' `shapes`. Returns the model type."""
    if not isinstance(config, dict):
        raise SafetyError("a config that is not a JSON object", where=where)
    kind = _architecture(config, where)
    check_ranges(config, where=where)
    if config.get("quantization_config") or config.get("compression_config"):
        fix = "give the unquantised model"
        raise UsageError("quantised weights (quantization_config or compression_config)", allowed="float32, bfloat16 or float16 weights", fix=fix, where=where)
    for key in ("id2label", "label2id"):
        if not isinstance(config.get(key) or {}, dict) or len(config.get(key) or {}) > LABELS_LIMIT:
            raise SafetyError(f"{key} is not a map of at most {LABELS_LIMIT} labels", where=where)
    _check_declared(config, shapes, where)
    return kind


def check_ranges(config: Mapping[str, Any], *, where: str) -> None:
    """Every number finite, every known size within RANGES, every dropout in 0 to 1."""
    for path, key, value in walk(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise SafetyError(f"{path} = {value}", allowed="a finite number", where=where)
        if key in RANGES and value is not None:
            low, high = RANGES[key]
            numbers = value if isinstance(value, list) else [value]
            if not all(type(number) is int and low <= number <= high for number in numbers):
                raise SafetyError(f"{path} = {str(value)[:80]}", allowed=f"a whole number from {low} to {high}", where=where, fix="correct the config")
        if key in FRACTIONS and value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise SafetyError(f"{path} = {str(value)[:80]}", allowed="a number from 0 to 1", where=where, fix="correct the config")


def _architecture(config: Mapping[str, Any], where: str) -> str:
    kind, names = config.get("model_type"), config.get("architectures") or []
    known = architectures(kind) if isinstance(kind, str) else ()
    if not known:
        raise SafetyError(
            f"model_type {str(kind)[:60]!r}",
            allowed="a causal or masked language model that transformers builds itself (llama, qwen3, mistral, gemma, gpt2, gpt_neox, phi, olmo2, bert, …)",
            where=where,
        )
    if not isinstance(names, list):
        raise SafetyError(f"architectures is {type(names).__name__}", allowed="a list of class names", where=where)
    for name in names:
        if name not in known:
            raise SafetyError(f"unknown architecture {str(name)[:80]!r} for model_type {kind}", allowed=", ".join(known), where=where)
    return kind


def _check_declared(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """A config that declares more than the weights hold makes a library allocate the difference."""
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in config), None)
    held = 1 + max((int(match[1]) for name in shapes if (match := _LAYER.search(name))), default=-1)
    if layers is not None and layers > held:
        raise SafetyError(f"the config declares {layers} layers, the weights hold {held}", where=where, fix="get the matching config and weights")
    words = config.get("vocab_size")
    rows = max((shape[0] for name, shape in shapes.items() if len(shape) == 2 and ("emb" in name or "wte" in name)), default=0)
    if words is not None and words > rows:
        raise SafetyError(f"the config declares a vocabulary of {words}, the largest embedding holds {rows} rows", where=where)
    widths = {size for shape in shapes.values() for size in shape}
    for key in ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner"):
        if config.get(key) is not None and config[key] not in widths:
            raise SafetyError(f"the config declares {key} {config[key]}, no tensor has that size", where=where, fix="get the matching config and weights")


def check_adapter_config(config: Any, *, where: str) -> None:
    """PEFT's adapter_config.json: plain LoRA with bounded numbers, importing nothing, matching by names or by one short pattern."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise SafetyError(f"adapter of type {str(kind)[:60]!r}", allowed="LORA", where=where)
    for key in ("auto_mapping", "megatron_config", "layer_replication", "runtime_config"):
        if config.get(key):
            raise SafetyError(f"{key} = {str(config[key])[:120]!r} imports or builds what the adapter names", where=where, fix=f"remove {key}")
    for key, high in (("r", 1 << 14), ("lora_alpha", 1 << 20)):
        if type(config.get(key)) not in (int, float) or not 0 < config[key] <= high:
            raise SafetyError(f"{key} = {str(config.get(key))[:60]}", allowed=f"a number up to {high}", where=where)
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if isinstance(config.get(key), str) and len(config[key]) > 512:
            raise SafetyError(f"{key}: a pattern of {len(config[key])} characters", allowed="names, or a pattern of at most 512 characters", where=where)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict) or len(config.get(key) or {}) > LABELS_LIMIT:
            raise SafetyError(f"{key} is not a map of at most {LABELS_LIMIT} entries", where=where)
