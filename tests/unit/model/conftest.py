"""Twins made once per run, and the models loaded from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from knowhow.model import toys
from knowhow.model.load import Loaded, load

LABELS = ("benign", "rat", "ransomware")


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's twin."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = toys.twin(family, tmp_path_factory.mktemp("twins") / family, seed=1)
        return made[family]

    return folder


@pytest.fixture
def lm(twin: Callable[[str], Path]) -> Callable[..., Loaded]:
    return lambda family="llama": load(str(twin(family)))


@pytest.fixture
def classifier(twin: Callable[[str], Path]) -> Callable[..., Loaded]:
    return lambda family="llama", **options: load(str(twin(family)), head="classifier", labels=LABELS, **options)
