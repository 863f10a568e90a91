"""The gradient of every row's own loss, from one forward and one backward pass of the batch.

A linear layer's gradient for one row is the product of what it read and of the gradient of what it gave, summed over the row's tokens (Goodfellow 2015,
arXiv 1510.01799); so A and B of a LoRA adapter, each a linear layer, need nothing else. Other modules (norms, embeddings) are pulled back one by one
in themselves, rows side by side (torch.func.vmap). Whatever does not add up to the batch's own gradient (a weight that is used behind its module's
back, a table of positions that all rows share) is taken again from one backward pass a row: slow, and right.
Rows may not see each other (no batch norm) and are the first axis of what a module reads. Run models in eval mode: dropout would be a draw.
Shape letters: B rows, T tokens, I inputs and E outputs of a linear layer (I counts the bias), P parameters, N rows of all batches, K projected size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from knowhow.errors import UsageError
from knowhow.protocols import Progress

Loss = Callable[[torch.nn.Module, Any], torch.Tensor]
"""(model, a batch of rows) → B: the loss of each row."""
Change = Callable[[str, torch.Tensor], torch.Tensor | None]
"""(block, its gradients B…) → what is kept of them, the same shape; None: nothing."""
TOLERANCE = 1e-3
LARGEST = 4 * 2**30
"""Bytes of gradients that are held at once without a projection."""


@dataclass(frozen=True, slots=True)
class Block:
    """Trainable parameters that belong together. `kind`: linear (weight and bias of one module, gradients B×E×I), other (one parameter of one module) or
    shared (one parameter of several, such as tied embeddings). `names`: as the model calls them; `owners`: (module, its name of the parameter)."""

    name: str
    kind: str
    names: tuple[str, ...]
    owners: tuple[tuple[str, str], ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a module on a batch: what it read, and the gradient of the summed loss by what it gave."""

    read: torch.Tensor
    grad: torch.Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """One pass of a batch: losses B (still in the graph), the module calls, and the gradient of the summed loss by each parameter that it hangs on."""

    loss_B: torch.Tensor
    calls: Mapping[str, Sequence[Call]]
    total: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Projection:
    """Gradients of P numbers on K: each is added, with a random sign, to a random one of K (a sparse Johnson–Lindenstrauss map, Kane & Nelson 2014, arXiv
    1012.1577; what it is for: TRAK, Park et al. 2023, arXiv 2303.14186). Inner products are right on average; their variance is at most
    (|x|²|y|² + ⟨x, y⟩²) / K, that of a dense random matrix. Each block has draws of its own, which hang on `seed` and the block's name alone."""

    width: int
    seed: int = 0

    def add(self, into_BK: torch.Tensor, block: str, grads_BP: torch.Tensor) -> None:
        """Raises UsageError for a width below 1."""
        if self.width < 1:
            raise UsageError(f"a projection on {self.width} numbers", allowed="at least 1")
        number = int.from_bytes(hashlib.sha256(f"{self.seed} {block}".encode()).digest()[:7], "big")
        drawn = torch.Generator().manual_seed(number)
        place_P = torch.randint(self.width, (grads_BP.shape[1],), generator=drawn).to(grads_BP.device)
        sign_P = (torch.randint(2, (grads_BP.shape[1],), generator=drawn) * 2 - 1).to(grads_BP)
        into_BK.index_add_(1, place_P, grads_BP * sign_P)


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept of gradients. `change`: done to each block (such as whitening); `project`: None keeps every number; `only`: blocks, None for all."""

    change: Change | None = None
    project: Projection | None = None
    only: Callable[[Block], bool] | None = None


WHOLE = Keep()
"""Every number of every block."""


def blocks(model: torch.nn.Module) -> tuple[Block, ...]:
    """The trainable parameters in blocks, in the model's order. Raises UsageError where nothing is trainable."""
    owners: dict[int, list[tuple[str, str]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: set[int] = set()
    for path, module in modules.items():
        if id(module) not in seen:
            seen.add(id(module))
            for name, parameter in module.named_parameters(recurse=False):
                owners.setdefault(id(parameter), []).append((path, name))
    found, taken = [], set[int]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in taken:
            continue
        uses = tuple(owners[id(parameter)])
        module = modules[uses[0][0]]
        if len(uses) == 1 and isinstance(module, torch.nn.Linear | Conv1D) and uses[0][1] == "weight":
            bias = module.bias
            with_bias = bias is not None and bias.requires_grad and len(owners[id(bias)]) == 1
            names = (name, f"{name.removesuffix('weight')}bias") if with_bias else (name,)
            taken |= {id(bias)} if with_bias else set()
            found.append(Block(uses[0][0] or "linear", "linear", names, uses, isinstance(module, Conv1D)))
        else:
            found.append(Block(name, "other" if len(uses) == 1 else "shared", (name,), uses))
    if not found:
        raise UsageError("a model without trainable parameters", fix="load the adapter with trainable=True, or set requires_grad")
    return tuple(found)


def look(model: torch.nn.Module, loss: Loss, rows: Any, parts: Sequence[Block]) -> Seen:
    """One forward and one backward pass. Raises UsageError for losses that are not one finite number a row."""
    wanted = {path for part in parts for path, _ in part.owners}
    names = [name for part in parts for name in part.names]
    read: dict[str, list[torch.Tensor]] = {}
    grads: dict[str, list[torch.Tensor | None]] = {}

    def note(path: str, _: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plain = len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor)
        if not (plain and output.requires_grad):
            return
        at = len(read.setdefault(path, []))
        read[path].append(args[0].detach())
        grads.setdefault(path, []).append(None)
        output.register_hook(partial(keep, path, at))

    def keep(path: str, at: int, grad: torch.Tensor) -> None:
        grads[path][at] = grad.detach()

    with ExitStack() as stack, torch.enable_grad():
        for path in wanted:
            stack.callback(model.get_submodule(path).register_forward_hook(partial(note, path)).remove)
        loss_B = loss(model, rows)
        if loss_B.ndim != 1 or not bool(torch.isfinite(loss_B.detach()).all()):
            got = f"losses of shape {tuple(loss_B.shape)}" if loss_B.ndim != 1 else "a loss that is no number"
            raise UsageError(got, allowed="one finite loss for each row (B)")
        if not loss_B.requires_grad:
            raise UsageError("losses that do not hang on the trainable parameters", fix="compute them from the model's output, without no_grad")
        by_name = dict(model.named_parameters())
        total = torch.autograd.grad(loss_B.sum(), [by_name[name] for name in names], retain_graph=True, allow_unused=True)
    calls = {path: [Call(value, grad) for value, grad in zip(read[path], grads[path]) if grad is not None] for path in read}
    return Seen(loss_B, calls, {name: grad for name, grad in zip(names, total) if grad is not None})


def row_gradients(model: torch.nn.Module, loss: Loss, rows: Any, parts: Sequence[Block] | None = None) -> dict[str, torch.Tensor]:
    """Block → the gradient of each row's loss: B×E×I for a linear one (the bias is its last input), else B×the parameter's shape.

    Every block is held against the batch's own gradient; one that differs is taken from a backward pass a row."""
    parts = blocks(model) if parts is None else parts
    seen = look(model, loss, rows, parts)
    quick = {part.name: _quick(model, part, seen) for part in parts if any(name in seen.total for name in part.names)}
    slow = [part for part in parts if not _adds_up(part, quick.get(part.name), seen)]
    found = quick | _one_by_one(model, slow, seen)
    return {part.name: found[part.name] for part in parts}


def split(part: Block, grads: torch.Tensor) -> dict[str, torch.Tensor]:
    """A block's gradients by parameter, each B×the parameter's shape."""
    if part.kind != "linear":
        return {part.names[0]: grads}
    weight = grads if len(part.names) == 1 else grads[..., :-1]
    named = {part.names[0]: weight.transpose(-1, -2) if part.transposed else weight}
    return named if len(part.names) == 1 else {**named, part.names[1]: grads[..., -1]}


def chosen(model: torch.nn.Module, keep: Keep) -> list[Block]:
    """The blocks that `keep` asks for. Raises UsageError where that is none."""
    parts = [part for part in blocks(model) if keep.only is None or keep.only(part)]
    if not parts:
        raise UsageError("gradients of which nothing is kept", allowed="at least one block", fix="check keep.only")
    return parts


def gradients(
    model: torch.nn.Module, loss: Loss, batches: Sequence[Any], keep: Keep = WHOLE, *, progress: Progress | None = None, what: str = "gradients"
) -> torch.Tensor:
    """The gradient of every row as one vector: N×P, or N×K where `keep` projects. Blocks follow each other in the model's order.

    Raises UsageError for no batches, and where N×P takes more than 4 GB and nothing is projected."""
    if not batches:
        raise UsageError("no batches", allowed="at least one")
    parts = chosen(model, keep)
    made: list[torch.Tensor] = []
    for done, rows in enumerate(batches):
        if progress is not None:
            progress(what, done, len(batches))
        made.append(vectors(model, loss, rows, parts, keep))
        if made[-1].nbytes * len(batches) > LARGEST:
            got = f"{len(batches)} batches of {made[-1].shape[0]} gradients of {made[-1].shape[1]} numbers"
            raise UsageError(got, allowed="4 GB of them", fix="keep=Keep(project=Projection(2048))")
    return torch.cat(made)


def vectors(model: torch.nn.Module, loss: Loss, rows: Any, parts: Sequence[Block], keep: Keep) -> torch.Tensor:
    """As `gradients`, of one batch."""
    kept: list[torch.Tensor] = []
    into_BK = torch.zeros(0)
    for name, grads in row_gradients(model, loss, rows, parts).items():
        changed = grads if keep.change is None else keep.change(name, grads)
        if changed is None:
            continue
        flat_BP = changed.flatten(1)
        if keep.project is None:
            kept.append(flat_BP)
            continue
        if not into_BK.numel():
            into_BK = flat_BP.new_zeros(len(flat_BP), keep.project.width)
        keep.project.add(into_BK, name, flat_BP)
    if not kept and not into_BK.numel():
        raise UsageError("gradients of which nothing is kept", allowed="at least one block", fix="check keep.change")
    return into_BK if keep.project is not None else torch.cat(kept, 1)


def flat(call: Call, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear layer read BTI (a one behind it for the bias) and the gradients of what it gave BTE."""
    read = call.read.reshape(len(call.read), -1, call.read.shape[-1])
    grad = call.grad.reshape(len(call.grad), -1, call.grad.shape[-1])
    return (torch.cat([read, torch.ones_like(read[..., :1])], -1) if bias else read).to(grad.dtype), grad


def _quick(model: torch.nn.Module, part: Block, seen: Seen) -> torch.Tensor | None:
    """None where some use of the block does not have one row per loss."""
    total, count = None, len(seen.loss_B)
    for path, name in part.owners:
        for call in seen.calls.get(path, ()):
            if len(call.read) != count or len(call.grad) != count:
                return None
            if part.kind == "linear":
                read_BTI, grad_BTE = flat(call, bias=len(part.names) == 2)
                each = grad_BTE.transpose(1, 2) @ read_BTI
            else:
                pulled = _pulled_back(model.get_submodule(path), name, call)
                if pulled is None:
                    return None
                each = pulled
            total = each if total is None else total + each
    return total


def _pulled_back(module: torch.nn.Module, name: str, call: Call) -> torch.Tensor | None:
    """Each row's gradient by one parameter of a module of one input; None where it does not run row by row."""
    own = {key: value.detach() for key, value in module.named_parameters()}

    def one(read: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        def run(value: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = torch.func.functional_call(module, {**own, name: value}, (read[None],))
            return given[0]

        pull = torch.func.vjp(run, own[name])[1]
        pulled: torch.Tensor = pull(grad)[0]
        return pulled

    try:
        made: torch.Tensor = torch.func.vmap(one)(call.read, call.grad)
        return made
    except (RuntimeError, ValueError, TypeError):
        return None


def _adds_up(part: Block, grads: torch.Tensor | None, seen: Seen) -> bool:
    if grads is None:
        return False
    pairs = [(each.sum(0), seen.total[name]) for name, each in split(part, grads).items() if name in seen.total]
    size = torch.stack([whole.norm() for _, whole in pairs]).norm()
    rows = grads.flatten(1).norm(dim=1).sum()
    return bool(torch.stack([(each - whole).norm() for each, whole in pairs]).norm() <= TOLERANCE * size + 1e-5 * rows)


def _one_by_one(model: torch.nn.Module, parts: Sequence[Block], seen: Seen) -> dict[str, torch.Tensor]:
    by_name = dict(model.named_parameters())
    names = [name for part in parts for name in part.names]
    used = [name for name in names if name in seen.total]
    each: list[dict[str, torch.Tensor]] = []
    for loss in seen.loss_B:
        given = torch.autograd.grad(loss, [by_name[name] for name in used], retain_graph=True, allow_unused=True) if used else ()
        known = {name: grad for name, grad in zip(used, given) if grad is not None}
        each.append({name: known.get(name, torch.zeros_like(by_name[name])) for name in names})
    found = {}
    for part in parts:
        stacked = [torch.stack([row[name] for row in each]) for name in part.names]
        weight = stacked[0].transpose(-1, -2) if part.transposed else stacked[0]
        found[part.name] = weight if len(stacked) == 1 else torch.cat([weight, stacked[1][..., None]], -1)
    return found
