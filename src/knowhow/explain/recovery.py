"""How well known circuits are found again: edges of compiled programs, by exact ablation, by gradients, and by a control that looks at sizes alone.

An edge is a variable of the stream and a port that may read it: every variable that some earlier part writes, every port of the model. Which of them
are read is known from the compiler (model/compiled.py). Shape letters: E edges, B rows, T tokens, D stream, K dimensions of a variable.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.explain.edge_attribution import reader_gradients
from knowhow.explain.edges import Reader, Sender, edge_effects, noised, order, readers, removed
from knowhow.model.compiled import Compiled
from knowhow.model.replay import Recording, record
from knowhow.protocols import Progress

METHODS = ("ablation", "attribution", "norm")
ROWS = 12


@dataclass(frozen=True, slots=True)
class Recovery:
    """`edges`: (variable, port) E; `truth`: whether the program reads it; `scores`: method → E (of METHODS; `norm`: the control, the variable's size)."""

    program: str
    edges: tuple[tuple[str, str], ...]
    truth: np.ndarray
    scores: dict[str, np.ndarray]


def recover(program: Compiled, *, seed: int = 0, rows: int = ROWS, progress: Progress | None = None) -> Recovery:
    """Scores of every possible edge: the largest over random inputs of several lengths, for what a program reads may show at some of them only.

    ablation: distance of the output variable when the port alone sees the variable removed or replaced by noise, also where another of its variables
    is gone already. attribution: the same removal by the gradient, which a saturated attention hides."""
    drawn, names = random.Random(seed), list(program.variables)
    totals: dict[str, torch.Tensor] = {}
    ports: list[Reader] = []
    lengths = sorted({1, 2, 3, program.longest // 2, program.longest - 1, program.longest} - {0})
    for done, length in enumerate(lengths):
        if progress is not None:
            progress(f"recover {program.name}", done, len(lengths))
        tokens_BT = program.tokens([[drawn.choice(program.words) for _ in range(length)] for _ in range(rows)])
        with torch.no_grad():
            recorded = record(program.model, {"input_ids": tokens_BT})
        ports = readers(recorded.parts)
        for method, found_PS in _scores(program, recorded, ports, names, seed).items():
            totals[method] = torch.maximum(totals[method], found_PS) if method in totals else found_PS
    kept = [(at, s) for at, port in enumerate(ports) for s, name in enumerate(names) if _written(program, name) < order(port.name)]
    edges = tuple((names[s], ports[at].name) for at, s in kept)
    truth = np.array([names[s] in program.reads[_part(ports[at]), ports[at].port] for at, s in kept])
    return Recovery(program.name, edges, truth, {method: np.array([float(value[at, s]) for at, s in kept]) for method, value in totals.items()})


def _scores(program: Compiled, recorded: Recording, ports: list[Reader], names: list[str], seed: int) -> dict[str, torch.Tensor]:
    """Method → PS of one batch."""
    width, shown = recorded.stream[0].shape[-1], list(program.variables[program.output])
    bases = {name: torch.eye(width)[:, list(program.variables[name])] for name in names}

    def distance(changed_BTV: torch.Tensor, clean_BTV: torch.Tensor) -> torch.Tensor:
        return (changed_BTV - clean_BTV)[:, :, shown].abs().flatten(1).amax(1)

    zero = {name: removed(recorded, basis) for name, basis in bases.items()}
    noise = {name: noised(recorded, basis, seed=seed) for name, basis in bases.items()}
    ablated = [edge_effects(recorded, senders, ports, distance).amax(2) for senders in (zero, noise)]
    sizes = torch.stack(
        [torch.stack([(recorded.read(port.layer, middle=port.port == "mlp") @ bases[name]).norm(dim=-1).mean() for name in names]) for port in ports]
    )
    return {"ablation": torch.maximum(*ablated), "attribution": _attributed(recorded, ports, zero, shown), "norm": sizes}


def _attributed(recorded: Recording, ports: list[Reader], senders: dict[str, Sender], shown: list[int]) -> torch.Tensor:
    """|removal · gradient of half the squared output|, the largest over rows: PS."""
    inputs = {"input_ids": recorded.inputs["input_ids"]}
    gradients = reader_gradients(recorded.model, inputs, inputs, lambda logits: logits[:, :, shown].square().flatten(1).sum(1) / 2, None, 0.0)
    return torch.stack(
        [torch.stack([(senders[name](port.layer, port.port == "mlp") * gradients[port.name]).sum((1, 2)).abs().amax() for name in senders]) for port in ports]
    )


def _part(port: Reader) -> str:
    return f"m{port.layer}" if port.port == "mlp" else f"a{port.layer}.h{port.head}"


def _written(program: Compiled, variable: str) -> float:
    """When a variable is first in the stream: −1 from the embedding, never for one that nobody writes."""
    return min((order(part) for part, names in program.writes.items() if variable in names), default=float("inf"))
