"""What every tier shares: the optional data folder, quiet libraries, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(os.environ.get("KNOWHOW_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data made by others (KNOWHOW_DATA); tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}; set KNOWHOW_DATA to run this test")
    return DATA
