"""The README in step with the code: every command that it shows exists, with these options; its list of commands and its recipe are the tool's own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from knowhow import reading
from knowhow.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FILES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(program: str) -> list[str]:
    """Commands of a program in any bash block of the documents."""
    shown = [line.strip() for path in FILES for block in blocks("bash", path.read_text()) for line in block.splitlines()]
    return sorted({line for line in shown if line.startswith(f"{program} ")})


def group() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize("line", lines("knowhow"))
def test_commands_parse(line: str) -> None:
    """click reads the whole line, options and arguments, without running it."""
    command, words = group(), shlex.split(line, comments=True)[1:]
    while "commands" in vars(command):
        command = command.commands[words.pop(0)]
    context = command.make_context("knowhow", words, resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("line", lines("make"))
def test_make_targets_exist(line: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert next(word for word in line.split()[1:] if "=" not in word) in targets


def test_the_table_of_commands_is_the_tools() -> None:
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    listed = {row.split()[1] for row in re.findall(r"^\| `(knowhow [^`]*)`", table, re.MULTILINE)}
    assert listed == set(group().commands)
    assert {f"runs {name}" for name in group().commands["runs"].commands} <= set(re.findall(r"runs \w+", table))


def test_the_two_commands_come_first() -> None:
    first = blocks("bash")[0].split("\n")
    assert first[:2] == ["make demo", "make test"]


def test_the_recipe_reads(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml")
    (tmp_path / "reviews.csv").write_text("body,stars\n")
    (tmp_path / "r.yaml").write_text(recipe)
    assert reading.read(tmp_path / "r.yaml", environ={}).name == "reviews"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_published_recipes_read(path: Path) -> None:
    found = reading.read(path, environ={"KNOWHOW_DATA": "/nowhere"}, must_exist=False)
    assert found.name == path.stem
    header = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert header, "an editor finds the schema by the first line"
    assert (path.parent / header[1]).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_makefile_keeps_its_promises() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "test-all", "bench", "lint", "docs"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    ci = (ROOT / ".ci" / "run").read_text()
    assert ci.index("make demo SIZE=tiny") < ci.index("make test"), "the last line of CI is pytest's"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
