"""The source that a law's verdict rests on, as one digest: a law whose formulas, systems or observers have changed has not been judged.

Definitions are followed from the law, the makers of its systems and its observers to everything that they name in FOLLOWED. What is hashed is syntax without
docstrings and comments: better words leave a judgement standing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from knowhow.experiments.system import MAKERS as SYSTEMS
from knowhow.files import digest
from knowhow.laws.law import Law
from knowhow.observe import MAKERS as OBSERVERS

FOLLOWED = ("knowhow.laws.", "knowhow.experiments.", "knowhow.observe.", "knowhow.maths.")
ALSO = ("knowhow.model.charges", "knowhow.model.symmetries", "knowhow.model.projections")
NOT = ("knowhow.laws.law", "knowhow.experiments.run")
"""Every law rests on these alike; the loop, the loading of models and the data are the program's own and have tests of their own."""

Name = tuple[str, str]


def digest_of(law: Law) -> str:
    """sha256 over the definitions that the law, its experiments and its controls rest on, as the files say now."""
    _parsed.cache_clear()
    return digest({f"{module}:{name}": ast.dump(node) for (module, name), node in sorted(rests_on(law).items())})


def rests_on(law: Law) -> dict[Name, ast.AST]:
    """(module, name) → definition without docstrings."""
    experiments = [*law.experiments, *(control.experiment for control in law.controls if control.experiment is not None)]
    makers = [SYSTEMS[one.system] for one in experiments] + [OBSERVERS[name] for one in experiments for name in one.observers]
    waiting: list[Name] = [(f"knowhow.laws.{law.name.replace('-', '_')}", "LAW")]
    for maker in dict.fromkeys(makers):
        module, _, name = maker.partition(":")
        waiting.append((module, name))
    found: dict[Name, ast.AST] = {}
    while waiting:
        module, name = waiting.pop()
        node = _parsed(module)[0].get(name)
        if (module, name) in found or node is None:
            continue
        found[module, name] = node
        waiting += _named(module, node)
    return found


def _named(module: str, node: ast.AST) -> Iterator[Name]:
    """What a definition names: of its own module, or imported from one that is followed."""
    own, imported = _parsed(module)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in own:
            yield module, inner.id
        elif isinstance(inner, ast.Name) and inner.id in imported:
            source, name = imported[inner.id]
            if name and _followed(source):
                yield source, name
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in imported:
            source, name = imported[inner.value.id]
            whole = f"{source}.{name}"
            if _followed(whole):
                yield whole, inner.attr


def _followed(module: str) -> bool:
    return (module.startswith(FOLLOWED) or module in ALSO) and module not in NOT


@cache
def _parsed(module: str) -> tuple[dict[str, ast.AST], dict[str, Name]]:
    """Definitions at the top of a module, and what it imports: name here → (module, name there)."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}, {}
    own: dict[str, ast.AST] = {}
    imported: dict[str, Name] = {}
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own[node.name] = _bare(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets: Sequence[ast.expr] = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {inner.id: node for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return own, imported


def _bare(node: ast.AST) -> ast.AST:
    """Without docstrings."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            first = inner.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                inner.body = inner.body[1:] or [ast.Pass()]
    return node
