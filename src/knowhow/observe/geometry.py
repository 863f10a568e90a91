"""How the classes lie in the features that a classifier's head reads: angles and lengths of their means, and the spread round them.

What laws/neural_collapse.py reads: `geometry.classes` seen, `width` of the features, `least` rows of a class, `balance` (smallest class ÷ largest),
`accuracy`, `cosine_mean` and `cosine_std` over pairs of centred class means, `norm_cv` of their lengths, `nc1`, `duality`, and `decay` (by what share a
step shrinks the head). Shape letters: B batch, T tokens, N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from knowhow.model.load import head_modules
from knowhow.model.loaded import device_of, without_adapter
from knowhow.observe.looking import unnoticed
from knowhow.observe.when import When
from knowhow.types import Batch, Rate, StepInfo


class Geometry:
    """Satisfies Observer. `batches`: the rows looked at (none: the step's own); cost: one forward pass of them. Rows without a single class each (many labels,
    numbers, texts) leave nothing."""

    name = "geometry"

    def __init__(self, due: When, batches: Sequence[Batch] = ()) -> None:
        self.due = due
        self._batches = batches
        self._rows: list[dict[str, float]] = []

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        head = head_map(info.model)
        seen = [(batch, classes_N) for batch in self._batches or info.batches if (classes_N := classes_of(batch)) is not None]
        if head is None or not seen:
            return
        with unnoticed(info.model), torch.no_grad():
            read = [read_by(info.model, head, batch) for batch, _ in seen]
        features_ND = torch.cat([features for features, _ in read]).double().cpu()
        answers_N = torch.cat([logits.argmax(-1) for _, logits in read]).cpu()
        classes_N = torch.cat([classes for _, classes in seen]).cpu()
        if not bool(torch.isfinite(features_ND).all()):
            return
        found = geometry(features_ND, classes_N) | {"accuracy": float((answers_N == classes_N).double().mean())}
        if found["classes"] > 1 and head.out_features == found["classes"]:
            found["duality"] = duality(head.weight.detach().double().cpu(), features_ND, classes_N)
        name = next((name for name, parameter in info.model.named_parameters() if parameter is head.weight), "")
        found["decay"] = shrinking(info.rates[name]) if name in info.rates else 0.0
        self._rows.append({"step": info.step} | {f"geometry.{metric}": value for metric, value in found.items()})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self._rows


def shrinking(rate: Rate) -> float:
    """The share by which weight decay alone shrinks a parameter in a step: ηλ, through momentum μ of plain descent ηλ/(1−μ) (decay joins the gradient)."""
    return rate.lr * rate.decay / (1 - rate.momentum if rate.rule == "sgd" else 1.0)


def head_map(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The last linear map of a classifier: of a Hugging Face sequence classifier's head, or of any other net. None where there is none to read (a language
    model's head answers with tokens, not with classes)."""
    inner = without_adapter(model)
    if isinstance(inner, PreTrainedModel):
        if not type(inner).__name__.endswith("ForSequenceClassification"):
            return None
        parts = [part for name in head_modules(inner) for part in inner.get_submodule(name).modules()]
    else:
        parts = list(inner.modules())
    maps = [part for part in parts if isinstance(part, torch.nn.Linear)]
    return maps[-1] if maps and maps[-1].out_features > 1 else None


def classes_of(batch: Batch) -> torch.Tensor | None:
    """The class N of each row; None where rows have none or many."""
    labels = batch.labels
    if labels is None or (labels.ndim == 1 and labels.is_floating_point()):
        return None
    if labels.ndim == 1:
        return labels.long()
    single = bool((labels.double().sum(-1) - 1).abs().max() < 1e-6) and bool((labels.double().max(-1).values > 0.5).all())
    return labels.argmax(-1) if single and labels.shape[1] > 1 else None


def read_by(model: torch.nn.Module, head: torch.nn.Linear, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head reads ND and what it answers NC for a batch's rows, at a row's last token where it reads every one."""
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []

    def catch(_: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        caught.append((inputs[0], output))

    handle = head.register_forward_hook(catch)
    try:
        tokens_BT = batch.tokens_BT.to(device_of(model))
        if isinstance(without_adapter(model), PreTrainedModel):
            model(input_ids=tokens_BT, attention_mask=batch.mask_BT.long().to(tokens_BT.device))
        else:
            model(tokens_BT)
    finally:
        handle.remove()
    features, logits = caught[-1]
    if features.ndim == 2:
        return features, logits
    rows_B, last_B = torch.arange(len(features), device=features.device), (batch.mask_BT.sum(1) - 1).to(features.device)
    return features[rows_B, last_B], logits[rows_B, last_B]


def geometry(features_ND: torch.Tensor, classes_N: torch.Tensor) -> dict[str, float]:
    """Counts, and with two classes or more the geometry of the class means centred on their mean.

    `nc1` = Tr(Σ_within Σ_between⁺) / C (Papyan 2020, eq. for NC1): the spread inside classes along the directions that tell them apart, in units of the
    spread between them; computed without a D×D matrix."""
    index_N, sizes_C = _grouped(classes_N)
    found = {
        "classes": float(len(sizes_C)),
        "width": float(features_ND.shape[1]),
        "least": float(sizes_C.min()),
        "balance": float(sizes_C.min() / sizes_C.max()),
    }
    if len(sizes_C) < 2:
        return found
    means_CD = _means(features_ND, index_N, sizes_C)
    centred_CD = means_CD - means_CD.mean(0)
    norms_C = centred_CD.norm(dim=1)
    units_CD = centred_CD / norms_C[:, None]
    above = torch.triu_indices(len(sizes_C), len(sizes_C), 1)
    cosines = (units_CD @ units_CD.T)[above[0], above[1]]
    within_ND = features_ND - means_CD[index_N]
    _, sizes_K, directions_KD = torch.linalg.svd(centred_CD, full_matrices=False)
    kept_K = sizes_K > 1e-6 * sizes_K[0]
    along_K = (within_ND @ directions_KD.T).square().mean(0)
    return found | {
        "cosine_mean": float(cosines.mean()),
        "cosine_std": float(cosines.std(correction=0)),
        "norm_cv": float(norms_C.std(correction=0) / norms_C.mean()),
        "nc1": float((along_K[kept_K] / sizes_K[kept_K].square()).sum()),
    }


def duality(weight_CD: torch.Tensor, features_ND: torch.Tensor, classes_N: torch.Tensor) -> float:
    """|Ŵ − M̂| between the head's rows and the centred class means, each scaled to length 1 as a whole (Papyan 2020, NC3): 0 when they are parallel."""
    index_N, sizes_C = _grouped(classes_N)
    means_CD = _means(features_ND, index_N, sizes_C)
    centred_CD = means_CD - means_CD.mean(0)
    return float((weight_CD / weight_CD.norm() - centred_CD / centred_CD.norm()).norm())


def _grouped(classes_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, index_N, sizes_C = classes_N.unique(return_inverse=True, return_counts=True)
    return index_N, sizes_C


def _means(features_ND: torch.Tensor, index_N: torch.Tensor, sizes_C: torch.Tensor) -> torch.Tensor:
    sums_CD = torch.zeros(len(sizes_C), features_ND.shape[1], dtype=features_ND.dtype)
    return sums_CD.index_add(0, index_N, features_ND) / sizes_C[:, None].to(features_ND.dtype)
