"""Reading and writing at sites while a model runs.

    with tap(model, "layers.*.resid_post") as seen:
        model(**batch)
    seen["layers.3.resid_post"]                       # BTD

    with tap(model, edits=[Edit("layers.2.attn.z", torch.zeros_like, At(heads=[1]))]):
        model.generate(**batch)

Hooks exist only inside the `with`; reading leaves the logits bit-equal; a compiled model runs uncompiled meanwhile. Shape letters: see model/sites.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self
from weakref import WeakSet

import torch

from knowhow.errors import UsageError
from knowhow.model.attend import Call, Output, intercepted
from knowhow.model.loaded import without_adapter
from knowhow.model.sites import ATTENTION, Body, Site, body, find, uncompiled

Indices = int | slice | Sequence[int] | None
_TAPPED: WeakSet[torch.nn.Module] = WeakSet()


@dataclass(frozen=True, slots=True)
class At:
    """A part of a site's value: rows of the batch, positions (of this pass; queries of a pattern), heads. None: all; negative ones count from the end."""

    rows: Indices = None
    positions: Indices = None
    heads: Indices = None


@dataclass(frozen=True, slots=True)
class Edit:
    """`change` gets the value at `site`, or the part named by `at`, and gives what stands there instead (same shape)."""

    site: str
    change: Callable[[torch.Tensor], torch.Tensor]
    at: At = At()


class Keeper(Protocol):
    """What a tap may keep instead of values (maths/running.py has some)."""

    def update(self, values_ND: torch.Tensor) -> None:
        """N vectors: one for each row, position and head that was asked for and is no padding."""


class tap:
    """See the module. Raises UsageError on entering (unknown site, model tapped already), while running (part out of range, NaN) and on leaving in
    peace (a site that never fired). Whatever happens, no hook stays."""

    def __init__(
        self,
        model: torch.nn.Module,
        *patterns: str,
        edits: Sequence[Edit] = (),
        at: At = At(),
        grad: bool = False,
        keep: Callable[[], Keeper] | None = None,
        check: bool = True,
    ) -> None:
        """`grad`: values stay in the graph, and the model goes on from them (from a pattern by its formula, which rounds a little differently);
        `keep`: made once per site, gets every vector instead of values being stored; `check`: NaN is an error."""
        self.model, self._at, self._grad, self._check = model, at, grad, check
        wanted = find(model, *patterns) if patterns else []
        changed = [(site, edit) for edit in edits for site in find(model, edit.site)]
        self._reads = {site.name for site in wanted}
        self._edits: dict[str, list[Edit]] = {}
        for site, edit in changed:
            self._edits.setdefault(site.name, []).append(edit)
        self._sites = {site.name: site for site in [*wanted, *(site for site, _ in changed)]}
        self._values: dict[str, list[torch.Tensor]] = {name: [] for name in self._reads}
        self._keepers = {name: keep() for name in self._reads} if keep is not None else {}
        self._fired: set[str] = set()
        self._mask_BT: torch.Tensor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.model in _TAPPED:
            raise UsageError("a tap inside a tap on the same model", allowed="one tap at a time", fix="give all sites and edits to one tap")
        with ExitStack() as stack:
            _TAPPED.add(self.model)
            stack.callback(_TAPPED.discard, self.model)
            if uncompiled(self.model) is not self.model or any(module._compiled_call_impl is not None for module in self.model.modules()):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._arm(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        silent = [name for name in self._sites if name not in self._fired]
        if kind is None and silent:
            more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
            raise UsageError(f"no value at {', '.join(silent[:3])}{more}", fix="run the model inside the `with`; a model that skips the block never fires it")

    def __getitem__(self, name: str) -> torch.Tensor:
        """The value of the one pass that was run. Raises UsageError after none or several (then `calls`)."""
        values = self.calls(name)
        if len(values) != 1:
            raise UsageError(f"{len(values)} values at {name}", allowed="one pass inside the `with`", fix=f"calls({name!r}) gives them all")
        return values[0]

    def calls(self, name: str) -> list[torch.Tensor]:
        """One value per pass, such as the steps of a generation."""
        if name not in self._values:
            raise UsageError(f"the site {name}, which this tap does not read", allowed=", ".join(sorted(self._reads)) or "none", fix="name it in tap(…)")
        return self._values[name]

    def all(self) -> dict[str, torch.Tensor]:
        """The value of the one pass at every site that is read, in the model's order."""
        return {name: self[name] for name in self._sites if name in self._reads}

    def kept(self, name: str) -> Any:
        """The keeper of a site."""
        if name not in self._keepers:
            raise UsageError(f"the site {name}, of which this tap keeps nothing", allowed=", ".join(sorted(self._keepers)) or "none", fix="give keep=…")
        return self._keepers[name]

    def _arm(self, stack: ExitStack) -> None:
        model, root = self.model, without_adapter(uncompiled(self.model))
        modules, parts = dict(root.named_modules()), body(model)
        inside: dict[int, dict[str, Site]] = {}
        for site in sorted(self._sites.values(), key=lambda site: site.kind == "resid_mid"):
            if site.kind in ATTENTION:
                inside.setdefault(site.layer or 0, {})[site.kind] = site
            elif site.port is not None:
                self._hook(stack, parts, modules, site)
        if "logits" in self._sites:
            stack.callback(model.register_forward_hook(self._at_logits).remove)
        if self._keepers:
            stack.callback(model.register_forward_pre_hook(self._note_mask, with_kwargs=True).remove)
        if inside:
            stack.enter_context(intercepted(root, {parts.attention(layer): partial(self._at_attention, there) for layer, there in inside.items()}))

    def _hook(self, stack: ExitStack, parts: Body, modules: dict[str, torch.nn.Module], site: Site) -> None:
        """Reads at the site's own port. A write to a sum that the block has already gone past (resid_mid) is added by whatever completed the sum."""
        assert site.port is not None
        module, anatomy = modules[site.port.path], parts.anatomy
        if site.kind == "resid_mid" and anatomy.added_mid and site.name in self._edits:
            assert site.layer is not None
            block = parts.block(site.layer)
            before: list[torch.Tensor] = []
            stack.callback(block.register_forward_pre_hook(lambda _, args, kwargs: before.append(_first(args, kwargs)), with_kwargs=True).remove)
            adder = block.get_submodule(anatomy.attn_out.path)
            stack.callback(adder.register_forward_hook(partial(self._add_difference, site, before)).remove)
            if site.name in self._reads:
                stack.callback(module.register_forward_pre_hook(partial(self._before, site, False), with_kwargs=True).remove)
        elif site.port.side == "in":
            stack.callback(module.register_forward_pre_hook(partial(self._before, site, True), with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(partial(self._after, site)).remove)

    def _before(self, site: Site, edit: bool, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _first(args, kwargs)
        new = self._visit(site, value, edit=edit)
        if new is value:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def _after(self, site: Site, _: torch.nn.Module, __: Any, output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        assert site.port is not None
        if site.port.part is None:
            value, new = whole, self._visit(site, whole)
        else:
            index, count = site.port.part
            pieces = list(whole.chunk(count, -1))
            value, new = pieces[index], self._visit(site, pieces[index])
            whole = torch.cat([*pieces[:index], new, *pieces[index + 1 :]], -1) if new is not value else whole
        if new is value:
            return None
        replaced = new if site.port.part is None else whole
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    def _add_difference(self, site: Site, before: list[torch.Tensor], _: torch.nn.Module, __: Any, out_BTD: torch.Tensor) -> torch.Tensor:
        pre_BTD = before.pop()
        return self._edited(site, pre_BTD + out_BTD) - pre_BTD

    def _at_logits(self, _: torch.nn.Module, __: Any, output: Any) -> Any:
        site = self._sites["logits"]
        new = self._visit(site, output.logits)
        if new is not output.logits:
            output.logits = new
        return output

    def _at_attention(self, there: dict[str, Site], call: Call) -> Output:
        def visit(kind: str, value: torch.Tensor) -> torch.Tensor:
            return self._visit(there[kind], value) if kind in there else value

        for kind, name in (("attn.q", "query"), ("attn.k", "key"), ("attn.v", "value")):
            if kind in there:
                value = call.query if name == "query" else call.key if name == "key" else call.value
                seen = value.transpose(1, 2)
                new = visit(kind, seen)
                call = call if new is seen and not self._grad else replace(call, **{name: new.transpose(1, 2)})
        pattern = call.pattern() if "attn.pattern" in there else None
        changed = pattern if pattern is None else visit("attn.pattern", pattern)
        used = changed is not None and (changed is not pattern or self._grad)
        z_BTHK, weights = (call.mixed(changed), changed) if used else call.run()
        return visit("attn.z", z_BTHK), weights

    def _note_mask(self, _: torch.nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask_BT = mask if mask is not None and mask.ndim == 2 else None

    def _visit(self, site: Site, value: torch.Tensor, *, edit: bool = True) -> torch.Tensor:
        """Edits first, then what reading sees. Gives `value` itself where nothing was edited."""
        self._fired.add(site.name)
        new = self._edited(site, value) if edit else value
        if site.name in self._reads:
            if self._grad and new is value:
                # an alias: a tensor that others read too would carry their gradients as well
                new = value.view_as(value)
            if self._check and bool(torch.isnan(new.detach().sum())) and bool(torch.isnan(new).any()):
                raise UsageError(f"NaN at {site.name}", allowed="finite numbers", fix="check weights and input; check=False reads on")
            part = pick(site, new, self._at)
            if self._keepers:
                self._keepers[site.name].update(self._vectors(site, part))
            else:
                self._values[site.name].append(part if self._grad else part.detach())
        return new

    def _edited(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        self._fired.add(site.name)
        for edit in self._edits.get(site.name, ()):
            value = put(site, value, edit)
        return value

    def _vectors(self, site: Site, part: torch.Tensor) -> torch.Tensor:
        flat_ND = part.detach().flatten(0, -2)
        mask_BT = self._mask_BT
        if mask_BT is None or part.ndim < 3 or site.axes[1] != "positions":
            return flat_ND
        mask_BT = mask_BT[:, -part.shape[1] :] if self._at.positions is None else mask_BT
        real = pick(replace(site, kind="embed"), mask_BT[..., None].bool(), replace(self._at, heads=None))[..., 0]
        return flat_ND[real.reshape(*real.shape, *[1] * (part.ndim - 3)).expand(part.shape[:-1]).flatten()]


def pick(site: Site, value: torch.Tensor, at: At) -> torch.Tensor:
    """The part of a site's value that `at` names. Raises UsageError where it lies outside, or for heads of a site that has none."""
    return _selected(value, _chosen(site, value, at))


def _selected(value: torch.Tensor, chosen: Mapping[int, torch.Tensor]) -> torch.Tensor:
    for axis, index in chosen.items():
        value = value.index_select(axis, index)
    return value


def put(site: Site, value: torch.Tensor, edit: Edit) -> torch.Tensor:
    """`value` with the edit's part changed; a new tensor."""
    chosen = _chosen(site, value, edit.at)
    part = _selected(value, chosen)
    new = edit.change(part)
    if new.shape != part.shape:
        raise UsageError(f"an edit at {site.name} of shape {tuple(new.shape)}", allowed=f"the shape of the value, {tuple(part.shape)}")
    if not chosen:
        return new.to(value.dtype)
    grids = [chosen.get(axis, torch.arange(size, device=value.device)) for axis, size in enumerate(value.shape[: max(chosen) + 1])]
    where = torch.meshgrid(*grids, indexing="ij")
    return value.clone().index_put(where, new.to(value.dtype))


def _chosen(site: Site, value: torch.Tensor, at: At) -> dict[int, torch.Tensor]:
    """axis → indices, for the axes of which a part is asked."""
    found = {}
    for name, wanted in (("rows", at.rows), ("positions", at.positions), ("heads", at.heads)):
        if wanted is None:
            continue
        axes = site.axes if value.ndim > 2 else ("rows", "C")
        if name not in axes:
            raise UsageError(f"{name} of {site.name}, whose value has none", allowed=f"parts of its axes {', '.join(axes)}", fix=f"leave {name} out")
        axis = axes.index(name)
        found[axis] = _indices(wanted, value.shape[axis], f"{name} of {site.name}").to(value.device)
    return found


def _indices(wanted: int | slice | Sequence[int], size: int, what: str) -> torch.Tensor:
    if isinstance(wanted, slice):
        return torch.arange(size)[wanted]
    given = torch.tensor([wanted] if isinstance(wanted, int) else list(wanted), dtype=torch.long)
    beyond = given[(given < -size) | (given >= size)]
    if len(beyond):
        raise UsageError(f"{what}: {int(beyond[0])}", allowed=f"{-size} to {size - 1}", fix="take one of these")
    return given % size


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]
