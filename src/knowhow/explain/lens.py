"""What the stream already says between blocks, and which part of the model said it.

Logit lens (nostalgebraist 2020): a stream read by the model's own final norm and head, whatever the family, since the model itself does the reading.
Tuned lens (Belrose et al. 2023, arXiv 2303.08112): the same after an affine map per layer that was fitted to predict the final answer.
Direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"): one logit as a sum over the parts of the stream.
Shape letters: L layers, B rows, T positions, R vectors, D model, V vocabulary (a classifier's logits are BC), H heads, K head size, P parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from knowhow.errors import UsageError
from knowhow.explain.inputs import rows_of
from knowhow.model.loaded import device_of
from knowhow.model.replay import Recording, record
from knowhow.model.sites import body
from knowhow.model.taps import tap
from knowhow.protocols import Progress

Tensor = torch.Tensor
STREAMS = ("resid_pre", "resid_mid", "resid_post")


@torch.no_grad()
def logit_lens(recorded: Recording, *, kind: str = "resid_post", position: int | None = None) -> Tensor:
    """Logits LBTV that the model would give if each layer's stream were its last (nostalgebraist 2020); at `position` alone LBV; a classifier's LBC.

    At the last layer's resid_post these are the model's own. Raises UsageError for a kind that is no stream, resid_mid where attention and MLP run
    side by side, and a position out of range."""
    return torch.stack([recorded.logits(stream_BTD, position=position) for stream_BTD in _streams(recorded, kind)])


def divergence(logits: Tensor, final: Tensor) -> Tensor:
    """KL(final || lens) in nats over the last axis; `final` broadcasts to `logits` (the loss of Belrose et al. 2023)."""
    known = torch.log_softmax(final.float(), -1)
    return (known.exp() * (known - torch.log_softmax(logits.float(), -1))).sum(-1)


@dataclass(frozen=True, slots=True)
class TunedLens:
    """A map h → A h + b per layer's resid_post: `weight_LDD` is A. `before_L`, `after_L`: mean KL(final || lens) in nats on held-out rows, of the
    logit lens and of this one. The last layer's map is the identity: its stream is read by the model itself."""

    weight_LDD: Tensor
    bias_LD: Tensor
    before_L: Tensor
    after_L: Tensor

    def translated(self, layer: int, stream_BTD: Tensor) -> Tensor:
        return _affine(stream_BTD, self.weight_LDD[layer], self.bias_LD[layer])

    @torch.no_grad()
    def apply(self, recorded: Recording, *, position: int | None = None) -> Tensor:
        """Logits LBTV (at `position` LBV, a classifier's LBC) of every layer's resid_post. Raises UsageError for a recording of another depth or width."""
        width, depth = recorded.stream[0].shape[-1], recorded.parts.depth
        if self.bias_LD.shape != (depth, width):
            raise UsageError(f"a tuned lens of {tuple(self.bias_LD.shape)} layers and dimensions", allowed=f"those of the model, {(depth, width)}")
        return torch.stack([recorded.logits(self.translated(layer, recorded.stream[layer + 1]), position=position) for layer in range(depth)])


def tune(
    model: torch.nn.Module, train: Mapping[str, Any], held_out: Mapping[str, Any], *,
    steps: int = 250, batch: int = 8, rate: float = 1e-3, seed: int = 0, progress: Progress | None = None,
) -> TunedLens:  # fmt: skip
    """Fits one affine map per layer to KL(final || lens), mean over real tokens (Belrose et al. 2023), starting from the identity.

    `train`, `held_out`: the model's keyword arguments, N rows of T tokens (attention_mask says which are real); the two must not share rows.
    Adam whose rate falls linearly to 0, gradients of each map clipped to norm 1 (the paper: SGD with momentum, the same schedule and clip), rows drawn
    anew each pass; the same arguments give the same map. The model's weights are untouched. Raises UsageError for no rows, steps or batch."""
    counts = {"steps": steps, "batch": batch, "train rows": len(train["input_ids"]), "held_out rows": len(held_out["input_ids"])}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} {count}", allowed="at least 1")
    parts, device = body(model), device_of(model)
    depth, D = parts.depth, parts.root.config.get_text_config().hidden_size
    weights = [torch.eye(D, device=device, requires_grad=True) for _ in range(depth - 1)]
    biases = [torch.zeros(D, device=device, requires_grad=True) for _ in range(depth - 1)]
    optimizer = torch.optim.Adam([*weights, *biases], lr=rate)
    order = _order(counts["train rows"], batch, seed)
    for step in range(steps):
        if progress is not None:
            progress("tuned lens", step, steps)
        with torch.no_grad():
            recorded = record(model, rows_of(train, next(order)))
        for layer, pair in enumerate(zip(weights, biases, strict=True)):
            with torch.enable_grad():
                lost = _mean_divergence(recorded, recorded.logits(_affine(recorded.stream[layer + 1], *pair)))
            for parameter, slope in zip(pair, torch.autograd.grad(lost, pair), strict=True):
                parameter.grad = slope
            torch.nn.utils.clip_grad_norm_(pair, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.step()
    weight_LDD = torch.stack([*(weight.detach() for weight in weights), torch.eye(D, device=device)])
    bias_LD = torch.stack([*(bias.detach() for bias in biases), torch.zeros(D, device=device)])
    return TunedLens(weight_LDD, bias_LD, *_held_out(model, held_out, weight_LDD, bias_LD, batch))


@torch.no_grad()
def _held_out(model: torch.nn.Module, rows: Mapping[str, Any], weight_LDD: Tensor, bias_LD: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Mean KL per layer before and after, over all real tokens of all rows."""
    sums, units = torch.zeros(2, len(weight_LDD)), 0.0
    for index in torch.arange(len(rows["input_ids"])).split(batch):
        recorded = record(model, rows_of(rows, index))
        count = float(_units(recorded).sum())
        for layer, stream_BTD in enumerate(recorded.stream[1:]):
            for which, hidden in enumerate((stream_BTD, _affine(stream_BTD, weight_LDD[layer], bias_LD[layer]))):
                sums[which, layer] += count * float(_mean_divergence(recorded, recorded.logits(hidden)))
        units += count
    return sums[0] / units, sums[1] / units


def _mean_divergence(recorded: Recording, logits: Tensor) -> Tensor:
    units = _units(recorded)
    return (divergence(logits, recorded.logits_all) * units).sum() / units.sum()


def _units(recorded: Recording) -> Tensor:
    """Which answers count: BT of real tokens, or all rows B of a classifier."""
    mask_BT = recorded.inputs.get("attention_mask")
    shape = recorded.logits_all.shape[:-1]
    return torch.ones(shape, device=recorded.logits_all.device) if mask_BT is None or len(shape) == 1 else mask_BT.float()


def _affine(hidden: Tensor, weight_DD: Tensor, bias_D: Tensor) -> Tensor:
    return F.linear(hidden.float(), weight_DD, bias_D).to(hidden.dtype)


def _order(rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=random).split(batch)


@dataclass(frozen=True, slots=True)
class LogitAttribution:
    """`values_PB`: what each part adds to the score, summing over parts to `score_B`. Parts: `embed` (all that enters block 0), `a0.h1` a head,
    `a0.bias` what attention adds whatever it sees, `m0` an MLP, `bias` what norm and head add to an empty stream."""

    names: tuple[str, ...]
    values_PB: Tensor
    score_B: Tensor


def direct_logit_attribution(recorded: Recording, direction: Tensor, *, position: int = -1, by_head: bool = True) -> LogitAttribution:
    """Direct logit attribution (Elhage et al. 2021) of the score `direction` · logits at `position`, all that acts by a factor frozen at its value.

    `direction`: V or BV (a classifier's: C or BC, whose own pooling then says which positions count), such as +1 at one token and −1 at another.
    Frozen: the root mean square of an RMSNorm, the standard deviation of a LayerNorm (its mean is taken out of each part, its gain applied), the ratio
    of a capped logit to the uncapped one. What is left is affine, so the parts sum to the score exactly but for rounding. `by_head` False: `a0` for all
    heads together. Raises UsageError for families that norm the sum after each addition, heads that are not affine, a wrong shape or position."""
    parts = recorded.parts
    _check(recorded, position)
    if not parts.anatomy.final:
        family = parts.root.config.model_type
        fix = "patch instead (explain/sweep.py)"
        raise UsageError(f"attribution in a {family}, which norms the sum after each addition", allowed="families whose stream is a sum", fix=fix)
    if direction.shape[-1] != recorded.logits_all.shape[-1] or direction.ndim not in (1, 2):
        allowed = f"one number for each of {recorded.logits_all.shape[-1]} logits, or a row of them for each input"
        raise UsageError(f"a direction of shape {tuple(direction.shape)}", allowed=allowed)
    covector_BTD, bias_B, score_B = _read(recorded, direction.to(recorded.logits_all.device), position)
    _check_affine(recorded, covector_BTD, bias_B, score_B)
    with torch.no_grad(), tap(recorded.model, "layers.*.attn.z", "layers.*.attn.out", "layers.*.mlp.out") as seen:
        recorded.model(**recorded.inputs)
    found = {"embed": _dot(recorded.stream[0], covector_BTD)}
    for layer in range(parts.depth):
        name = f"layers.{layer}"
        if by_head:
            heads_BH, constant_B = _heads(recorded, layer, seen[f"{name}.attn.z"], covector_BTD)
            found |= {f"a{layer}.h{head}": value_B for head, value_B in enumerate(heads_BH.unbind(1))} | {f"a{layer}.bias": constant_B}
        else:
            found[f"a{layer}"] = _dot(seen[f"{name}.attn.out"], covector_BTD)
        found[f"m{layer}"] = _dot(seen[f"{name}.mlp.out"], covector_BTD)
    found["bias"] = bias_B
    return LogitAttribution(tuple(found), torch.stack(list(found.values())), score_B)


def pulled_back(norm: torch.nn.Module, at_RD: Tensor, covector_RD: Tensor) -> Tensor:
    """A covector at the output of a norm, brought to its input with the norm's scale frozen at what it is for `at`.

    For y = G C x / s(x) + β (G gain, C nothing or centring) that is Cᵀ G u / s. The gradient alone lacks what s takes back along x, so that is added;
    what is used of the norm is its values and slopes, so its weights' names and its ε need not be known."""
    with torch.enable_grad():
        inner = at_RD.detach().requires_grad_()
        outer = norm(inner)
        (slope,) = torch.autograd.grad(outer, inner, covector_RD.to(outer.dtype))
    with torch.no_grad():
        constant = norm(torch.zeros_like(at_RD))
        along = (at_RD - at_RD.mean(-1, keepdim=True) if _centres(norm, at_RD) else at_RD).float()
        lacking = (covector_RD.float() * (outer - constant).float()).sum(-1) - (slope.float() * at_RD.float()).sum(-1)
        return slope.float() + (lacking / along.square().sum(-1).clamp_min(1e-30))[..., None] * along


def _centres(norm: torch.nn.Module, like: Tensor) -> bool:
    """Whether a norm takes the mean out: it gives the same for a vector with its mean moved."""
    signs = torch.ones_like(like[..., :1, :].reshape(-1, like.shape[-1])[:1])
    signs[:, ::2] = -1
    one, moved = norm(signs), norm(signs + 1)
    return bool((one - moved).abs().max() <= 0.05 * (one - norm(torch.zeros_like(signs))).abs().max())


def _read(recorded: Recording, direction: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """(covector BTD at the last stream, constant B, score B)."""
    last, final = recorded.stream[-1].detach(), recorded.parts.root.get_submodule(recorded.parts.path(recorded.parts.anatomy.final))
    with torch.enable_grad():
        normed, plain_BV, logits_BV = _passed(recorded, final, last.clone().requires_grad_(), position)
        factor_BV = torch.where(plain_BV != 0, logits_BV / plain_BV, 1.0).detach().float() * direction
        (outer_BTD,) = torch.autograd.grad((factor_BV * plain_BV.float()).sum(), normed)
    with torch.no_grad():
        _, empty_BV, _ = _passed(recorded, final, torch.zeros_like(last), position)
    score_B = (direction * logits_BV.detach().float()).sum(-1)
    return pulled_back(final, last, outer_BTD), (factor_BV * empty_BV.float()).sum(-1), score_B


def _passed(recorded: Recording, final: torch.nn.Module, stream_BTD: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """(output of the final norm, logits before any cap, logits) of a last stream."""
    head = recorded.parts.root.get_output_embeddings()
    with _caught(final) as normed, _caught(head) as plain:
        logits = recorded.logits(stream_BTD)
    at = logits if logits.ndim == 2 else logits[:, position]
    return normed[0], plain[0][:, position] if plain else at, at


@contextmanager
def _caught(module: torch.nn.Module | None) -> Iterator[list[Tensor]]:
    """Outputs of a module while inside."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output)) if module is not None else None
    try:
        yield outputs
    finally:
        if handle is not None:
            handle.remove()


def _heads(recorded: Recording, layer: int, z_BTHK: Tensor, covector_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """(each head's part BH, that of what no head gives B). Behind z all is affine once a norm's scale is frozen, so a head's part is z · slope."""
    anatomy, block = recorded.parts.anatomy, recorded.parts.block(layer)
    mix = block.get_submodule(anatomy.head_out)
    normed = anatomy.attn_out.path != anatomy.head_out
    with torch.enable_grad():
        flat = z_BTHK.flatten(2).detach().requires_grad_()
        out_BTD = mix(flat)
        norm = block.get_submodule(anatomy.attn_out.path) if normed else None
        outer_BTD = covector_BTD if norm is None else pulled_back(norm, out_BTD.detach(), covector_BTD)
        (slope,) = torch.autograd.grad(out_BTD, flat, outer_BTD.to(out_BTD.dtype))
    with torch.no_grad():
        constant_B = _dot(mix(torch.zeros_like(flat)), outer_BTD)
        if norm is not None:
            constant_B = constant_B + _dot(norm(torch.zeros_like(out_BTD)), covector_BTD)
    return (slope.float() * flat.detach().float()).view(z_BTHK.shape).sum((1, 3)), constant_B


def _dot(values_BTD: Tensor, covector_BTD: Tensor) -> Tensor:
    return (values_BTD.detach().float() * covector_BTD).sum((1, 2))


def _check_affine(recorded: Recording, covector_BTD: Tensor, bias_B: Tensor, score_B: Tensor) -> None:
    last = recorded.stream[-1].float()
    allowed_B = torch.finfo(recorded.stream[-1].dtype).eps ** 0.5 * ((last * covector_BTD).abs().sum((1, 2)) + bias_B.abs())
    if bool(((_dot(last, covector_BTD) + bias_B - score_B).abs() > allowed_B).any()):
        kind = type(recorded.parts.root).__name__
        allowed = "heads of one matrix behind the final norm"
        raise UsageError(f"attribution through the head of {kind}, which is not affine", allowed=allowed, fix="patch instead (explain/sweep.py)")


def _streams(recorded: Recording, kind: str) -> tuple[Tensor, ...]:
    if kind not in STREAMS:
        raise UsageError(f"a lens at {kind}", allowed=", ".join(STREAMS))
    if kind == "resid_mid" and recorded.parts.anatomy.mid is None:
        raise UsageError("a lens at resid_mid of a model whose attention and MLP run side by side", allowed="resid_pre, resid_post")
    return {"resid_pre": recorded.stream[:-1], "resid_mid": recorded.middle, "resid_post": recorded.stream[1:]}[kind]


def _check(recorded: Recording, position: int | None) -> None:
    length = recorded.stream[0].shape[1]
    if position is not None and not -length <= position < length:
        raise UsageError(f"position {position}", allowed=f"{-length} to {length - 1}")
