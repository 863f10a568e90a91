"""Where a block keeps the matrices of its heads, its MLP and its norms: names of parameters and the rows of them that are meant.

Shape letters: D model, H heads, J key-value heads, K head size, F feed-forward, O outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

from knowhow.model.sites import ANATOMIES, Body, Port

SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
BY_BLOCKS = ("c_attn", "qkv_proj", "Wqkv")
"""Fused projections whose outputs are all queries, then all keys, then all values."""
BY_HEADS = ("query_key_value",)
"""Fused projections whose outputs are, head by head, its query, key and value."""
QK_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something cannot be used: a word to count it by, and a sentence."""

    word: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one parameter as part of a factor; `transposed`: rows of its transpose; a vector is one column."""

    parameter: str
    transposed: bool = False
    rows: tuple[int, int] | None = None

    def matrix(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        value = values[self.parameter]
        value = value[:, None] if value.ndim == 1 else value.T if self.transposed else value
        return value if self.rows is None else value[slice(*self.rows)]


Found = Piece | Reason


@dataclass(frozen=True, slots=True)
class Projection:
    """Names of an affine module's weight and bias; `flipped`: the weight is stored inputs × outputs."""

    weight: str
    bias: str | None
    flipped: bool
    inputs: int
    outputs: int

    def out(self, rows: tuple[int, int] | None = None) -> list[Piece]:
        """What makes these outputs: their rows of the weight, and the bias as one more column."""
        return [Piece(self.weight, self.flipped, rows), *([Piece(self.bias, False, rows)] if self.bias else [])]

    def into(self, rows: tuple[int, int] | None = None) -> Piece:
        """What these inputs are multiplied by."""
        return Piece(self.weight, not self.flipped, rows)


@dataclass(frozen=True, slots=True)
class Names:
    """Parameters of a model by identity; `shared`: those that several modules hold."""

    known: Mapping[int, str]
    shared: frozenset[str]

    def projection(self, module: torch.nn.Module) -> Projection | Reason:
        if "base_layer" in dict(module.named_children()):
            return Reason("adapter", "the matrix carries an adapter: only the adapter's own charge is conserved")
        if type(module) is torch.nn.Linear:
            outputs, inputs = module.weight.shape
        elif type(module) is Conv1D:
            inputs, outputs = module.weight.shape
        else:
            return Reason("unknown", f"a projection of type {type(module).__name__}")
        bias = None if module.bias is None else self.known[id(module.bias)]
        return Projection(self.known[id(module.weight)], bias, type(module) is Conv1D, inputs, outputs)


def names(model: torch.nn.Module) -> Names:
    known = {id(p): name for name, p in model.named_parameters()}
    held = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return Names(known, frozenset(known[one] for one in set(held) if held.count(one) > 1)) if len(held) > len(known) else Names(known, frozenset())


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention of one layer. `q` per head, `k` and `v` per group: pieces of K rows; `readers`: the projections that read the block's input."""

    q: Sequence[Sequence[Found]]
    k: Sequence[Sequence[Found]]
    v: Sequence[Sequence[Found]]
    out: Sequence[Found]
    size: int
    readers: Sequence[Projection | Reason]

    def queries(self, group: int) -> list[Found]:
        """All of the group's heads beside one another."""
        share = len(self.q) // len(self.k)
        return [piece for head in self.q[group * share : (group + 1) * share] for piece in head]

    def outs(self, group: int) -> list[Found]:
        share = len(self.q) // len(self.k)
        return list(self.out[group * share : (group + 1) * share])


def heads(parts: Body, known: Names, layer: int) -> Heads | Reason:
    """The projections of a layer's attention, separate or fused."""
    H, J, children = parts.heads, parts.groups, dict(parts.attention(layer).named_children())
    mixed = known.projection(parts.block(layer).get_submodule(parts.anatomy.head_out))
    if isinstance(mixed, Reason):
        return mixed
    K = mixed.inputs // H
    out = [mixed.into((head * K, (head + 1) * K)) for head in range(H)]
    apart = next((found for found in SEPARATE if all(name in children for name in found)), None)
    if apart is not None:
        made = [known.projection(children[name]) for name in apart]
        q, k, v = ([_rows(one, at * K, K) for at in range(count)] for one, count in zip(made, (H, J, J), strict=True))
        return Heads(q, k, v, out, K, made)
    fused = next((name for name in (*BY_BLOCKS, *BY_HEADS) if name in children), None)
    if fused is None:
        return Reason("unknown", f"projections {', '.join(children)}")
    one = known.projection(children[fused])
    if fused in BY_HEADS:
        q, k, v = ([_rows(one, (3 * head + at) * K, K) for head in range(H)] for at in range(3))
    else:
        q, k, v = ([_rows(one, (first + at) * K, K) for at in range(count)] for first, count in ((0, H), (H, J), (H + J, J)))
    return Heads(q, k, v, out, K, [one])


def at(parts: Body, known: Names, layer: int, port: Port | None) -> Projection | Reason:
    """The projection behind a port of the MLP."""
    missing = Reason("unknown", f"no single matrix at {port.path if port else 'the gate'} (a mixture of experts?)")
    block = parts.block(layer)
    return known.projection(block.get_submodule(port.path)) if port and port.path in dict(block.named_modules()) else missing


def part(found: Projection | Reason, port: Port) -> list[Found]:
    """The rows of a projection that a port means: all, or its slice of a fused one."""
    if isinstance(found, Reason):
        return [found]
    if port.part is None:
        return list(found.out())
    index, of = port.part
    size = found.outputs // of
    return list(found.out((index * size, (index + 1) * size)))


def norms(parts: Body, layer: int) -> tuple[str | None, str | None]:
    """Paths below a block of the norm that attention reads through and of the MLP's; None where a part reads the stream itself. One that both read through
    is there twice."""
    own = ANATOMIES[parts.root.config.get_text_config().model_type].mid
    first = parts.anatomy.norm or None
    second = first if own is None else own.path if own.side == "in" else None
    modules = dict(parts.block(layer).named_modules())
    first, second = (path if path in modules and is_norm(modules[path]) else None for path in (first, second))
    return first, second


def is_norm(module: torch.nn.Module) -> bool:
    """Whether a module looks like one: no modules inside, and none but vectors of weights."""
    return not list(module.children()) and "Norm" in type(module).__name__ and all(p.ndim == 1 for p in module.parameters())


@torch.no_grad()
def gain(module: torch.nn.Module) -> tuple[str, float] | Reason:
    """Which of a norm's own parameters is the gain, and what it is counted from: 0, or 1 where the norm multiplies by 1 + weight. Read off what the norm
    does to a vector of mean 0 and mean square 1."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own:
        return Reason("norm", "a norm without a gain")
    weight = own["weight"]
    x = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=torch.float32)
    x = torch.where(x.abs() < 0.1, 0.1 * torch.where(x < 0, -1.0, 1.0), x)
    x = x - x.mean()
    x = (x / x.square().mean().sqrt()).to(weight.dtype)
    done = ((module(x) - module(torch.zeros_like(x))).float() / x.float()) - weight.float()
    offset = round(float(done.median()))
    if offset not in (0, 1) or float((done - offset).abs().max()) > 0.05 * (1 + float(weight.abs().max())):
        return Reason("norm", "a norm whose gain is not its weight")
    return "weight", float(offset)


def rotated(parts: Body, layer: int, size: int) -> int | Reason:
    """How many of a head's first dimensions are rotated by position, in pairs i and i + half: 0 without rotary embedding."""
    told = parts.root.config.get_text_config().to_dict().get("no_rope_layers")
    if told and not told[layer]:
        return 0
    sizes = {2 * len(b) for name, b in parts.root.named_buffers() if name.endswith("inv_freq") and "original" not in name}
    if len(sizes) > 1:
        return Reason("unknown", f"rotary embeddings of {', '.join(map(str, sorted(sizes)))} dimensions in one model")
    return min(sizes.pop(), size) if sizes else 0


def _rows(found: Projection | Reason, first: int, size: int) -> list[Found]:
    return [found] if isinstance(found, Reason) else list(found.out((first, first + size)))
