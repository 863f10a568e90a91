"""The command line, frozen: a new command or option is a decision, and this list is where it is taken."""

from __future__ import annotations

from typing import Any

import typer

from knowhow.cli import app

FROZEN = {
    "ask": "MODEL TEXT --pair --runs --json --quiet",
    "build": "RECIPE --set --resume --from --runs --yes --json --quiet",
    "diagnose": "RECIPE --set --runs --json --quiet",
    "diff": "RUN RUN --runs --json --quiet",
    "doctor": "--json --quiet",
    "eval": "MODEL DATA --set --runs --json --quiet",
    "explain": "MODEL --text --data --example --set --runs --json --quiet",
    "init": "--data --base --task --set --out --yes --json --quiet",
    "inspect": "DATA --set --json --quiet",
    "laws check": "LAW --seeds --model --data --json --quiet",
    "laws list": "--json --quiet",
    "laws predict": "RECIPE --set --runs --json --quiet",
    "laws show": "LAW --json --quiet",
    "plan": "RECIPE --set --runs --json --quiet",
    "look": "RUN WHAT --set --runs --json --quiet",
    "predict": "MODEL FILE --out --set --runs --json --quiet",
    "pretrain": "RECIPE --set --resume --runs --json --quiet",
    "report": "RUN --runs --json --quiet",
    "runs gc": "--runs --yes --json --quiet",
    "runs ls": "--runs --json --quiet",
    "runs rm": "RUN... --runs --yes --json --quiet",
    "schema": "--json --quiet",
    "triage": "MODEL REPORT... --out --with --evidence --runs --json --quiet",
    "study": "RECIPE --set --steps --resume --runs --json --quiet",
}


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its full name."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{name} ") if "commands" in vars(command) else {prefix + name: command}
    return found


def test_no_command_or_option_that_was_not_decided() -> None:
    found = {}
    for name, command in commands(typer.main.get_command(app)).items():
        arguments = [parameter.metavar for parameter in command.params if parameter.param_type_name == "argument"]
        options = [parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"]
        found[name] = " ".join([*arguments, *options])
    assert found == FROZEN


def test_every_option_says_what_it_is_for() -> None:
    for name, command in commands(typer.main.get_command(app)).items():
        silent = [parameter.name for parameter in command.params if not parameter.help]
        assert not silent, f"{name}: {silent}"
        assert command.help, name
        assert len(command.help.splitlines()[0]) < 62, f"{name}: the first line is cut in `knowhow --help`"
