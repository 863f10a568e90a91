"""Twins: every family, small, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowhow.errors import UsageError
from knowhow.model import toys
from knowhow.model.guard import check_folder


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_twin_is_small_guarded_and_reproducible(family: str, tmp_path: Path) -> None:
    one, two, other = (toys.twin(family, tmp_path / name, seed=seed) for name, seed in (("one", 0), ("two", 0), ("other", 1)))
    report = check_folder(one)
    assert report.model_type == family
    assert report.parameters < 60_000
    assert report.sha256 == check_folder(two).sha256
    assert report.sha256 != check_folder(other).sha256


def test_the_families_of_the_issue_are_there() -> None:
    wanted = {"llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "gpt_neox", "phi", "olmo", "olmo2", "smollm3", "bert", "modernbert"}
    assert wanted <= set(toys.FAMILIES)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="llama"):
        toys.twin("parrot", tmp_path / "x")
    with pytest.raises(UsageError, match="300"):
        toys.twin("llama", tmp_path / "x", vocab=10)
