"""Bases and a finished run for the tests of bad input, made once; a folder to play each case in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bad_place import Place, play
from bad_runner import MACHINE

from knowhow.model import toys


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "bert"):
        toys.twin(family, folder / family)
    return folder


@pytest.fixture(scope="session")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, small and good."""
    folder = tmp_path_factory.mktemp("finished")
    here = Path.cwd()
    os.chdir(folder)
    try:
        got = play([*Place(folder, models, folder).recipe(), "--quiet"], folder, lambda: ("", ""))
    finally:
        os.chdir(here)
    assert got.code == 0
    return next((folder / "runs").iterdir())


@pytest.fixture
def place(models: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in [name for name in os.environ if name.startswith("KNOWHOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("knowhow.commands.sizing.machine", lambda runs: MACHINE)
    return Place(tmp_path, models, finished, monkeypatch)
