"""Who may import whom. This table is the single truth about the layers; a module that is not in it belongs nowhere yet."""

from __future__ import annotations

import ast
import sys

import pytest
from source import top, trees

ZERO = {"__init__", "types", "protocols", "errors", "files"}
ONE = ZERO | {"maths", "data", "model", "retrieve"}
TWO = {"diagnose", "adapt", "observe", "compress", "evaluate", "explain"}
THREE = ONE | TWO | {"loop", "laws", "plan", "report", "package"}
FOUR = THREE | {
    "manifest",
    "recipe",
    "reading",
    "workspace",
    "stages",
    "progress",
    "estimate",
    "domains",
    "serve",
    "team",
    "run",
    "specialist",
    "pretrain",
    "experiments",
}

MAY_IMPORT: dict[str, set[str]] = (
    {"__init__": set(), "errors": set(), "types": set(), "protocols": {"types"}, "files": {"errors"}}
    | {"recipe": ZERO, "reading": ZERO | {"recipe"}, "progress": ZERO, "estimate": ZERO | {"recipe"}, "workspace": ZERO}
    | {"maths": ZERO}
    | {name: ZERO | {"maths"} for name in ("data", "model", "retrieve")}
    | {"loop": ONE}
    | {name: ONE | {"loop"} for name in sorted(TWO)}
    | {"laws": ZERO | {"maths"}, "plan": ZERO | {"maths", "laws"}, "report": ZERO}
    | {"manifest": set(), "package": THREE - {"package"} | {"manifest"}, "domains": THREE, "serve": THREE, "team": THREE}
    | {
        "stages": FOUR - {"stages", "run", "specialist", "pretrain"},
        "run": FOUR - {"run"},
        "experiments": FOUR - {"experiments", "run", "specialist", "stages", "pretrain", "domains", "recipe", "reading"},
        "pretrain": FOUR - {"pretrain", "run", "specialist", "stages"},
        "specialist": FOUR - {"run", "specialist", "pretrain"},
    }
    | {"study": FOUR, "commands": FOUR | {"study"}, "cli": FOUR | {"commands", "study"}, "__main__": {"cli"}}
)

OUTSIDE: dict[str, set[str]] = {
    "__init__": set(),
    "types": set(),
    "protocols": set(),
    "errors": set(),
    "files": set(),
    "recipe": {"pydantic", "pydantic_core"},
    "reading": {"pydantic", "yaml"},
    "progress": {"rich"},
    "estimate": set(),
    "maths": {"numpy", "scipy", "torch"},
    "laws": {"numpy", "scipy"},
    "plan": {"numpy", "scipy"},
    "report": {"jinja2", "markupsafe", "altair", "vl_convert", "rich"},
    "cli": {"typer"},
    "__main__": set(),
}
"""What a module may import from outside the standard library (imports for annotations alone do not count); modules not named are free."""


def imports(path: str) -> set[str]:
    """Dotted names of everything imported anywhere in a file, relative ones made absolute, `TYPE_CHECKING` blocks included."""
    package = ["knowhow", *path.split("/")[:-1]]
    found = set()
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" if module == "knowhow" else module for alias in node.names}
    return found


def for_annotations(path: str) -> set[str]:
    """First names imported under `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.walk(trees()[path]) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    nodes = [inner for block in blocks for inner in ast.walk(block)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in [*names, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))]}


@pytest.mark.parametrize("path", list(trees()))
def test_imports_stay_in_their_layer(path: str) -> None:
    module = top(path)
    assert module in MAY_IMPORT, f"{module} is in no layer: put it in the table of this test, and say so in the change"
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("knowhow.")}
    inner = {"__init__" if name.startswith("__") and name != "__main__" else name for name in inner}
    wrong = sorted(inner - MAY_IMPORT[module] - {module})
    assert not wrong, f"{path} (layer of {module}) may not import {wrong}: pass what is needed in as an argument, or compose it in run.py"


@pytest.mark.parametrize("path", [path for path in trees() if top(path) in OUTSIDE])
def test_imports_from_outside(path: str) -> None:
    names = {name.split(".")[0] for name in imports(path)} - for_annotations(path) - {"knowhow"} - set(sys.stdlib_module_names)
    wrong = sorted(names - OUTSIDE[top(path)])
    assert not wrong, f"{path} may import {sorted(OUTSIDE[top(path)]) or 'nothing'} from outside the standard library, not {wrong}"


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while rest := {name for name in MAY_IMPORT if name not in done}:
        free = {name for name in rest if not (MAY_IMPORT[name] & rest - {name})}
        assert free, f"these may import each other: {sorted(rest)}"
        done |= free


def test_the_rules_can_fail() -> None:
    assert "cli" not in MAY_IMPORT["run"]
    assert "loop" not in MAY_IMPORT["data"]
    assert not MAY_IMPORT["adapt"] & (TWO - {"adapt"})
    assert "knowhow.files" in imports("reading/paths.py") | {"knowhow.files"}
    assert "knowhow.errors" in imports("reading/paths.py")
