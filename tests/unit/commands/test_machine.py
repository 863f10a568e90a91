"""The machine, what a build will take on it, and `knowhow doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from knowhow.cli import main
from knowhow.commands import machine, sizing
from knowhow.model.load import load
from knowhow.model.toys import twin
from knowhow.recipe import PhaseSpec, Recipe, TaskSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twin("llama", tmp_path_factory.mktemp("twin") / "llama")


def test_a_containers_limits_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert (machine.cores(tmp_path), machine.memory_total(tmp_path), machine.memory_free(tmp_path)) == (1, 1_000_000, 600_000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cores(tmp_path) == machine.cores(tmp_path / "absent")
    assert machine.memory_total(tmp_path) == machine.memory_total(tmp_path / "absent") > 10**8


def test_matmul_rate_is_plausible() -> None:
    assert 1e8 < machine.matmul_rate(torch.float32) < 1e16


def test_shape_by_headers_is_the_models(base: Path) -> None:
    found = sizing.shape(base, [PhaseSpec()])
    model = load(str(base)).model
    assert found.parameters == found.trained == sum(tensor.numel() for tensor in {id(t): t for t in model.parameters()}.values())
    assert (found.layers, found.width, found.vocabulary) == (2, 32, model.config.vocab_size)
    assert sizing.shape(base, [PhaseSpec(method="lora")]).trained < found.parameters


def test_rows_are_counted_and_extrapolated(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"some words {n:06d}", "label": "ab"[n % 2]}) + "\n" for n in range(3000)))
    recipe = Recipe.model_validate({"name": "a", "base": {"model": str(base)}, "data": {"train": str(path)}})
    load_ = sizing.rows(recipe, base)
    assert (load_.rows, load_.held_out) == (2400, 600)
    assert 5 < load_.tokens < 30
    monkeypatch.setattr(sizing, "SECONDS", 0.0)
    assert 3000 <= sizing.rows(recipe, base).rows + sizing.rows(recipe, base).held_out < 12_000


def test_foresee_makes_a_record(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"some words {n:06d}", "label": "ab"[n % 2]}) + "\n" for n in range(30)))
    recipe = Recipe.model_validate({"name": "a", "base": {"model": str(base)}, "data": {"train": str(path), "licence": "MIT"}})
    found, here, record = sizing.foresee(recipe, tmp_path / "runs")
    assert record["minutes"] == round(found.total_minutes, 1)
    assert here.disk_free > 0
    assert record["licences"]["licence"] is None
    assert "states no licence" in record["licences"]["note"]
    json.dumps(record)


def test_licence_of_a_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'cc-by-sa-4.0'\n---\n# license: mit\n")
    assert sizing.base_licence("x", tmp_path) == "cc-by-sa-4.0"
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert sizing.base_licence("x", tmp_path) is None
    assert sizing.base_licence("seedling", tmp_path) == "Apache-2.0"


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knowhow.commands.failures._settle", lambda debug: None)
    monkeypatch.setenv("KNOWHOW_SEDE", "3")
    assert main(["doctor", "--json"]) == 0
    checks = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert checks["torch"]["state"] == "ok"
    assert "GFLOP/s" in checks["bfloat16 matrix product"]["found"]
    assert "KNOWHOW_SEDE means nothing" in checks["environment"]["advice"]
    assert main(["doctor"]) == 0
    assert "KNOWHOW_SEDE" in capsys.readouterr().out


def test_a_channel_asks_for_each_label(base: Path) -> None:
    many = {"kind": "classify", "many": True}
    made = Recipe(name="x", task=many, data={"generate": {"domain": "malware", "train": 8, "valid": 4, "test": 4}}, adapt=[{"objective": "channel"}])
    assert sizing.rows(made, base).passes == 2 * 5
    assert sizing.rows(made.model_copy(update={"task": TaskSpec(**many, labels=["a", "b"])}), base).passes == 2 * 2
    assert sizing.rows(made.model_copy(update={"adapt": [PhaseSpec()]}), base).passes == 1
