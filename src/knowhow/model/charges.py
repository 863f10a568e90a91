"""The conserved charges of a model, derived from its architecture: which factors the loss sees only together.

Each comes from a one-parameter group that leaves every logit alone (maths/noether.py: from the group to the charge and its law under a step):

* **vo** z = Σ_s p_s (W_V x_s + b_V) is multiplied by W_O. W_V → S W_V, b_V → S b_V, W_O,h → W_O,h S⁻¹ for all query heads h that share the values:
  S any K × K matrix. Charge per group: W_V W_Vᵀ + b_V b_Vᵀ − Σ_h W_O,hᵀ W_O,h.
* **qk** A score is (W_Q x)ᵀ R_{s−t} (W_K y). Without rotation W_Q,h → S W_Q,h, W_K → S⁻ᵀ W_K: Σ_h W_Q,h W_Q,hᵀ − W_K W_Kᵀ, biases as columns. With
  rotation only an S that commutes with every R is allowed: a complex number re^{iφ} per rotary pair (i, i + half). Its r gives Σ_h |Q_h,p|² − |K_p|² per
  pair; its φ is a rotation and has no charge. Dimensions that are not rotated keep their full matrix.
* **up_down** down(act(gate x) ⊙ (up x + b)): up_i, b_i → e^s, down's column i → e^{−s}: |up_i|² + b_i² − |down_i|² per neuron. Without a gate act must be
  homogeneous of degree one (ReLU): GELU and SiLU have none. **gate_down** the same for the gate of a homogeneous one (ReGLU).
* **norm_gain** W_r (γ ⊙ x̂ + β): γ_j, β_j → e^s, column j of every reader → e^{−s}: γ_j² + β_j² − Σ_r |W_r[:, j]|² per channel. Where the norm multiplies by
  1 + γ the group acts on 1 + γ, which then stands for γ; decay pulls γ, not 1 + γ, to 0 and breaks it.
* **qk_gain, scale** Norms of queries and keys hide the sizes of W_Q and W_K from the scores, so the pair charge is gone. Their gains meet in the score: per
  pair (γ^q)² − (γ^k)². And W_Q → c W_Q per head that is normed alone is invisible: the charge is |W_Q,h|² itself, up to the norm's ε (relative ε/σ², σ²
  the mean square that is normed).
* **lora** s B A x: A → S A, B → B S⁻¹: A Aᵀ − Bᵀ B, for every adapted matrix, whatever the base.

What else reads a factor breaks its symmetry, so tied and frozen factors are left out and named. Norms behind attention and MLP (gemma2, olmo2) make W_O
and W_down scale-free as well, but the little that blocks write is not large beside those norms' ε: not derived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from knowhow.errors import UsageError
from knowhow.maths.noether import Labels, Pair
from knowhow.model.projections import Names, Piece, Reason, names
from knowhow.model.sites import body
from knowhow.model.symmetries import Candidate, Walk, adapters
from knowhow.types import Rate

KINDS = ("vo", "qk", "up_down", "gate_down", "norm_gain", "qk_gain", "scale", "lora")
Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Charge:
    """A − B of one place: `left` and `right` are pieces laid side by side to factors RN and RP (no `right`: the size of A alone); `labels` the set of each
    row, None for the whole matrix. `layer` −1: the final norm."""

    kind: str
    site: str
    layer: int
    left: tuple[Piece, ...]
    right: tuple[Piece, ...]
    labels: Labels

    @property
    def parameters(self) -> list[str]:
        return list(dict.fromkeys(piece.parameter for piece in (*self.left, *self.right)))

    def pair(self, values: Values) -> Pair:
        """The factors in float64, of weights or of whatever has their shapes."""
        return _factor(self.left, values), _factor(self.right, values) if self.right else None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A charge that is not there, and why: `word` is tied, frozen, adapter, activation, norm, clipped or unknown."""

    kind: str
    site: str
    word: str
    because: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """`wrong`: charges that look as good and are none (controls): qk_full, gate_down; `offsets`: what a gain is counted from."""

    charges: tuple[Charge, ...]
    excluded: tuple[Excluded, ...]
    wrong: tuple[Charge, ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        return list(dict.fromkeys(name for charge in (*self.charges, *self.wrong) for name in charge.parameters))

    def counts(self) -> dict[str, int]:
        return dict(Counter(charge.kind for charge in self.charges))

    def weights(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Copies of the weights that the charges are made of, gains as they multiply."""
        held = dict(model.named_parameters())
        return {name: held[name].detach() + self.offsets.get(name, 0.0) for name in self.parameters}


def ledger(model: torch.nn.Module) -> Ledger:
    """The charges of a transformers model, PEFT-wrapped or not. A family without an anatomy has its adapters' charges and one exclusion."""
    known, offsets = names(model), dict[str, float]()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        found = list(Walk(body(model), known, offsets).candidates())
    except UsageError as error:
        found = [Candidate("block", "model", -1, [Reason("unknown", str(error))])]
    found += adapters(model, known)
    settled = [(one.wrong, _settled(one, known, trainable)) for one in found]
    charges, wrong = (tuple(one for mark, one in settled if mark == want and isinstance(one, Charge)) for want in (False, True))
    return Ledger(charges, tuple(one for mark, one in settled if not mark and isinstance(one, Excluded)), wrong, offsets)


def cause(charge: Charge, rates: Mapping[str, Rate], offsets: Mapping[str, float]) -> str:
    """Why the law of plain descent does not hold for a charge under these rates: frozen (a factor that the optimizer does not move), muon, adam, momentum,
    or what `apart` says; "" where it holds."""
    if any(name not in rates for name in charge.parameters):
        return "frozen"
    own = [rates[name] for name in charge.parameters]
    for rule, word in (("muon", "muon"), ("adamw", "adam")):
        if any(rate.rule == rule for rate in own):
            return word
    return "momentum" if any(rate.momentum for rate in own) else apart(charge, rates, offsets)


def apart(charge: Charge, rates: Mapping[str, Rate], offsets: Mapping[str, float]) -> str:
    """How the factors are moved differently: rates (learning rates or momenta), decay (decays, or a gain counted from 1 that decays); "" where they are
    not."""
    own = [rates[name] for name in charge.parameters]
    if len({(rate.lr, rate.momentum) for rate in own}) > 1:
        return "rates"
    counted = any(rates[name].decay and offsets.get(name) for name in charge.parameters)
    return "decay" if counted or len({rate.decay for rate in own}) > 1 else ""


def _settled(one: Candidate, known: Names, trainable: set[str]) -> Charge | Excluded:
    pieces = [*one.left, *one.right]
    reason = next((piece for piece in pieces if isinstance(piece, Reason)), None)
    used = [piece.parameter for piece in pieces if isinstance(piece, Piece)]
    if reason is None and (tied := sorted(known.shared.intersection(used))):
        reason = Reason("tied", f"{tied[0]} is tied: the loss sees it elsewhere too")
    if reason is None and (frozen := [name for name in used if name not in trainable]):
        reason = Reason("frozen", f"{frozen[0]} is frozen")
    if reason is not None:
        return Excluded(one.kind, one.site, reason.word, reason.text)
    left, right = (tuple(piece for piece in side if isinstance(piece, Piece)) for side in (one.left, one.right))
    return Charge(one.kind, one.site, one.layer, left, right, one.labels)


def _factor(pieces: Sequence[Piece], values: Values) -> torch.Tensor:
    return torch.cat([piece.matrix(values).double() for piece in pieces], 1)
