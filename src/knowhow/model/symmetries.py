"""What the loss may be blind to, place by place: the factors of every block that could be scaled against each other. model/charges.py says why, and settles
which of them are.

Shape letters: D model, H heads, J key-value heads, K head size, F feed-forward, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.activations import ACT2FN

from knowhow.maths.noether import Labels
from knowhow.model.configs import is_encoder
from knowhow.model.projections import QK_NORMS, Found, Heads, Names, Piece, Projection, Reason, at, gain, heads, norms, part, rotated
from knowhow.model.sites import Body

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A charge before it is known whether its factors can be used: a Reason among the pieces says why not. `wrong`: looks like a charge and is none."""

    kind: str
    site: str
    layer: int
    left: Sequence[Found]
    right: Sequence[Found] = ()
    labels: Labels = None
    wrong: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """One model on the way through its blocks; `offsets` collects what gains are counted from."""

    parts: Body
    names: Names
    offsets: dict[str, float]

    @property
    def config(self) -> dict[str, object]:
        told: dict[str, object] = self.parts.root.config.get_text_config().to_dict()
        return told

    def candidates(self) -> Iterator[Candidate]:
        for layer in range(self.parts.depth):
            yield from self.attention(layer)
            yield from self.mlp(layer)
            yield from self.gains(layer)
        yield self.final()

    def attention(self, layer: int) -> Iterator[Candidate]:
        own, site = heads(self.parts, self.names, layer), f"layers.{layer}.attn"
        if isinstance(own, Reason):
            yield from (Candidate(kind, site, layer, [own]) for kind in ("vo", "qk"))
            return
        cut = [Reason("clipped", "queries, keys and values are clipped")] if self.config.get("clip_qkv") is not None else []
        for group in range(len(own.v)):
            yield Candidate("vo", f"{site}.{group}", layer, [*cut, *own.v[group]], own.outs(group))
        turned, children = rotated(self.parts, layer, own.size), dict(self.parts.attention(layer).named_children())
        normed = next((found for found in QK_NORMS if all(name in children for name in found)), None)
        if isinstance(turned, Reason):
            yield Candidate("qk", site, layer, [turned])
        elif normed is not None:
            yield from self._normed(own, layer, [children[name] for name in normed], turned)
        else:
            for group in range(len(own.k)):
                yield from _scores(Candidate("qk", f"{site}.{group}", layer, [*cut, *own.queries(group)], own.k[group]), turned, own.size)

    def _normed(self, own: Heads, layer: int, modules: Sequence[torch.nn.Module], turned: int) -> Iterator[Candidate]:
        """Gains of the norms of queries and keys, and the sizes that these norms hide; the norm is per head where its gain is K long."""
        site, kinds, groups = f"layers.{layer}.attn", (own.q, own.k), len(own.k)
        labels = [row % (turned // 2) if row < turned else row for row in range(own.size)]
        gains = [self._gain_of(module) for module in modules]
        lengths = [next((len(p) for p in module.parameters()), own.size) for module in modules]
        if lengths == [own.size, own.size]:
            yield Candidate("qk_gain", site, layer, gains[0], gains[1], labels)
            parts = [(f"{kind}.{at}", list(pieces)) for kind, each in zip("qk", kinds, strict=True) for at, pieces in enumerate(each)]
        else:
            share = len(own.q) // groups
            for group in range(groups):
                left = [_cut(one, head * own.size, own.size) for head in range(group * share, (group + 1) * share) for one in gains[0]]
                yield Candidate("qk_gain", f"{site}.{group}", layer, left, [_cut(one, group * own.size, own.size) for one in gains[1]], labels)
            parts = [(kind, [piece for pieces in each for piece in pieces]) for kind, each in zip("qk", kinds, strict=True)]
        yield from (Candidate("scale", f"{site}.{name}", layer, pieces, (), [0] * own.size) for name, pieces in parts)

    def mlp(self, layer: int) -> Iterator[Candidate]:
        anatomy, site = self.parts.anatomy, f"layers.{layer}.mlp"
        down = at(self.parts, self.names, layer, anatomy.act)
        into: list[Found] = [down if isinstance(down, Reason) else down.into()]
        neurons = list(range(down.inputs)) if isinstance(down, Projection) else None
        smooth = not self._homogeneous()
        none = [Reason("activation", "the activation between up and down is not homogeneous (GELU, SiLU)")] if smooth and anatomy.gate is None else []
        yield Candidate("up_down", site, layer, [*none, *part(at(self.parts, self.names, layer, anatomy.up), anatomy.up)], into, neurons)
        if anatomy.gate is not None:
            yield Candidate("gate_down", site, layer, part(at(self.parts, self.names, layer, anatomy.gate), anatomy.gate), into, neurons, smooth)

    def gains(self, layer: int) -> Iterator[Candidate]:
        own, anatomy = heads(self.parts, self.names, layer), self.parts.anatomy
        readers = [own] if isinstance(own, Reason) else list(own.readers)
        ports = [anatomy.up] if anatomy.gate is None else [anatomy.gate, anatomy.up]
        mlp = list(dict.fromkeys(at(self.parts, self.names, layer, port) for port in ports))
        first, second = norms(self.parts, layer)
        block = self.parts.block(layer)
        groups = [(first, [*readers, *mlp])] if first is not None and first == second else [(first, readers), (second, mlp)]
        for path, read in groups:
            where = f"layers.{layer}.{path or ('attn' if read is readers else 'mlp')}"
            yield self._gain(where, layer, None if path is None else block.get_submodule(path), read)

    def final(self) -> Candidate:
        anatomy, root = self.parts.anatomy, self.parts.root
        if not anatomy.final or is_encoder(root.config.get_text_config().model_type):
            return Candidate("norm_gain", "final", -1, [Reason("norm", "what an encoder's head reads is its own")])
        head = root.get_output_embeddings() or dict(root.named_children()).get("score")
        reader = Reason("unknown", "no head that is known reads the final norm") if head is None else self.names.projection(head)
        return self._gain("final", -1, root.get_submodule(self.parts.path(anatomy.final)), [reader])

    def _gain(self, site: str, layer: int, module: torch.nn.Module | None, readers: Sequence[Projection | Reason]) -> Candidate:
        if module is None:
            return Candidate("norm_gain", site, layer, [Reason("norm", "this part reads the stream as it is, or a norm that the stream goes through")])
        left = self._gain_of(module)
        rows = next((one.inputs for one in readers if isinstance(one, Projection)), 0)
        return Candidate("norm_gain", site, layer, left, [one if isinstance(one, Reason) else one.into() for one in readers], list(range(rows)))

    def _gain_of(self, module: torch.nn.Module) -> list[Found]:
        """A norm's gain and its bias."""
        found = gain(module)
        if isinstance(found, Reason):
            return [found]
        own = dict(module.named_parameters(recurse=False))
        pieces: list[Found] = [Piece(self.names.known[id(own[name])]) for name in dict.fromkeys([found[0], *own])]
        if found[1] and isinstance(pieces[0], Piece):
            self.offsets[pieces[0].parameter] = found[1]
        return pieces

    def _homogeneous(self) -> bool:
        """Whether act(2x) = 2 act(x) for the activation that the config names."""
        told = self.config
        name = next((told[key] for key in ACTIVATIONS if isinstance(told.get(key), str)), None)
        if name not in ACT2FN:
            return False
        x = torch.tensor([-2.0, -1.0, -0.3, 0.3, 1.0, 2.0])
        act = ACT2FN[name]
        return bool(torch.allclose(act(2 * x), 2 * act(x), atol=1e-6))


def adapters(model: torch.nn.Module, names: Names) -> Iterator[Candidate]:
    """LoRA's pairs: of every adapted matrix, and of embedding tables."""
    for path, module in model.named_modules():
        children = dict(module.named_children())
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            for (name, down), (_, up) in zip(_held(children.get(a)), _held(children.get(b)), strict=True):
                site = f"{path.removeprefix('base_model.model.')}.{name}"
                layer = next((int(word) for word in path.split(".") if word.isdigit()), -1)
                fits = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] and type(module).__name__ != "ParamWrapper"
                left: list[Found] = [Piece(names.known[id(down)]) if fits else Reason("unknown", f"an adapter of {type(module).__name__}")]
                yield Candidate("lora", site, layer, left, [Piece(names.known[id(up)], True)] if fits else [])


def _held(holder: torch.nn.Module | None) -> list[tuple[str, torch.nn.Parameter]]:
    """(adapter's name, matrix) of a PEFT dictionary of layers or of parameters; B's own bias is no part of it."""
    return [] if holder is None else [(name.split(".")[0], p) for name, p in holder.named_parameters() if not name.endswith(".bias")]


def _scores(whole: Candidate, turned: int, size: int) -> Iterator[Candidate]:
    """A group's queries and keys by rotary pair; the dimensions that are not rotated, all of them without rotary embedding, as a whole matrix."""
    if turned:
        pairs = [row % (turned // 2) for row in range(turned)]
        yield replace(whole, left=_below(whole.left, 0, turned), right=_below(whole.right, 0, turned), labels=pairs)
        yield replace(whole, kind="qk_full", wrong=True)
    if turned < size:
        site = f"{whole.site}.still" if turned else whole.site
        yield replace(whole, site=site, left=_below(whole.left, turned, size), right=_below(whole.right, turned, size))


def _below(pieces: Sequence[Found], first: int, end: int) -> list[Found]:
    """Rows `first` to `end` of each piece's own."""
    return [replace(one, rows=(one.rows[0] + first, one.rows[0] + end)) if isinstance(one, Piece) and one.rows else one for one in pieces]


def _cut(one: Found, first: int, size: int) -> Found:
    return one if isinstance(one, Reason) else replace(one, rows=(first, first + size))
