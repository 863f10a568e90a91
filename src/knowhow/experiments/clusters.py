"""Classes that are Gaussian clusters, and a small ReLU net that learns them on all rows at once.

Shape letters: N rows, D inputs, C classes, F features (what the head reads).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from knowhow.experiments.system import CrossEntropy, MeanSquare, System, fixed, numbers

DEPTH = 2


def rows_of(seed: int, sizes: Sequence[int], dim: int, separation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ND and classes N: class c has `sizes[c]` rows around a centre drawn from `separation` × a normal, spread 1 in each direction."""
    generator = torch.Generator().manual_seed(seed)
    centres_CD = separation * torch.randn(len(sizes), dim, generator=generator)
    classes_N = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
    return centres_CD[classes_N] + torch.randn(len(classes_N), dim, generator=generator), classes_N


def net(seed: int, dim: int, width: int, depth: int, outputs: int, *, normalised: bool = False) -> torch.nn.Sequential:
    """`depth` ReLU layers of `width` and a linear head; `normalised`: a LayerNorm before each ReLU, and, as in a transformer, before the head."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for level in range(depth):
        norms = [torch.nn.LayerNorm(width)] if normalised else []
        layers += [torch.nn.Linear(width if level else dim, width), *norms]
        if not normalised or level + 1 < depth:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, outputs))


def clusters(
    seed: int,
    *,
    classes: int = 5,
    per_class: int = 40,
    separation: float = 1.0,
    width: int = 64,
    normalised: bool = False,
    outputs: int | None = None,
    target: str = "class",
) -> System:
    """A net on `classes` clusters in 20 dimensions.

    `outputs`: logits of the head (None: one a class; more: the others are classes that never occur). `target`: class (cross-entropy), number (½ the squared
    error of one output against the class's index, standardised), or features-frozen (as class, but only the head is trained).
    Facts: `classes`, `outputs`, `width` (features), `rows`."""
    dim = 20
    inputs_ND, classes_N = rows_of(seed, [per_class] * classes, dim, separation)
    heads = 1 if target == "number" else outputs or classes
    model = net(seed, dim, width, DEPTH, heads, normalised=normalised)
    facts = {"classes": classes, "outputs": heads, "width": width, "rows": len(classes_N)}
    if target == "number":
        index_N = classes_N.float()
        targets_N1 = ((index_N - index_N.mean()) / index_N.std())[:, None]
        return System(model, MeanSquare(), fixed(numbers(inputs_ND, targets_N1)), facts)
    if target == "features-frozen":
        model[:-1].requires_grad_(False)
    return System(model, CrossEntropy(), fixed(numbers(inputs_ND, classes_N)), facts)
