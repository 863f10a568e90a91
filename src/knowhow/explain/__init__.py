"""Look inside any model, exactly, and check every claim by intervention. What a notebook needs has short names here:

    from knowhow.explain import ablate, attribute, diff, find_circuit, lens, patch, steer, sweep, tap

    with tap(model, "layers.*.resid_post") as seen:
        model(**inputs)
    patch(model, base, source, "layers.2.attn.z", at=At(heads=[1]))
    lens(model, inputs)[:, 0, -1]                          # logits of each layer, at the last token of the first row
    attribute(model, inputs, metric)                       # which tokens the metric rests on
    find_circuit(model, base, source, metric).circuit

The files are by subject: patching and sweep (swap values), attribution and edge_attribution (gradients), edges and circuits/ (exact edges), lens, probes,
heads and spectra, places (parts by what answers lose), evidence (lines of a text), writing (written answers), diff/ (two models), features/ (dictionaries),
influence/ (training rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from knowhow.errors import UsageError
from knowhow.explain.attribution import gradient_x_input, integrated_gradients
from knowhow.explain.circuits.find import find_circuit
from knowhow.explain.diff.compare import diff
from knowhow.explain.lens import logit_lens
from knowhow.explain.patching import ablate, patch, steer
from knowhow.explain.sweep import Metric, sweep
from knowhow.model.replay import record
from knowhow.model.taps import At, Edit, tap

__all__ = ["At", "Edit", "ablate", "attribute", "diff", "find_circuit", "lens", "patch", "record", "steer", "sweep", "tap"]

By = Literal["integrated gradients", "gradient x input"]


def lens(model: torch.nn.Module, inputs: Mapping[str, Any], *, position: int | None = None) -> torch.Tensor:
    """Logits LBTV that the model would give if each layer were its last (`position`: there alone, LBV; a classifier's LBC). See explain/lens.py."""
    return logit_lens(record(model, inputs), position=position)


def attribute(model: torch.nn.Module, inputs: Mapping[str, Any], metric: Metric, *, by: By = "integrated gradients", answer: int | None = -1) -> torch.Tensor:
    """How much each token speaks for the metric (logits at `answer` → one number per row), BT. Integrated gradients sum to the metric less that of the
    row's mean embedding, which is checked. Raises UsageError for another method and where explain/attribution.py does."""
    if by == "gradient x input":
        return gradient_x_input(model, inputs, metric, answer=answer)
    if by != "integrated gradients":
        raise UsageError(f"attribution by {by}", allowed="integrated gradients, gradient x input")
    return integrated_gradients(model, inputs, metric, answer=answer).scores
