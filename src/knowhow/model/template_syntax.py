"""What a chat template's syntax may say (jinja2's own parser, nothing is run): no other files, no way into Python, no size taken from the request."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes

COUNT_LIMIT = 1000
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "batch", "slice", "truncate"})
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.FloorDiv, nodes.Div, nodes.Mod)


class Unsafe(Exception):
    """Why a template is refused."""


def check_syntax(tree: nodes.Template) -> None:
    """Raises Unsafe with the line and the reason."""
    if tree.find((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise Unsafe("reads other files (include, import or extends)")
    for node in tree.find_all((nodes.Getattr, nodes.NSRef)):
        _public(node.attr, node)
    sizes = _Sizes(tree)
    for node in tree.find_all((nodes.Getitem, nodes.Call, nodes.Filter, nodes.Mul, nodes.Pow, nodes.Mod)):
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            _public(node.arg.value, node)
        elif isinstance(node, nodes.Call | nodes.Filter):
            _check_call(node, sizes)
        elif isinstance(node, nodes.Pow) or (isinstance(node, nodes.Mul) and not sizes.product(node)):
            raise Unsafe(f"line {node.lineno}: multiplies by a size taken from the request")
        elif isinstance(node, nodes.Mod) and isinstance(node.left, nodes.Const) and isinstance(node.left.value, str):
            _check_format(node.left.value, node)


def _public(name: Any, node: nodes.Node) -> None:
    if isinstance(name, str) and name.startswith("__"):
        raise Unsafe(f"line {node.lineno}: reaches into Python ({name})")


def _check_call(node: nodes.Call | nodes.Filter, sizes: _Sizes) -> None:
    target = node.node if isinstance(node, nodes.Call) else None
    method = isinstance(target, nodes.Getattr)
    name = node.name if isinstance(node, nodes.Filter) else target.attr if method else target.name if isinstance(target, nodes.Name) else ""
    arguments = [*node.args, *(keyword.value for keyword in node.kwargs)]
    if name == "attr":
        raise Unsafe(f"line {node.lineno}: reaches into Python (the attr filter)")
    if name == "range" and not method and (node.dyn_args or node.dyn_kwargs or not all(sizes.bounded(argument) for argument in arguments)):
        raise Unsafe(f"line {node.lineno}: loops over a size taken from the request (range)")
    if name in _PADDING and not all(isinstance(argument, nodes.Const) and _small(argument.value) for argument in arguments):
        raise Unsafe(f"line {node.lineno}: {name} by a size taken from the request")
    if name in {"format", "format_map"}:
        text = target.node if method else node.node
        if not isinstance(text, nodes.Const):
            raise Unsafe(f"line {node.lineno}: formats with a pattern taken from the request")
        _check_format(text.value, node)
    if name == "replace" and not isinstance((arguments[1:2] or [None])[0], nodes.Const):
        raise Unsafe(f"line {node.lineno}: replaces by a text taken from the request")


def _check_format(pattern: Any, node: nodes.Node) -> None:
    """A width in a format makes a text of that size."""
    digits = "".join(character if character.isdigit() else " " for character in str(pattern)).split()
    if "*" in str(pattern) or any(int(number) > COUNT_LIMIT for number in digits):
        raise Unsafe(f"line {node.lineno}: formats to a width above {COUNT_LIMIT}")


def _small(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) <= COUNT_LIMIT


class _Sizes:
    """Which expressions can only be as large as the request is long: constants, lengths, loop counters, and sums and parts of those."""

    def __init__(self, tree: nodes.Template) -> None:
        self.values: dict[str, list[nodes.Node]] = {}
        for node in tree.find_all((nodes.Assign, nodes.For, nodes.Call, nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.With)):
            self._collect(node)
        self.trusted = set(self.values)
        while wrong := {name for name in self.trusted if not all(self.bounded(value) for value in self.values[name])}:
            self.trusted -= wrong

    def bounded(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Const):
            return node.value is None or (isinstance(node.value, int | float) and abs(node.value) <= COUNT_LIMIT)
        if isinstance(node, nodes.Filter):
            return node.name in {"length", "count"} or (node.name in {"int", "abs", "round"} and self.bounded(node.node))
        if isinstance(node, nodes.Getattr):
            return isinstance(node.node, nodes.Name) and (node.node.name == "loop" or f"{node.node.name}.{node.attr}" in self.trusted)
        if isinstance(node, nodes.Name):
            return node.name in self.trusted
        if isinstance(node, _ARITHMETIC):
            return self.bounded(node.left) and self.bounded(node.right)
        if isinstance(node, nodes.Mul):
            return self.product(node)
        if isinstance(node, nodes.Neg | nodes.Pos):
            return self.bounded(node.node)
        return isinstance(node, nodes.CondExpr) and self.bounded(node.expr1) and node.expr2 is not None and self.bounded(node.expr2)

    def product(self, node: nodes.Mul) -> bool:
        """A short constant text, or a small constant, times something bounded."""
        pairs = ((node.left, node.right), (node.right, node.left))
        return any(isinstance(one, nodes.Const) and len(str(one.value)) <= 16 and self.bounded(other) for one, other in pairs)

    def _collect(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Assign):
            self._assign(node.target, node.node)
            if isinstance(node.node, nodes.Call) and isinstance(node.node.node, nodes.Name) and node.node.node.name == "namespace":
                for keyword in node.node.kwargs:
                    self.values.setdefault(f"{getattr(node.target, 'name', '')}.{keyword.key}", []).append(keyword.value)
        elif isinstance(node, nodes.For):
            over = node.iter
            ranged = isinstance(over, nodes.Call) and isinstance(over.node, nodes.Name) and over.node.name == "range"
            self._assign(node.target, nodes.Const(0) if ranged else over)
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            for argument in node.args:
                self._assign(argument, nodes.Const(""))
        elif isinstance(node, nodes.AssignBlock):
            self._assign(node.target, nodes.Const(""))
        elif isinstance(node, nodes.With):
            for target, value in zip(node.targets, node.values, strict=True):
                self._assign(target, value)

    def _assign(self, target: nodes.Node, value: nodes.Node) -> None:
        if isinstance(target, nodes.Name):
            self.values.setdefault(target.name, []).append(value)
        elif isinstance(target, nodes.NSRef):
            self.values.setdefault(f"{target.name}.{target.attr}", []).append(value)
        elif isinstance(target, nodes.Tuple):
            for item in target.items:
                self._assign(item, nodes.Const(""))
