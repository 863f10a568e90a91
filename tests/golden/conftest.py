from __future__ import annotations

from collections.abc import Callable

import pytest

from knowhow.model import toys


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("bases")

    def base(family: str) -> str:
        if not (folder / family).is_dir():
            toys.twin(family, folder / family)
        return str(folder / family)

    return base
