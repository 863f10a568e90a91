"""Size and shape: short files, short functions, few parameters, composition, named arguments, a docstring for every module."""

from __future__ import annotations

import ast

import pytest
from source import trees

FILE_LINES, FUNCTION_LINES, PARAMETERS = 300, 50, 8

LONGER: dict[str, str] = {
    "types.py": "every noun that travels between stages, in one place",
    "model/generate.py:generate": "one knob per sampler, each a field's own word; the Generator protocol fixes the first ones",
}
"""{file or file:function: why it is clearer longer}."""

REFLECTS: dict[str, str] = {
    "files.py": "turns dataclasses and arrays of other libraries into JSON",
    "model/guard.py": "operating-system errors carry strerror or not",
    "model/label_tokens.py": "transformers' configs and heads differ by family",
    "model/load.py": "transformers' configs and heads differ by family",
    "model/save.py": "transformers' configs differ by family",
    "model/vocabulary.py": "torch layers have a bias or not",
    "model/template_syntax.py": "jinja's nodes have a name or not",
}
"""{file: why it may ask objects for their attributes}: only objects of other libraries, whose shape differs between versions or families."""

OPEN: dict[str, str] = {
    "model/attend.py": "what a family hands to its attention function is open",
    "model/replay.py": "what stands in for a block takes whatever its family hands to one",
    "report/charts.py": "a chart's specification is an open record",
    "workspace.py": "the rows of a log and of measured.json are open records",
}
"""{file: why its functions take any keyword}."""

FAMILIES = {"KnowhowError", "Section"}
"""Project classes that others may inherit from: the errors, and the sections of a recipe."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    said = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - said


@pytest.mark.parametrize("path", list(trees()))
def test_files_and_functions_stay_short(path: str) -> None:
    tree = trees()[path]
    lines = max((node.end_lineno or 0 for node in tree.body), default=0)
    assert lines <= FILE_LINES or path in LONGER, f"{path} has {lines} lines (at most {FILE_LINES}): one concept per file"
    for function in functions(tree):
        name = f"{path}:{function.name}"
        assert length(function) <= FUNCTION_LINES or name in LONGER, f"{name} has {length(function)} lines (at most {FUNCTION_LINES})"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
        assert count <= PARAMETERS or name in LONGER, f"{name} has {count} parameters (at most {PARAMETERS}): pass a value that holds them"


def test_the_allow_list_is_not_stale() -> None:
    known = set(trees()) | {f"{path}:{function.name}" for path, tree in trees().items() for function in functions(tree)}
    assert set(LONGER) <= known
    assert set(REFLECTS) | set(OPEN) <= set(trees())
    assert all(reason.strip() for reason in [*LONGER.values(), *REFLECTS.values(), *OPEN.values()])


@pytest.mark.parametrize("path", list(trees()))
def test_arguments_are_named(path: str) -> None:
    loose = [function.name for function in functions(trees()[path]) if function.args.kwarg]
    assert not loose or path in OPEN, f"{path}: **{loose} takes any keyword, so a typo passes: name the parameters"


@pytest.mark.parametrize("path", list(trees()))
def test_objects_are_not_asked_what_they_are(path: str) -> None:
    calls = [node for node in ast.walk(trees()[path]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asked = [f"line {node.lineno}" for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "delattr")]
    assert not asked or path in REFLECTS, f"{path} ({', '.join(asked)}): contracts live in types.py and protocols.py, not in getattr/hasattr"


def test_classes_are_protocols_or_final() -> None:
    classes = {node.name: path for path, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    protocols = {node.name for node in ast.walk(trees()["protocols.py"]) if isinstance(node, ast.ClassDef)}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases} if isinstance(node, ast.ClassDef) else set()
            inherited = sorted((bases & set(classes)) - FAMILIES - protocols)
            assert not inherited, f"{path}: a class inherits from {inherited}: hold one instead"


@pytest.mark.parametrize("path", list(trees()))
def test_every_module_says_what_it_is(path: str) -> None:
    assert ast.get_docstring(trees()[path]), f"{path} has no docstring: one line that says what it is for"


def test_the_rules_can_fail() -> None:
    tree = ast.parse("def f(a, b, *, c, **rest):\n    'said'\n" + "    a\n" * 60)
    assert length(functions(tree)[0]) == 61
    assert functions(tree)[0].args.kwarg
