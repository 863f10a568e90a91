"""Loading: any supported family, with its language-model head or a classifying one, to a model that plain transformers reloads with the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from knowhow.errors import SafetyError, UsageError
from knowhow.model import channel, ngrams
from knowhow.model.configs import is_encoder
from knowhow.model.guard import GuardReport, check_folder
from knowhow.model.loaded import Head, Kind, Loaded
from knowhow.model.quiet import quiet
from knowhow.model.save import save
from knowhow.model.source import find, resolve
from knowhow.types import ModelRef

__all__ = ["DTYPES", "Loaded", "load", "resolve", "save"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = ("lm", "classifier", "regressor", "channel")
INIT_STD = 0.02
# These number positions from their padding index, so that many rows of the table are never used.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer", "mpnet"})


def load(
    source: str,
    *,
    head: Head | Literal["body"] = "lm",
    labels: Sequence[str] = (),
    many: bool = False,
    revision: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> Loaded:
    """The model of `source` in eval mode. See `source.resolve` for what `source` may be.

    `labels` (classifier): in index order; empty takes those of the folder. A folder's own head is kept when its labels are these (in any order),
    otherwise a fresh one is drawn from `seed` (normal, standard deviation .02; biases 0). `many`: several labels may hold at once. A `channel` is a
    language model with tokens for the labels (see model/channel.py). N-grams beside a folder's own head come with it.
    `body`: what stands below any head; a causal model keeps its own, an encoder gets one that means nothing, for many (sentence encoders among them) come
    without one for words.
    Raises UsageError (missing, not supported) or SafetyError (refused)."""
    _check_arguments(head, labels, dtype)
    if head == "channel":
        return channel.conditioned(load(source, revision=revision, dtype=dtype, seed=seed), labels, many=many, seed=seed)
    report = check_folder(find(source, revision))
    if report.kind == "adapter":
        fix = "load its base first, then adapters.load_adapter(base, folder)"
        raise UsageError(f"{source} is an adapter without its base", allowed="a model folder", fix=fix, where=str(report.path))
    config = _config(report.path)
    tokenizer = _tokenizer(report.path)
    kind: Kind = "encoder" if is_encoder(report.model_type, decoder=getattr(config, "is_decoder", False)) else "causal"
    stored = _stored_labels(config)
    if head == "body":
        head, labels = ("classifier", ("0", "1")) if kind == "encoder" else ("lm", ())
    names, keep = _choose_labels(head, tuple(labels), stored, report.path)
    _set_pad(tokenizer, config)
    if head != "lm":
        _set_head(config, head, names, many=many, keep=keep and not labels)
    model = _build(report, config, _maker(kind, head), DTYPES[dtype], seed, fresh_head=not keep and head != "lm")
    if keep and head == "classifier" and stored != names:
        _reorder(model, [stored.index(name) for name in names])
    _check_ids(tokenizer, model, report.path)
    ref = ModelRef(source, revision, dtype, sha256=report.sha256)
    beside = ngrams.load(report.path) if head == "classifier" and keep else None
    if beside is not None and sorted(beside.labels) != sorted(names):
        raise SafetyError(f"n-grams for {len(beside.labels)} labels", allowed=", ".join(names), fix="get the folder again", where=str(report.path))
    return Loaded(model, tokenizer, kind, head, ref, _context(config, tokenizer), names, ngrams=beside and beside.ordered(names))


def head_modules(model: torch.nn.Module) -> list[str]:
    """Names of the top-level modules outside the base model: the head (`score`; `classifier`; `head`)."""
    return [name for name, module in model.named_children() if name != model.base_model_prefix and any(True for _ in module.parameters())]


def _check_arguments(head: str, labels: Sequence[str], dtype: str) -> None:
    if head not in (*HEADS, "body"):
        raise UsageError(f"head {head!r}", allowed=", ".join((*HEADS, "body")))
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}", allowed=", ".join(DTYPES))
    if labels and head not in ("classifier", "channel"):
        raise UsageError(f"labels for a {head} head", allowed="labels for a classifier or a channel")
    if head == "channel" and not labels:
        raise UsageError("a channel without labels", fix="give the labels")
    if isinstance(labels, str) or len(set(labels)) != len(labels) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"labels {str(labels)[:200]}", allowed="distinct texts")


def _config(folder: Path) -> Any:
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library's validators have errors of their own
        raise UsageError(f"the config cannot be used: {str(error)[:300]}", fix="get the config again from its author", where=str(folder)) from error


def _tokenizer(folder: Path) -> Any:
    """What AutoTokenizer gives a plain user of the folder, without the truncation and padding that some folders carry inside."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises bare Exception for a tokenizer it cannot parse
        fix = "save the tokenizer again as tokenizer.json (tokenizer.save_pretrained)"
        raise UsageError(f"the tokenizer cannot be read: {str(error)[:300]}", allowed="a fast tokenizer", fix=fix, where=str(folder)) from error
    if not tokenizer.is_fast:
        raise UsageError(f"a tokenizer without tokenizer.json ({type(tokenizer).__name__})", allowed="a fast tokenizer", where=str(folder))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if any(token.lstrip and not token.special for token in tokenizer.added_tokens_decoder.values()) and (folder / "tokenizer.json").is_file():
        # Some families' classes build their decoder anew and lose the one that puts the space before an added word back.
        tokenizer.backend_tokenizer.decoder = Tokenizer.from_file(str(folder / "tokenizer.json")).decoder
    return tokenizer


def _set_pad(tokenizer: Any, config: Any) -> None:
    """A pad token in tokenizer and config: the tokenizer's own, the config's, or a token that ends or begins texts (no new row)."""
    if tokenizer.pad_token is None:
        given = config.get_text_config().pad_token_id
        known = tokenizer.convert_ids_to_tokens(given) if isinstance(given, int) and 0 <= given < len(tokenizer) else None
        tokenizer.pad_token = known or tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _stored_labels(config: Any) -> tuple[str, ...] | None:
    """Labels of the folder's own classifying head (a regressor's is its one output); None without one."""
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        return None
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def _choose_labels(head: str, labels: tuple[str, ...], stored: tuple[str, ...] | None, folder: Path) -> tuple[tuple[str, ...], bool]:
    """The labels to serve, and whether the folder's own head answers them."""
    if head == "lm":
        return (), False
    if head == "regressor":
        return (), stored is not None and len(stored) == 1
    if not labels:
        if stored is None:
            raise UsageError("no labels, and the folder has no classifying head", fix="give the labels", where=str(folder))
        return stored, True
    return labels, stored is not None and sorted(stored) == sorted(labels)


def _set_head(config: Any, head: str, labels: tuple[str, ...], *, many: bool, keep: bool) -> None:
    """Labels and problem type, as transformers' own classification models read them; `keep` leaves what the folder says."""
    if head == "regressor":
        config.num_labels, config.problem_type = 1, "regression"
    elif not keep:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "multi_label_classification" if many else "single_label_classification"


def _maker(kind: str, head: str) -> Any:
    if head != "lm":
        return AutoModelForSequenceClassification
    return AutoModelForMaskedLM if kind == "encoder" else AutoModelForCausalLM


def _build(report: GuardReport, config: Any, maker: Any, dtype: torch.dtype, seed: int, *, fresh_head: bool) -> torch.nn.Module:
    where = str(report.path)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            _check_size(report, config, maker)
            model, info = maker.from_pretrained(
                report.path, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=fresh_head,
            )  # fmt: skip
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"the model cannot be built: {str(error)[:400]}", fix="get matching config and weights", where=where) from error
    head = tuple(f"{name}." for name in head_modules(model))
    missing = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    wrong = sorted(name for name in missing if not (maker is AutoModelForSequenceClassification and (name.startswith(head) or ".pooler." in name)))
    if wrong:
        what = "its language-model head" if all(name.startswith(head) for name in wrong) else "weights that its config declares"
        fix = "give a folder that holds them, or ask for a classifier" if head else "get matching config and weights"
        raise UsageError(f"the folder lacks {what}: {', '.join(wrong[:5])}", allowed="all weights of the base model", fix=fix, where=where)
    if fresh_head:
        missing |= {name for name, _ in model.named_parameters() if name.startswith(head[-1])}
    _draw(model, missing, seed)
    return model.eval()


def _check_size(report: GuardReport, config: Any, maker: Any) -> None:
    """Built without memory first: a config may not declare more parameters than the files hold and a fresh head needs."""
    with torch.device("meta"):
        empty = maker.from_config(config)
    declared = sum(parameter.numel() for parameter in empty.parameters())
    width = config.get_text_config().hidden_size
    allowed = 1.05 * report.parameters + 4 * width * width + (config.num_labels + 16) * width
    if declared > allowed:
        got = f"the config declares {declared} parameters, the weights hold {report.parameters}"
        raise SafetyError(got, fix="get the matching config and weights", where=str(report.path))


def _draw(model: torch.nn.Module, names: set[str], seed: int) -> None:
    """Fresh parameters in the order of their names, so that the draw depends on nothing else."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    for name in sorted(names & set(parameters)):
        parameter = parameters[name]
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * INIT_STD)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _reorder(model: torch.nn.Module, order: list[int]) -> None:
    """Rows of the last layer in the order of the labels asked for."""
    rows = [parameter for name, parameter in model.named_parameters() if name.startswith(f"{head_modules(model)[-1]}.") and parameter.shape[0] == len(order)]
    with torch.no_grad():
        for parameter in rows:
            parameter.copy_(parameter[order].clone())


def _check_ids(tokenizer: Any, model: torch.nn.Module, folder: Path) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    special = set(tokenizer.all_special_tokens) | {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = [token for token, index in tokenizer.get_vocab().items() if index >= rows and token not in special]
    if beyond:
        got = f"{len(beyond)} tokens (such as {beyond[0][:40]!r}) lie beyond the embedding's {rows} rows"
        raise UsageError(got, allowed="tokenizer and weights of the same model", where=str(folder))


def _context(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or 1 << 30
    if text.model_type in _OFFSET_POSITIONS:
        positions -= (text.pad_token_id or 0) + 1
    return int(min(positions, tokenizer.model_max_length, 1 << 30))
