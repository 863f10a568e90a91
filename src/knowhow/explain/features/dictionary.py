"""Sparse dictionaries: a site's vectors as sums of few directions out of many, learned without labels.

A sparse autoencoder writes the site that it reads (Bricken et al. 2023, "Towards Monosemanticity"); a transcoder reads one site and writes another,
such as an MLP's input and output (Dunefsky et al. 2024, arXiv 2406.11944). Inputs and targets are centred on their geometric median and divided so that
their mean square is 1 per coordinate; f = σ(W x + b) are the features, Σ f_i d_i + b' the reconstruction, every direction d_i of unit length.
Shape letters: N vectors, D inputs, E outputs, F features, M active features of all vectors together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from knowhow.errors import UsageError
from knowhow.files import digest, read_json, write_atomic, write_json

Tensor = torch.Tensor
Activation = Literal["topk", "batchtopk", "relu"]
ACTIVATIONS = get_args(Activation)
AUX_EVERY = 4
"""AuxK costs as much as all the rest if every vector is asked; a dead feature needs a direction, not a precise one."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a dictionary is: `reads` and `writes` (sites; the same for an autoencoder) with their widths, how many features there are and how they are chosen.

    topk: the `k` largest of each vector (Gao et al. 2024, arXiv 2406.04093). batchtopk: the N·k largest of N vectors together while training, those above a
    threshold fitted then afterwards (Bussmann et al. 2024, arXiv 2412.06410). relu: all above 0, `sparsity` times their sum being added to the loss
    (Bricken et al. 2023). `skip`: so many first positions of a text are neither learned nor replaced."""

    reads: str
    writes: str
    inputs: int
    outputs: int
    features: int
    activation: Activation = "batchtopk"
    k: int = 32
    sparsity: float = 0.0
    skip: int = 0

    @property
    def name(self) -> str:
        return self.reads if self.reads == self.writes else f"{self.reads}-to-{self.writes}"


@dataclass(frozen=True, slots=True)
class Code:
    """M active features of N vectors, vector after vector: which, how strong, and where each vector's begin (N)."""

    vector_M: Tensor
    feature_M: Tensor
    value_M: Tensor
    starts_N: Tensor
    features: int

    def dense(self) -> Tensor:
        """NF."""
        empty_NF = self.value_M.new_zeros(len(self.starts_N), self.features)
        return empty_NF.index_put((self.vector_M, self.feature_M), self.value_M)


class Dictionary(torch.nn.Module):
    """A form with its weights. `idle_F`: training vectors since each feature was last active. In training mode BatchTopK chooses by batch."""

    def __init__(self, form: Form, *, seed: int = 0) -> None:
        """Random directions; an autoencoder's encoder is the decoder's transpose. Raises UsageError for a form that cannot be."""
        super().__init__()
        _check_form(form)
        # numbers of its own: a plain seed is also what a classifier's head is drawn from, and the first features would begin as its labels' directions
        self.form, random = form, torch.Generator().manual_seed(int(digest(["dictionary", form.name, seed])[:12], 16))
        directions_FE = F.normalize(torch.randn(form.features, form.outputs, generator=random), dim=1)
        detectors_FD = directions_FE.clone()
        if form.reads != form.writes:
            detectors_FD = F.normalize(torch.randn(form.features, form.inputs, generator=random), dim=1)
        self.encoder_FD, self.bias_F = torch.nn.Parameter(detectors_FD), torch.nn.Parameter(torch.zeros(form.features))
        self.decoder_FE, self.bias_E = torch.nn.Parameter(directions_FE), torch.nn.Parameter(torch.zeros(form.outputs))
        self.register_buffer("centre_D", torch.zeros(form.inputs))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("target_centre_E", torch.zeros(form.outputs))
        self.register_buffer("target_scale", torch.tensor(1.0))
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("idle_F", torch.zeros(form.features, dtype=torch.long))

    @torch.no_grad()
    def fit_scale(self, inputs_ND: Tensor, targets_NE: Tensor) -> None:
        """Set centres and scales from a sample. Raises UsageError for one that is empty, not finite or all the same."""
        for values, centre, scale in ((inputs_ND, self.centre_D, self.scale), (targets_NE, self.target_centre_E, self.target_scale)):
            if not len(values) or not bool(torch.isfinite(values).all()):
                raise UsageError(f"{len(values)} vectors for {self.form.name}, finite or not", allowed="at least one vector of finite numbers")
            centre.copy_(geometric_median(values.float()))
            size = (values.float() - centre).square().mean().sqrt()
            if not size > 1e-6 * values.abs().max():
                raise UsageError(f"the same value in all {len(values)} vectors of {self.form.name}", fix="take a site that varies, or more rows")
            scale.copy_(size)

    @torch.no_grad()
    def fit_threshold(self, inputs_ND: Tensor) -> None:
        """BatchTopK: what the N·k largest of these N vectors are above, so that later ones have k on average whatever batch they come in. Bussmann et al.
        take the mean of the smallest value kept in the batches of training, which lags behind while features grow."""
        if self.form.activation == "batchtopk":
            self.threshold.fill_(_batch_floor(self.pre(inputs_ND), self.form.k))

    def pre(self, inputs_ND: Tensor) -> Tensor:
        """NF, before the activation."""
        return F.linear((inputs_ND.float() - self.centre_D) / self.scale, self.encoder_FD, self.bias_F)

    def code(self, pre_NF: Tensor) -> Code:
        form = self.form
        if form.activation == "topk":
            kept = pre_NF.topk(form.k, dim=1, sorted=False)
            positive_Nk = kept.values > 0
            where, feature_M, value_M = positive_Nk.nonzero(as_tuple=True)[0], kept.indices[positive_Nk], kept.values[positive_Nk]
            return Code(where, feature_M, value_M, _starts(where, len(pre_NF)), form.features)
        floor = _batch_floor(pre_NF.detach(), form.k) if form.activation == "batchtopk" and self.training else float(self.threshold)
        where, feature_M = (pre_NF.detach() > floor).nonzero(as_tuple=True)
        return Code(where, feature_M, pre_NF[where, feature_M], _starts(where, len(pre_NF)), form.features)

    def encode(self, inputs_ND: Tensor) -> Tensor:
        """Features NF, none below 0; a feature's 1 adds `direction` to what is written."""
        return self.code(self.pre(inputs_ND)).dense()

    def decode(self, features_NF: Tensor) -> Tensor:
        """NE in the site's units."""
        return self._unscaled(features_NF @ self.directions + self.bias_E)

    def forward(self, inputs_ND: Tensor) -> Tensor:
        """The reconstruction NE in the site's units."""
        return self._unscaled(self.decoded(self.code(self.pre(inputs_ND))))

    def decoded(self, code: Code) -> Tensor:
        """NE, centred and scaled."""
        if 8 * len(code.value_M) > len(code.starts_N) * code.features:
            return code.dense() @ self.directions + self.bias_E
        return F.embedding_bag(code.feature_M, self.directions, code.starts_N, per_sample_weights=code.value_M, mode="sum") + self.bias_E

    @property
    def directions(self) -> Tensor:
        """FE of unit length whatever the optimizer did, so that no gradient can lengthen one."""
        return F.normalize(self.decoder_FE, dim=1)

    def direction(self, feature: int) -> Tensor:
        """E, in the site's units."""
        return self.directions[feature].detach() * self.target_scale

    @torch.no_grad()
    def renormalise(self) -> None:
        """Store the decoder at unit length; what it computes stays the same."""
        self.decoder_FE.copy_(self.directions)

    @torch.no_grad()
    def note(self, code: Code) -> None:
        """Count who was idle."""
        self.idle_F += len(code.starts_N)
        self.idle_F[code.feature_M] = 0

    def _unscaled(self, values_NE: Tensor) -> Tensor:
        return values_NE * self.target_scale + self.target_centre_E


def loss(dictionary: Dictionary, inputs_ND: Tensor, targets_NE: Tensor, *, revive: float = 1 / 32, dead_after: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error (scaled, summed over coordinates and vectors), sparsity, and `revive` times AuxK; metrics are sums over the vectors.

    AuxK (Gao et al. 2024, A.2): features idle for `dead_after` vectors (0: never dead) shall reconstruct what the others leave over, the E/2 largest of each
    vector; ours go below 0, so that a feature that is negative everywhere gets a gradient too, and see each `AUX_EVERY`-th vector. Counts idleness."""
    pre_NF = dictionary.pre(inputs_ND)
    code = dictionary.code(pre_NF)
    error_NE = (targets_NE.float() - dictionary.target_centre_E) / dictionary.target_scale - dictionary.decoded(code)
    squared = error_NE.square().sum()
    total = squared + dictionary.form.sparsity * code.value_M.sum() if dictionary.form.activation == "relu" else squared
    dictionary.note(code)
    dead_F = dictionary.idle_F >= dead_after if dead_after else torch.zeros_like(dictionary.idle_F, dtype=torch.bool)
    if revive and bool(dead_F.any()):
        total = total + revive * AUX_EVERY * _left_over(dictionary, pre_NF[::AUX_EVERY], error_NE[::AUX_EVERY].detach(), dead_F)
    count = float(len(inputs_ND))
    active = torch.tensor(float(len(code.value_M)))
    return total, {"unexplained": squared.detach() / dictionary.form.outputs, "active": active, "dead": dead_F.float().mean() * count}


def _left_over(dictionary: Dictionary, pre_NF: Tensor, error_NE: Tensor, dead_F: Tensor) -> Tensor:
    """Squared error of the dead features' reconstruction of the error."""
    dead = dead_F.nonzero()[:, 0]
    kept = pre_NF[:, dead].topk(min(max(1, dictionary.form.outputs // 2), len(dead)), dim=1, sorted=False)
    rest_NE = F.embedding_bag(kept.indices, dictionary.directions[dead], per_sample_weights=kept.values, mode="sum")
    return (error_NE - rest_NE).square().sum()


def geometric_median(values_ND: Tensor, *, steps: int = 50) -> Tensor:
    """D: the point with the least sum of distances (Weiszfeld 1937); unlike the mean it is not moved by few huge vectors."""
    at_D = values_ND.mean(0)
    for _ in range(steps):
        weight_N = 1 / (values_ND - at_D).norm(dim=1).clamp_min(1e-8)
        new_D = (weight_N[:, None] * values_ND).sum(0) / weight_N.sum()
        if bool((new_D - at_D).norm() <= 1e-6 * new_D.norm()):
            return new_D
        at_D = new_D
    return at_D


def strongest(values_ND: Tensor, k: int, centre_D: Tensor | None = None) -> Tensor:
    """ND with the k coordinates of each vector that lie farthest from the centre (0 unless given), the others at the centre."""
    away_ND = values_ND if centre_D is None else values_ND - centre_D
    index_Nk = away_ND.abs().topk(min(k, away_ND.shape[1]), dim=1, sorted=False).indices
    kept_ND = torch.zeros_like(away_ND).scatter(1, index_Nk, away_ND.gather(1, index_Nk))
    return kept_ND if centre_D is None else kept_ND + centre_D


def save(dictionary: Dictionary, folder: Path) -> None:
    """`folder`/NAME.safetensors and NAME.json."""
    name = dictionary.form.name
    write_atomic(folder / f"{name}.safetensors", save_bytes({key: value.detach().cpu().contiguous() for key, value in dictionary.state_dict().items()}))
    write_json(folder / f"{name}.json", asdict(dictionary.form))


def load(path: Path) -> Dictionary:
    """The dictionary of NAME.json and the weights beside it, in eval mode. Raises UsageError for a form, shapes or numbers that cannot be."""
    if not path.is_file():
        raise UsageError("no such dictionary", where=str(path), allowed="the NAME.json that learning left")
    dictionary = Dictionary(_form(read_json(path), path))
    weights, wanted = path.with_suffix(".safetensors"), dictionary.state_dict()
    try:
        found = load_bytes(weights.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"weights that cannot be read: {error}", where=str(weights), fix="learn it anew") from error
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in wanted.items()}
    odd = sorted({name for name in wanted.keys() | found.keys() if name not in found or (tuple(found[name].shape), found[name].dtype) != shapes.get(name)})
    if odd or not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise UsageError(f"weights that do not fit: {', '.join(odd) or 'numbers that are not finite'}", where=str(weights), fix="learn it anew")
    dictionary.load_state_dict(found)
    return dictionary.eval()


def _form(raw: Any, path: Path) -> Form:
    kinds = {"reads": str, "writes": str, "inputs": int, "outputs": int, "features": int, "activation": str, "k": int, "sparsity": float, "skip": int}
    if not isinstance(raw, dict) or raw.keys() != kinds.keys() or any(type(raw[name]) is not kind for name, kind in kinds.items()):
        raise UsageError(
            "a form with other keys or kinds of value", where=str(path), allowed=", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        )
    form = Form(
        raw["reads"], raw["writes"], raw["inputs"], raw["outputs"], raw["features"], raw["activation"], raw["k"], raw["sparsity"], raw["skip"]
    )  # fmt: skip
    _check_form(form)
    return form


def _check_form(form: Form) -> None:
    if form.activation not in ACTIVATIONS:
        raise UsageError(f"activation {form.activation!r}", allowed=", ".join(ACTIVATIONS))
    if min(form.inputs, form.outputs, form.features) < 1 or not 1 <= form.k <= form.features:
        got = f"{form.features} features, k {form.k}, of {form.inputs} inputs and {form.outputs} outputs"
        raise UsageError(got, allowed="at least 1 of each, and k at most the number of features")
    if form.sparsity < 0 or form.skip < 0:
        raise UsageError(f"sparsity {form.sparsity}, skip {form.skip}", allowed="numbers from 0 on")
    if form.reads == form.writes and form.inputs != form.outputs:
        raise UsageError(f"{form.inputs} inputs and {form.outputs} outputs at {form.reads}", allowed="the same number at one site")


def _batch_floor(pre_NF: Tensor, k: int) -> float:
    """What the N·k largest are above (0 where fewer are above 0)."""
    wanted = len(pre_NF) * k
    if pre_NF.numel() <= wanted:
        return 0.0
    if pre_NF.device.type == "cpu":  # numpy selects ten times as fast as torch sorts
        flat = pre_NF.numpy().ravel()
        return max(0.0, float(np.partition(flat, flat.size - wanted - 1)[flat.size - wanted - 1]))
    return max(0.0, float(pre_NF.flatten().topk(wanted + 1).values[-1]))


def _starts(where_M: Tensor, count: int) -> Tensor:
    return torch.searchsorted(where_M.contiguous(), torch.arange(count, device=where_M.device))
