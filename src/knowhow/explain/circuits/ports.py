"""Single heads as parts of a layer: what each port makes of a stream of its own, and what each head adds, at the price of one projection.

A head's queries need a K-th of its layer's projection only. So where every port reads another stream, each gets its own slice of the matrix, the
attention module is handed the results in place of its projections' outputs, and query-key norm, rotation and the product stay the family's own.
Shape letters: B rows, R rows of a replay, T positions, t positions from a first one on, D stream, H heads, J key-value heads, K head size, N vectors,
U streams side by side, O outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from knowhow.errors import UsageError
from knowhow.model.loaded import has_gradients
from knowhow.model.projections import BY_BLOCKS, BY_HEADS, SEPARATE
from knowhow.model.sites import ANATOMIES, Body, body
from knowhow.model.taps import tap

Tensor = torch.Tensor
KINDS = ("q", "k", "v")
_NORMED = ("gemma2", "gemma3_text", "olmo2")


@dataclass(frozen=True, slots=True)
class Ports:
    """One layer's matrices: `weights` and `biases` of q HDK and H1K, of k and v JDK and J1K; `out` HKD. `modules`: what projects, below attention."""

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    out: Tensor
    bias_out: Tensor
    modules: tuple[str, ...]
    by_heads: bool

    def project(self, kind: str, normed_UHND: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """UHNK: what each head of a kind (or the named ones) makes of its own stream, before rotation."""
        weight_HDK, bias_H1K = self.weights[kind], self.biases[kind]
        if heads is not None:
            weight_HDK, bias_H1K = weight_HDK[list(heads)], bias_H1K[list(heads)]
        return normed_UHND @ weight_HDK + bias_H1K

    def views(self, module: str, output_RtO: Tensor) -> dict[str, Tensor]:
        """Kind → the part of a projecting module's output that is its own, RtHK (RtJK): views to write into."""
        if len(self.modules) == len(KINDS):
            kind = KINDS[self.modules.index(module)]
            return {kind: output_RtO.unflatten(-1, (len(self.weights[kind]), -1))}
        H, J = (len(self.weights[kind]) for kind in ("q", "k"))
        parts = output_RtO.unflatten(-1, (H, 3, -1)).unbind(-2) if self.by_heads else output_RtO.unflatten(-1, (H + 2 * J, -1)).split((H, J, J), -2)
        return dict(zip(KINDS, parts, strict=True))

    def laid_out(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the projecting modules that hold these values (kind → RtHK)."""
        found = {}
        for at, module in enumerate(self.modules):
            kinds = KINDS if len(self.modules) == 1 else (KINDS[at],)
            found[module] = values["q"].new_empty(*values["q"].shape[:2], sum(values[kind].shape[2] * values[kind].shape[3] for kind in kinds))
            for kind, view in self.views(module, found[module]).items():
                view.copy_(values[kind])
        return found


@torch.no_grad()
def ports(parts: Body, layer: int) -> Ports:
    """The matrices of a layer: separate or fused projections, adapters included. Raises UsageError for projections that are not known."""
    attention, H, J = parts.attention(layer), parts.heads, parts.groups
    D, children = parts.root.config.get_text_config().hidden_size, dict(attention.named_children())
    known = [names for names in SEPARATE if all(name in children for name in names)] + [(name,) for name in (*BY_BLOCKS, *BY_HEADS) if name in children]
    if not known:
        raise UsageError(f"projections {', '.join(children)}", allowed=", ".join([*(" ".join(names) for names in SEPARATE), *BY_BLOCKS, *BY_HEADS]))
    modules, found = tuple(known[0]), list[Tensor]()
    by_heads = modules[0] in BY_HEADS
    both = [torch.cat(affine(children[name], D)) for name in modules]  # the bias as a last row
    if len(modules) == len(KINDS):
        found = [part.unflatten(-1, (heads, -1)) for part, heads in zip(both, (H, J, J), strict=True)]
    else:
        found = list(both[0].unflatten(-1, (H, 3, -1)).unbind(-2) if by_heads else both[0].unflatten(-1, (H + 2 * J, -1)).split((H, J, J), -2))
    pairs = {kind: part.transpose(0, 1).contiguous() for kind, part in zip(KINDS, found, strict=True)}
    width = pairs["q"].shape[0] * pairs["q"].shape[2]
    out_OD, bias_1D = affine(parts.block(layer).get_submodule(parts.anatomy.head_out), width)
    weights, biases = ({kind: part[:, where] for kind, part in pairs.items()} for where in (slice(0, D), slice(D, None)))
    return Ports(weights, biases, out_OD.unflatten(0, (H, -1)), bias_1D[0], modules, by_heads)


def affine(module: torch.nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """(matrix width × O, bias 1 × O) of an affine module; of a wrapped one (an adapter) from what it does to unit vectors."""
    if type(module) is torch.nn.Linear:
        return module.weight.T, _row(module.bias, module.weight[:, 0])
    if type(module) is Conv1D:
        return module.weight, _row(module.bias, module.weight[0])
    like = next(module.parameters())
    bias_1O = module(torch.zeros(1, width, device=like.device, dtype=like.dtype))
    return module(torch.eye(width, device=like.device, dtype=like.dtype)) - bias_1O, bias_1O


def _row(bias: Tensor | None, like_O: Tensor) -> Tensor:
    return torch.zeros_like(like_O)[None] if bias is None else bias[None]


def check_adds(parts: Body) -> None:
    """Raises UsageError for families that norm a head's output together with the others', where no head has a share of its own, and for integer kernels,
    whose heads are rounded together.

    An encoder whose blocks have no norms at all, such as a compiled program, adds one by one as well."""
    normed = not parts.anatomy.added_mid and any(isinstance(module, torch.nn.LayerNorm) for module in parts.block(0).modules())
    if normed or parts.root.config.get_text_config().model_type in _NORMED:
        fix = "take node_attribution, or reader_gradients with differences of your own"
        raise UsageError("heads of a family that norms what they add", allowed="families whose heads add to the stream one by one", fix=fix)
    if not has_gradients(parts.root):
        raise UsageError(
            "single heads of a model with integer kernels", allowed="a model of floating-point weights", fix="take the model from before quantisation"
        )


def before_attention(parts: Body, layer: int, stream_RtD: Tensor) -> Tensor:
    """What attention's projections get of a stream."""
    return parts.block(layer).get_submodule(parts.anatomy.norm)(stream_RtD) if parts.anatomy.norm else stream_RtD


def before_mlp(parts: Body, layer: int, stream_RtD: Tensor) -> Tensor:
    """What the MLP gets of a stream between attention and it (where these run side by side: before both)."""
    own = ANATOMIES[parts.root.config.get_text_config().model_type].mid
    path = parts.anatomy.norm if own is None else own.path if own.side == "in" else ""
    return parts.block(layer).get_submodule(path)(stream_RtD) if path else stream_RtD


def mlp_says(parts: Body, layer: int, stream_RtD: Tensor) -> Tensor:
    """What the MLP adds when it reads this stream."""
    anatomy, block, read = parts.anatomy, parts.block(layer), before_mlp(parts, layer, stream_RtD)
    first, _, below = anatomy.mlp_in.path.rpartition(".")
    if not first:
        return block.get_submodule(below)(read)
    return block.get_submodule(anatomy.mlp_out.path)(block.get_submodule(first)(read))


@contextmanager
def given(attention: torch.nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """While inside, each named projection gives its value here and computes next to nothing."""

    def instead(value: Tensor) -> Callable[[torch.nn.Module, Any, Any], Tensor]:
        return lambda _, __, ___: value

    with ExitStack() as stack:
        for name, value in outputs.items():
            module = attention.get_submodule(name)
            stack.enter_context(module.register_forward_pre_hook(lambda _, args: (args[0][:1, :1], *args[1:])))
            stack.enter_context(module.register_forward_hook(instead(value)))
        yield


@dataclass(frozen=True, slots=True)
class Swap:
    """The value RtK that one head's queries (its group's keys or values) get in some rows, before rotation."""

    kind: str
    head: int
    rows: slice
    value: Tensor


@contextmanager
def swapped(attention: torch.nn.Module, own: Ports, swaps: Sequence[Swap]) -> Iterator[None]:
    """While inside, the attention module's projections give these values in these rows."""

    def hook(name: str) -> Callable[[torch.nn.Module, Any, Tensor], Tensor]:
        def change(_: torch.nn.Module, __: Any, output_RtO: Tensor) -> Tensor:
            new = output_RtO.clone()
            for kind, view in own.views(name, new).items():
                for swap in swaps:
                    if swap.kind == kind:
                        view[swap.rows, :, swap.head] = swap.value
            return new

        return change

    with ExitStack() as stack:
        for name in own.modules if swaps else ():
            stack.enter_context(attention.get_submodule(name).register_forward_hook(hook(name)))
        yield


@dataclass(frozen=True, slots=True)
class Sent:
    """What one pass sent, or what stands for it: `embed`, `stream` (L + 1) and `middle` as in a Recording, `z` BTHK of each layer's heads, `mlp` BTD."""

    stream: tuple[Tensor, ...]
    middle: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]

    def behind(self, start: int) -> Sent:
        """Positions from `start` on."""
        return Sent(*(tuple(value[:, start:] for value in values) for values in (self.stream, self.middle, self.z, self.mlp)))


@torch.no_grad()
def sent(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Sent:
    """One pass. Raises UsageError for unknown families."""
    parts = body(model)
    between = "resid_mid" if parts.anatomy.mid is not None else "resid_pre"
    kinds = dict.fromkeys(("resid_pre", between, "attn.z", "mlp.out"))
    last = f"layers.{parts.depth - 1}.resid_post"
    with tap(model, *(f"layers.*.{kind}" for kind in kinds), last) as seen:
        model(**inputs)
    found = {kind: tuple(seen[f"layers.{layer}.{kind}"] for layer in range(parts.depth)) for kind in kinds}
    return Sent((*found["resid_pre"], seen[last]), found[between], found["attn.z"], found["mlp.out"])


def constant(parts: Body, layers: Sequence[Ports], embed_D: Tensor, z: Sequence[Tensor], mlp: Sequence[Tensor]) -> Sent:
    """As if every sender had sent the same everywhere: `embed_D`, `z` HK and `mlp` D of each layer; the values are 11…, to be broadcast."""
    stream, middle = [embed_D], list[Tensor]()
    for layer, (own, z_HK, mlp_D) in enumerate(zip(layers, z, mlp, strict=True)):
        after_D = stream[layer] + torch.einsum("hk,hkd->d", z_HK, own.out) + own.bias_out
        middle.append(stream[layer] if parts.anatomy.mid is None else after_D)
        stream.append(after_D + mlp_D)
    return Sent(*(tuple(value[None, None] for value in values) for values in (stream, middle, z, mlp)))
