"""Tiny models whose weights are large enough that every part matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from knowhow.model import toys
from knowhow.model.load import load

Lively = Callable[..., torch.nn.Module]


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Lively:
    """Family → a twin with its matrices tripled, in float64 unless told otherwise, in eval mode."""

    def make(family: str, *, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
        folder = tmp_path_factory.getbasetemp() / f"lively-{family}"
        model = load(str(folder if folder.is_dir() else toys.twin(family, folder, seed=2))).model.to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 1)
        return model

    return make
