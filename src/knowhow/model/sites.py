"""Where one may look into a model: one set of names over all families.

A site is a place and its value: `embed` (token embeddings), `layers.3.resid_pre`, `resid_mid` (between attention and MLP), `resid_post`,
`layers.3.attn.q`, `k`, `v`, `pattern`, `z`, `out`, `layers.3.mlp.in`, `gate`, `up`, `act`, `out`, `final` (what the head reads), `logits`.
`attn.q` and `attn.k` are what the scores are made of (after rotation and query-key norm); `attn.out` and `mlp.out` are what is added to the stream.
Encoders that norm after each addition (BERT) have the normed sum at `resid_mid` and `resid_post`.
Shape letters: B batch, T positions, S keys, D model, H heads, J key-value heads, K head size, F feed-forward, V vocabulary, C labels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch

from knowhow.errors import UsageError
from knowhow.model.loaded import without_adapter

ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z")
"""Sites inside the attention product, which no module of its own computes."""
AXES: Mapping[str, tuple[str, ...]] = {
    "attn.q": ("rows", "positions", "heads", "K"),
    "attn.k": ("rows", "positions", "heads", "K"),
    "attn.v": ("rows", "positions", "heads", "K"),
    "attn.z": ("rows", "positions", "heads", "K"),
    "attn.pattern": ("rows", "heads", "positions", "S"),
}
"""What the axes of a site's value are; of all others rows, positions, features. `attn.k` and `attn.v` have J heads, one for a group of queries."""


@dataclass(frozen=True, slots=True)
class Port:
    """One side of a module; `part` (index, of) is a slice of a fused output."""

    path: str
    side: Literal["in", "out"] = "out"
    part: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where a family keeps its parts: paths below the model without its head (`layers`, `final`, `embed`) and below a block (the rest).

    `mid` None: attention and MLP run side by side. `head_out`: the matrix that z goes through; `added_mid`: resid_mid is resid_pre + attn.out.
    `norm_q`: the norm that attention's input goes through ("" when it reads the stream as it is)."""

    layers: str = "layers"
    embed: str = "embed_tokens"
    final: str = "norm"
    attention: str = "self_attn"
    head_out: str = "self_attn.o_proj"
    norm: str = "input_layernorm"
    attn_out: Port = Port("self_attn.o_proj")
    mid: Port | None = Port("post_attention_layernorm", "in")
    added_mid: bool = True
    mlp_in: Port = Port("mlp", "in")
    gate: Port | None = Port("mlp.gate_proj")
    up: Port = Port("mlp.up_proj")
    act: Port = Port("mlp.down_proj", "in")
    mlp_out: Port = Port("mlp.down_proj")


_LLAMA = Anatomy()
_GEMMA2 = replace(_LLAMA, attn_out=Port("post_attention_layernorm"), mid=Port("pre_feedforward_layernorm", "in"), mlp_out=Port("post_feedforward_layernorm"))
_BERT = Anatomy(
    layers="encoder.layer", embed="embeddings.word_embeddings", final="", attention="attention.self", head_out="attention.output.dense", norm="",
    attn_out=Port("attention.output.dense"), mid=Port("attention.output"), added_mid=False, mlp_in=Port("intermediate.dense", "in"), gate=None,
    up=Port("intermediate.dense"), act=Port("output.dense", "in"), mlp_out=Port("output.dense"),
)  # fmt: skip
_NEOX = Anatomy(
    embed="embed_in", final="final_layer_norm", attention="attention", head_out="attention.dense", attn_out=Port("attention.dense"), gate=None,
    up=Port("mlp.dense_h_to_4h"), act=Port("mlp.dense_4h_to_h", "in"), mlp_out=Port("mlp.dense_4h_to_h"),
)  # fmt: skip

ANATOMIES: Mapping[str, Anatomy] = {
    **{family: _LLAMA for family in ("llama", "qwen2", "qwen3", "mistral", "gemma", "olmo", "smollm3")},
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "olmo2": replace(_GEMMA2, mid=Port("mlp", "in"), norm=""),
    "phi3": replace(_LLAMA, gate=Port("mlp.gate_up_proj", part=(0, 2)), up=Port("mlp.gate_up_proj", part=(1, 2))),
    "phi": replace(
        _LLAMA, final="final_layernorm", head_out="self_attn.dense", attn_out=Port("self_attn.dense"), mid=None, gate=None,
        up=Port("mlp.fc1"), act=Port("mlp.fc2", "in"), mlp_out=Port("mlp.fc2"),
    ),
    "gpt2": Anatomy(
        layers="h", embed="wte", final="ln_f", attention="attn", head_out="attn.c_proj", norm="ln_1", attn_out=Port("attn.c_proj"), mid=Port("ln_2", "in"),
        gate=None, up=Port("mlp.c_fc"), act=Port("mlp.c_proj", "in"), mlp_out=Port("mlp.c_proj"),
    ),
    "gpt_neox": _NEOX,
    "bert": _BERT,
    "roberta": _BERT,
    "modernbert": Anatomy(
        embed="embeddings.tok_embeddings", final="final_norm", attention="attn", head_out="attn.Wo", norm="attn_norm", attn_out=Port("attn.Wo"),
        mid=Port("mlp_norm", "in"), gate=Port("mlp.Wi", part=(0, 2)), up=Port("mlp.Wi", part=(1, 2)), act=Port("mlp.Wo", "in"), mlp_out=Port("mlp.Wo"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """`kind`: the name without its layer; `port`: the module's full path and side, None inside the attention product and for `logits`."""

    name: str
    kind: str
    layer: int | None
    port: Port | None

    @property
    def axes(self) -> tuple[str, ...]:
        return AXES.get(self.kind, ("rows", "positions", "D"))


@dataclass(frozen=True, slots=True)
class Body:
    """The parts of one model that sites are made of. `prefix`: path of the model without its head ("" when it is that itself)."""

    root: torch.nn.Module
    prefix: str
    anatomy: Anatomy
    depth: int

    def path(self, *parts: str) -> str:
        return ".".join(part for part in (self.prefix, *parts) if part)

    @property
    def heads(self) -> int:
        return int(self.root.config.get_text_config().num_attention_heads)

    @property
    def groups(self) -> int:
        """Key-value heads: fewer than heads where queries share them."""
        return int(self.root.config.get_text_config().to_dict().get("num_key_value_heads") or self.heads)

    def block(self, layer: int) -> torch.nn.Module:
        return self.root.get_submodule(self.path(self.anatomy.layers, str(layer)))

    def attention(self, layer: int) -> torch.nn.Module:
        return self.block(layer).get_submodule(self.anatomy.attention)


def body(model: torch.nn.Module) -> Body:
    """The parts of `model` (a transformers model, PEFT-wrapped or compiled too). Raises UsageError for a family without an anatomy."""
    root = without_adapter(uncompiled(model))
    kind = root.config.get_text_config().model_type if isinstance(root.config.model_type, str) else ""
    anatomy = ANATOMIES.get(kind)
    if anatomy is None:
        raise UsageError(f"a model of the family {kind or type(root).__name__}", allowed=", ".join(ANATOMIES), fix="add its parts to model/sites.py")
    if kind == "gpt_neox" and root.config.use_parallel_residual:
        anatomy = replace(anatomy, mid=None)
    prefix = root.base_model_prefix if root.base_model_prefix in dict(root.named_children()) else ""
    inner = Body(root, prefix, anatomy, 0)
    return replace(inner, depth=len(root.get_submodule(inner.path(anatomy.layers))))


def has_sites(model: torch.nn.Module) -> bool:
    """Whether the family's parts are known."""
    root = without_adapter(uncompiled(model))
    return isinstance(root.config.model_type, str) and root.config.get_text_config().model_type in ANATOMIES


def uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    """The module that `torch.compile` wrapped; any other as it is."""
    return dict(model.named_children()).get("_orig_mod", model)


def sites(model: torch.nn.Module) -> dict[str, Site]:
    """All sites of a model, from the embedding to the logits. Raises UsageError for a family without an anatomy."""
    parts = body(model)
    found = [Site("embed", "embed", None, Port(parts.path(parts.anatomy.embed)))]
    for layer in range(parts.depth):
        for kind, port in _of_block(parts.anatomy).items():
            path = parts.path(parts.anatomy.layers, str(layer), *([port.path] if port else []))
            found.append(Site(f"layers.{layer}.{kind}", kind, layer, port and replace(port, path=path)))
    last = parts.anatomy.final or f"{parts.anatomy.layers}.{parts.depth - 1}"
    found += [Site("final", "final", None, Port(parts.path(last))), Site("logits", "logits", None, None)]
    return {site.name: site for site in found}


def find(model: torch.nn.Module, *patterns: str) -> list[Site]:
    """Sites whose names match any pattern (`*` and `?` as in a shell), in the model's order. Raises UsageError when a pattern matches none."""
    known = sites(model)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"the site {pattern}", allowed=_valid(known), fix=_nearest(pattern, known))
    return [site for name, site in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _of_block(anatomy: Anatomy) -> dict[str, Port | None]:
    """Kinds of site of one block, in the order in which they are computed."""
    ports: dict[str, Port | None] = {"resid_pre": Port("", "in"), **dict.fromkeys(ATTENTION), "attn.out": anatomy.attn_out}
    if anatomy.mid is not None:
        ports["resid_mid"] = anatomy.mid
    ports["mlp.in"] = anatomy.mlp_in
    if anatomy.gate is not None:
        ports["mlp.gate"] = anatomy.gate
    return ports | {"mlp.up": anatomy.up, "mlp.act": anatomy.act, "mlp.out": anatomy.mlp_out, "resid_post": Port("")}


def _valid(known: Mapping[str, Site]) -> str:
    kinds = list(dict.fromkeys(f"layers.*.{site.kind}" if site.layer is not None else site.name for site in known.values()))
    layers = {site.layer for site in known.values() if site.layer is not None}
    return f"{', '.join(kinds)} (layers 0 to {max(layers)})"


def _nearest(pattern: str, known: Mapping[str, Site]) -> str:
    near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else "take one of these"
