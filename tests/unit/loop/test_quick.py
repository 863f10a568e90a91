"""What makes the loop quick changes nothing that it should not: memory kept by the process, bf16 weights made once a step, attention in tiles."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from test_step import stream, tiny

from knowhow.adapt.lm import NextToken
from knowhow.loop import machine, step
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.maths.attention import BlockAttention

FAULTS = """
import resource, threading, torch
from knowhow.loop.machine import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**22).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
kept = keep_memory()
faults()
print(kept, without, faults())
made = []
worker = threading.Thread(target=lambda: made.append(torch.zeros(2**28, dtype=torch.uint8).numel()))
worker.start(); worker.join()
assert made == [2**28]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_memory_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept, without, after = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library")
    assert int(without) > 1000
    assert int(after) < int(without) / 10


def test_nothing_is_set_where_the_allocator_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert machine.keep_memory() is False


def losses(attention: str, steps: int = 8) -> list[float]:
    model = tiny()
    loop = train(model, NextToken(), stream(), Optim(model, OptimSpec(1e-2)), lambda at: 1.0, LoopSpec(steps, precision="bf16", attention=attention))
    return [info.loss for info in loop]


def test_attention_in_tiles_learns_as_torch_s_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "quick_attention", lambda device: BlockAttention())
    ours, theirs = losses("auto"), losses("torch")
    assert ours != theirs
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours == losses("auto")


def test_asked_for_torch_s_the_loop_never_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses("torch")
    monkeypatch.setattr(step, "quick_attention", lambda device: pytest.fail("asked for"))
    assert losses("torch") == plain


@pytest.mark.parametrize(("bf16", "tiles", "expected"), [(True, False, BlockAttention), (True, True, nullcontext), (False, False, nullcontext)])
def test_tiles_are_for_processors_that_gain_by_them(bf16: bool, tiles: bool, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert type(machine.quick_attention("cpu")) is expected
    assert type(machine.quick_attention("cuda")) is nullcontext


def test_weights_cast_once_a_step_give_the_gradients_of_weights_cast_each_time() -> None:
    micro, objective = next(iter(stream())), NextToken()
    once, each = tiny(), tiny()
    spec = LoopSpec(1, precision="bf16", attention="torch")
    sums = step._accumulate(once, objective, micro, 100.0, spec)
    total = 0.0
    for batch in micro:
        with step.autocast("cpu", "bf16"):
            loss, _ = objective(each, batch)
        (loss / 100.0).backward()
        total += loss.item()
    assert sums["loss"] == total
    for mine, other in zip(once.parameters(), each.parameters()):
        assert torch.equal(mine.grad, other.grad)


def test_the_casts_of_one_step_are_forgotten_before_the_next() -> None:
    micro, objective, model = next(iter(stream())), NextToken(), tiny()
    spec = LoopSpec(1, precision="bf16", attention="torch")
    first = step._accumulate(model, objective, micro, 1.0, spec)["loss"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert step._accumulate(model, objective, micro, 1.0, spec)["loss"] != first


def test_bf16_is_used_on_request_or_where_the_processor_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(step, "has_bf16", lambda device, has=has: has)
        assert [step.uses_bf16("cpu", precision) for precision in ("auto", "float32", "bf16")] == [has, False, True]
