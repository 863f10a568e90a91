"""What each reader of the stream reads: edges found by exact ablation.

A reader is a port: the queries, keys or values of one head (of one key-value group), or an MLP. A sender is a part of the stream: what an earlier
component added, or a subspace. The sender is taken out of what this one reader sees (path patching, Goldowsky-Dill et al. 2023, arXiv 2304.05969);
everything behind the reader is computed anew, everything else stays. Nothing is linearised, so a saturated softmax hides nothing.
Shape letters: B rows, T tokens, D stream, P readers, S senders, E edges that run together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from knowhow.errors import UsageError
from knowhow.model.replay import Recording
from knowhow.model.sites import Body
from knowhow.protocols import Progress

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits BTV of an ablated pass, logits BTV of the clean one) → B numbers."""
Sender = Callable[[int, bool], torch.Tensor]
"""(layer, between attention and MLP?) → what is added to the stream that a reader there sees, BTD."""


@dataclass(frozen=True, slots=True, order=True)
class Reader:
    """`port`: q, k, v (of `head`; k and v: of a key-value group) or mlp."""

    layer: int
    port: str
    head: int = 0

    @property
    def name(self) -> str:
        return f"m{self.layer}" if self.port == "mlp" else f"a{self.layer}.h{self.head}.{self.port}"


def readers(parts: Body) -> list[Reader]:
    """All ports of a model, in the order in which they read."""
    counts, found = (("q", parts.heads), ("k", parts.groups), ("v", parts.groups)), []
    for layer in range(parts.depth):
        found += [Reader(layer, port, head) for port, count in counts for head in range(count)] + [Reader(layer, "mlp")]
    return found


def order(name: str, *, beside: bool = False) -> float:
    """When a component or port (a1.h0, a1.h0.k, m1) reads: `embed` never, attention of layer l at l, its MLP at l + ½ (at l where both stand side by side)."""
    if name == "embed":
        return -1.0
    return int(name[1:].split(".")[0]) + (0.5 if name[0] == "m" and not beside else 0.0)


def removed(recorded: Recording, basis_DK: torch.Tensor, instead: torch.Tensor | float = 0.0) -> Sender:
    """The subspace spanned by the orthonormal columns of `basis_DK`, its coordinates set to `instead` (BTK or what broadcasts to it)."""

    def change(layer: int, middle: bool) -> torch.Tensor:
        return (instead - recorded.read(layer, middle=middle) @ basis_DK) @ basis_DK.T

    return change


def noised(recorded: Recording, basis_DK: torch.Tensor, *, seed: int = 0) -> Sender:
    """The subspace's coordinates drawn anew, normal with their own root mean square: unlike zero it does not keep what is equal everywhere."""

    def change(layer: int, middle: bool) -> torch.Tensor:
        known_BTK = recorded.read(layer, middle=middle) @ basis_DK
        drawn_BTK = torch.randn(known_BTK.shape, generator=torch.Generator().manual_seed(seed)).to(known_BTK)
        return (drawn_BTK * known_BTK.square().mean().sqrt() - known_BTK) @ basis_DK.T

    return change


@torch.no_grad()
def edge_effects(
    recorded: Recording, senders: Mapping[str, Sender], wanted: Sequence[Reader], distance: Distance, *,
    backups: bool = True, rows: int = 2048, progress: Progress | None = None,
) -> torch.Tensor:  # fmt: skip
    """Distance PSB of the model's answer from its own with each sender changed for each reader alone: 0 for one that does not move the reader's value.

    `backups`: also with every other sender changed for that reader already, and the larger of the two: what a sender does may show only where another
    fails (self-repair, McGrath et al. 2023, arXiv 2307.15771). `rows`: the most that run together. Raises UsageError for a distance that is not one
    number per row."""
    B, names = recorded.stream[0].shape[0], list(senders)
    found = torch.zeros(len(wanted), len(names), B)
    groups: dict[tuple[int, str], list[int]] = {}
    for at, reader in enumerate(wanted):
        groups.setdefault((reader.layer, reader.port), []).append(at)
    for done, ((layer, port), here) in enumerate(groups.items()):
        if progress is not None:
            progress("edges", done, len(groups))
        added = [senders[name](layer, port == "mlp") for name in names]
        clean = _seen(recorded, layer, port, torch.zeros_like(added[0]))
        single = [_seen(recorded, layer, port, value) for value in added]
        both: dict[frozenset[int], torch.Tensor] = {}
        jobs = []
        for at in here:
            head = wanted[at].head
            live = [s for s in range(len(names)) if _moved(clean, single[s], port, head)]
            jobs += [((at, s, None), (head, single[s])) for s in live]
            for other in live if backups else ():
                for s in live:
                    pair = frozenset((s, other))
                    if s != other and pair not in both:
                        both[pair] = _seen(recorded, layer, port, added[s] + added[other])
                jobs += [((at, s, other), (head, both[frozenset((s, other))])) for s in live if s != other]
        firsts = {}
        for chunk in [jobs[first : first + max(1, rows // B)] for first in range(0, len(jobs), max(1, rows // B))]:
            for ((at, s, other), _), logits in zip(chunk, _answers(recorded, layer, port, [swap for _, swap in chunk]), strict=True):
                if other is None and backups:
                    firsts[at, s] = logits
                value = distance(logits, recorded.logits_all if other is None else firsts[at, other])
                if value.shape != (B,):
                    raise UsageError(f"a distance of shape {tuple(value.shape)}", allowed=f"one number per row, ({B},)")
                found[at, s] = torch.maximum(found[at, s], value)
    return found


def _moved(clean: torch.Tensor, seen: torch.Tensor, port: str, head: int) -> bool:
    """Whether a reader's value differs from its clean one by more than rounding."""
    before, after = (clean, seen) if port == "mlp" else (clean[:, :, head], seen[:, :, head])
    return bool((after - before).abs().max() > _ROUNDING * before.abs().max())


def _answers(recorded: Recording, layer: int, port: str, swaps: Sequence[tuple[int, torch.Tensor]]) -> Sequence[torch.Tensor]:
    """Logits BTV of one pass per swap."""
    hidden = _through(recorded, layer, port, swaps)
    for later in range(layer + 1, recorded.parts.depth):
        hidden = recorded.block(later, hidden)
    return recorded.logits(hidden).split(recorded.stream[0].shape[0])


_ROUNDING = 1e-6
_SITES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "mlp": "mlp.out"}


def _seen(recorded: Recording, layer: int, port: str, added_BTD: torch.Tensor) -> torch.Tensor:
    """What the port makes of the changed stream."""
    caught: list[torch.Tensor] = []

    def catch(value: torch.Tensor) -> torch.Tensor:
        caught.append(value)
        return value

    between = port == "mlp" and recorded.parts.anatomy.mid is not None
    hidden = recorded.stream[layer] if between else recorded.stream[layer] + added_BTD
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {_SITES[port]: catch}
    recorded.block(layer, hidden, changes=changes | ({"resid_mid": lambda value: value + added_BTD} if between else {}))
    return caught[0]


def _through(recorded: Recording, layer: int, port: str, swaps: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Output of the block, rows (edges × B), where each edge's reader alone has seen the change."""
    B = recorded.stream[0].shape[0]

    def swap(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        for at, (head, seen) in enumerate(swaps):
            group = slice(at * B, (at + 1) * B)
            if port == "mlp":
                new[group] = seen
            else:
                new[group, :, head] = seen[:, :, head]
        return new

    return recorded.block(layer, recorded.stream[layer].repeat(len(swaps), 1, 1), changes={_SITES[port]: swap})
