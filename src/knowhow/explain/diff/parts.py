"""The parts of a model as slices of its parameters.

Parts carry one set of names over all families: `embed`, `layers.3.attn`, `layers.3.mlp`, `layers.3.head.1`, `layers.3.group.0`, `final`; matrices those of
their sites (`layers.3.attn.q`, `layers.3.mlp.up`) and `layers.3.mlp.down`. Tensors are named below the model without its head, adapters left out.
Shape letters: O outputs, I inputs, H heads, J key-value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from knowhow.errors import UsageError
from knowhow.model.projections import BY_BLOCKS, BY_HEADS, SEPARATE
from knowhow.model.sites import Body, body

Tensor = torch.Tensor
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter, or `ranges` of it along `dim`."""

    tensor: str
    dim: int = 0
    ranges: tuple[Range, ...] | None = None

    def of(self, value: Tensor) -> Tensor:
        if self.ranges is None:
            return value
        return torch.cat([value.narrow(self.dim, start, end - start) for start, end in self.ranges], self.dim)

    def grafted(self, onto: Tensor, source: Tensor) -> Tensor:
        """`onto` with this piece of it taken from `source`; a new tensor unless the piece is all."""
        if self.ranges is None:
            return source
        new = onto.clone()
        for start, end in self.ranges:
            new.narrow(self.dim, start, end - start).copy_(source.narrow(self.dim, start, end - start))
        return new


@dataclass(frozen=True, slots=True)
class Part:
    """`kind`: embed, attn, mlp, head, group, final; of a matrix its site's (attn.q, mlp.up …), of anything else `other`. `head`: of a group its number.

    `transposed`: its parameter is stored I × O."""

    name: str
    kind: str
    layer: int | None
    pieces: tuple[Piece, ...]
    head: int | None = None
    transposed: bool = False


def components(model: torch.nn.Module) -> tuple[Part, ...]:
    """The parts that together are the whole model without its head: embed, every layer's attn and mlp (norms with what reads or follows them), final."""
    parts, names = body(model), tensors(model)
    layers, final = f"{parts.anatomy.layers}.", parts.anatomy.final and f"{parts.anatomy.final}."
    outside = [name for name in names if not name.startswith(layers)]
    last = [name for name in outside if (final and name.startswith(final)) or "pooler." in name]
    found = [_part("embed", "embed", None, [name for name in outside if name not in last])]
    ahead = _of_attention(parts)
    for layer in range(parts.depth):
        start = f"{layers}{layer}."
        here = [name for name in names if name.startswith(start)]
        attn = [name for name in here if name.removeprefix(start).startswith(ahead)]
        found += [_part(f"layers.{layer}.attn", "attn", layer, attn), _part(f"layers.{layer}.mlp", "mlp", layer, [name for name in here if name not in attn])]
    return tuple(part for part in [*found, _part("final", "final", None, last)] if part.pieces)


def heads(model: torch.nn.Module) -> tuple[Part, ...]:
    """Every head's slices of its layer's q, k, v (with biases) and out; where queries share keys and values, these are parts of their own (`group`)."""
    parts, found, inside = body(model), [], matrices(model)
    shared = parts.groups != parts.heads
    for layer in range(parts.depth):
        for kind, sides in (("head", ("q", "out") if shared else ("q", "k", "v", "out")), ("group", ("k", "v") if shared else ())):
            kinds = {f"attn.{side}" for side in sides}
            for head in range(parts.heads if kind == "head" else parts.groups) if sides else ():
                pieces = [piece for part in inside if part.layer == layer and part.head == head and part.kind in kinds for piece in part.pieces]
                found.append(Part(f"layers.{layer}.{kind}.{head}", kind, layer, tuple(pieces), head))
    return tuple(found)


def matrices(model: torch.nn.Module) -> tuple[Part, ...]:
    """Every matrix inside the layers under its site's name, attention's also head by head (k, v: group by group); first piece the weight, then a bias."""
    parts, names, found = body(model), set(tensors(model)), list[Part]()
    for layer in range(parts.depth):
        block = dict(parts.block(layer).named_modules())
        for kind, path, side, ranges in _places(parts, layer):
            linear, name = _linear(block[path]), f"{parts.anatomy.layers}.{layer}.{path}"
            transposed = isinstance(linear, Conv1D)
            dim = int(transposed) if side == "out" else 1 - int(transposed)
            for head in [None, *range(len(ranges))] if kind.startswith("attn") else [None]:
                at = _merged(ranges if head is None else [ranges[head]], linear.weight.shape[dim])
                pieces = [Piece(f"{name}.weight", dim, at)]
                if f"{name}.bias" in names and (side == "out" or head is None):
                    pieces.append(Piece(f"{name}.bias", 0, at if side == "out" else None))
                label = f"layers.{layer}.{kind}" + ("" if head is None else f".{head}")
                found.append(Part(label, kind, layer, tuple(pieces), head, transposed))
    return tuple(found)


def tensors(model: torch.nn.Module) -> list[str]:
    """Names of all parameters below the model without its head, adapters left out."""
    parts = body(model)
    modules = dict(parts.root.get_submodule(parts.prefix).named_modules())
    known = [(plain(path, modules), name) for path, module in modules.items() for name, _ in module.named_parameters(recurse=False)]
    return [".".join(filter(None, (path, name))) for path, name in known if path is not None]


def plain(path: str, modules: Mapping[str, torch.nn.Module]) -> str | None:
    """A module's path without adapters; None for what is an adapter's own and for an original that another stands in for."""
    steps, kept = path.split("."), list[str]()
    for at, step in enumerate(steps):
        chosen = at > 0 and steps[at - 1] == "modules_to_save"
        if step.startswith(("lora_", "trainable_tokens_")) or step == "original_module":
            return None
        if chosen and step not in modules[".".join(steps[: at - 1])].active_adapters:
            return None
        if not chosen and step not in ("base_layer", "token_adapter", "modules_to_save"):
            kept.append(step)
    return ".".join(kept)


def _part(name: str, kind: str, layer: int | None, names: Sequence[str]) -> Part:
    return Part(name, kind, layer, tuple(Piece(one) for one in names))


def _of_attention(parts: Body) -> tuple[str, ...]:
    """Beginnings of names below a block that belong to attention: its modules, the norm before it, what completes attn.out and a norm of the sum."""
    anatomy = parts.anatomy
    after = anatomy.mid.path if anatomy.mid is not None and anatomy.mid.side == "out" else ""
    return tuple(f"{path}." for path in (anatomy.attention, anatomy.head_out, anatomy.norm, anatomy.attn_out.path, after) if path)


def _places(parts: Body, layer: int) -> list[tuple[str, str, str, list[Range]]]:
    """(kind, path below the block, side on which heads lie, one range by head) of a block's matrices."""
    anatomy, H, J, block = parts.anatomy, parts.heads, parts.groups, parts.block(layer)
    children = dict(parts.attention(layer).named_children())
    apart = next((names for names in SEPARATE if all(name in children for name in names)), None)
    fused = next((name for name in (*BY_BLOCKS, *BY_HEADS) if name in children), None)
    if apart is None and fused is None:
        raise UsageError(f"projections {', '.join(children)}", allowed=", ".join([*(" ".join(names) for names in SEPARATE), *BY_BLOCKS, *BY_HEADS]))
    found, K = list[tuple[str, str, str, list[Range]]](), 0
    for at, (kind, count) in enumerate((("attn.q", H), ("attn.k", J), ("attn.v", J))):
        name = apart[at] if apart is not None else str(fused)
        K = _outputs(children[name]) // (count if apart is not None else H + 2 * J)
        step, first = (3 * K, at * K) if apart is None and fused in BY_HEADS else (K, 0 if apart is not None else (0, H, H + J)[at] * K)
        found.append((kind, f"{anatomy.attention}.{name}", "out", [(first + head * step, first + head * step + K) for head in range(count)]))
    found.append(("attn.out", anatomy.head_out, "in", [(head * K, (head + 1) * K) for head in range(H)]))
    for kind, port in (("mlp.gate", anatomy.gate), ("mlp.up", anatomy.up), ("mlp.down", anatomy.act)):
        if port is not None:
            index, count = port.part or (0, 1)
            size = _outputs(block.get_submodule(port.path)) // count
            found.append((kind, port.path, "out", [(index * size, (index + 1) * size)]))
    return found


def _merged(ranges: Sequence[Range], size: int) -> tuple[Range, ...] | None:
    """Neighbours joined; None for all."""
    joined = list[Range]()
    for start, end in ranges:
        joined = [*joined[:-1], (joined[-1][0], end)] if joined and joined[-1][1] == start else [*joined, (start, end)]
    return None if joined == [(0, size)] else tuple(joined)


def _linear(module: torch.nn.Module) -> torch.nn.Module:
    return module.base_layer if isinstance(module, LoraLayer) else module


def _outputs(module: torch.nn.Module) -> int:
    linear = _linear(module)
    return int(linear.weight.shape[1 if isinstance(linear, Conv1D) else 0])
