from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from knowhow.evaluate import cost


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 4, bias=False)
        self.b = torch.nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.c = torch.nn.Linear(4, 2, dtype=torch.bfloat16).requires_grad_(False)


def test_tied_weights_count_once() -> None:
    assert cost.size(Tied()) == {"parameters": 16 + 10, "trainable": 16, "bytes": 64 + 20}


def test_folder_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"12")
    assert cost.folder_bytes(tmp_path) == 5


def test_throughput_and_latency_are_measured_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def call(rows: Sequence[str]) -> None:
        calls.append(len(rows))
        time.sleep(0.002)

    monkeypatch.setattr(cost, "RAPL", Path("nowhere"))
    speed = cost.throughput(call, [["a", "b"], ["c"]], [10, 5])
    assert calls == [2, 2, 1]
    assert speed["rows"] == 3
    assert speed["tokens_per_second"] == pytest.approx(15 / speed["seconds"])
    assert speed["seconds"] >= 0.004
    assert "joules" not in speed
    slow = cost.latency(call, ["a"] * 5)
    assert slow["n"] == 5
    assert 2 <= slow["latency_ms_p50"] <= slow["latency_ms_p90"] <= slow["latency_ms_p99"]


def test_energy_of_a_counter_that_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("90000000")
    (zone / "max_energy_range_uj").write_text("99999999")
    monkeypatch.setattr(cost, "RAPL", tmp_path)
    speed = cost.throughput(lambda rows: (zone / "energy_uj").write_text("10000000"), [["a"], ["b"]], [1, 1], warmup=0)
    assert speed["joules"] == pytest.approx(20)
    assert speed["joules_per_row"] == pytest.approx(10)
    (zone / "energy_uj").write_text("not a number")
    assert "joules" not in cost.throughput(lambda rows: None, [["a"]], [1])


def test_peak_memory_is_plausible() -> None:
    assert 50e6 < cost.peak_memory() < 1e12
