"""The loop: exact resume, observers that change nothing, microbatches that add up, two processes that equal one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import TokenBudget, rows
from knowhow.data.windows import even_windows
from knowhow.loop import checkpoint
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.observe.life import Life
from knowhow.types import StepInfo


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def stream() -> TokenBudget:
    random = np.random.default_rng(0)
    lists = [random.integers(1, 64, size=random.integers(3, 30)).tolist() for _ in range(60)]
    return TokenBudget(rows(lists, [str(i) for i in range(60)]), 256, 64, pad=0, seed=0, language_model=True)


def run(steps: int, *, observers=(), muon: float | None = None, stop: int = 0, folder: Path | None = None) -> tuple[list[float], LlamaForCausalLM]:
    model, batches = tiny(), stream()
    optim = Optim(model, OptimSpec(1e-2, weight_decay=0.1, muon_lr=muon))
    start = 0
    if folder is not None and (done := checkpoint.find(folder)):
        checkpoint.restore(folder, model, optim)
        batches.restore(done["batches"])
        start = done["step"]
    losses = []
    for info in train(model, NextToken(), batches, optim, schedule("wsd", steps, warmup=0.1), LoopSpec(steps, start, precision="float32"), observers):
        losses.append(info.loss)
        if info.step == stop:
            checkpoint.save(folder, model, optim, {"step": info.step, "batches": batches.state()})
            break
    return losses, model


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_loss_falls():
    losses, _ = run(30)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("muon", [None, 0.01])
def test_resume_ends_in_the_same_bytes(tmp_path, muon):
    whole, model = run(12, muon=muon)
    first, _ = run(12, muon=muon, stop=5, folder=tmp_path / "c")
    second, resumed = run(12, muon=muon, folder=tmp_path / "c")
    assert whole == first + second
    assert torch.equal(weights(model), weights(resumed))


def test_a_kill_between_the_two_renames_of_a_checkpoint_loses_nothing(tmp_path):
    run(12, stop=5, folder=tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / "c.old")
    assert checkpoint.find(tmp_path / "c")["step"] == 5


def test_observers_change_nothing():
    valid = {"x": even_windows(np.arange(200, dtype=np.uint16) % 64, 32)}
    life = Life(10, valid, "float32")
    plain, model = run(10)
    watched, other = run(10, observers=[life])
    assert plain == watched
    assert torch.equal(weights(model), weights(other))
    assert {row["step"] for row in life.rows()} == {step for step in life.steps if step <= 10}


@torch.no_grad()
def test_microbatches_add_up_to_the_step():
    model, objective = tiny(), NextToken()
    micro = next(iter(stream()))
    assert len(micro) > 2
    ours = sum(float(objective(model, batch)[0]) for batch in micro) / sum(objective.units(batch) for batch in micro)
    theirs, tokens = 0.0, 0
    for batch in micro:
        logits = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT.long()).logits
        theirs += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), reduction="sum"))
        tokens += int((batch.targets_BT >= 0).sum())
    assert ours == pytest.approx(theirs / tokens, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    class Broken:
        name = "broken"

        def __call__(self, model, batch):
            return model.get_output_embeddings().weight.sum() * float("nan"), {}

        def units(self, batch):
            return 1.0

    model = tiny()
    before = weights(model)
    with pytest.raises(FloatingPointError, match="step 1"):
        next(train(model, Broken(), stream(), Optim(model, OptimSpec(1e-2)), schedule("constant", 3, warmup=0), LoopSpec(3, precision="float32")))
    assert torch.equal(before, weights(model))


def test_step_info_counts_tokens_without_padding():
    model, batches = tiny(), stream()
    optim = Optim(model, OptimSpec(1e-3))
    infos: list[StepInfo] = list(train(model, NextToken(), batches, optim, schedule("constant", 2, warmup=0), LoopSpec(2, precision="float32")))
    assert infos[-1].tokens_seen == sum(int(batch.mask_BT.sum()) for info in infos for batch in info.batches)
    assert infos[-1].tokens_seen < sum(batch.mask_BT.numel() for info in infos for batch in info.batches)


TWO = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_step import stream, tiny
from knowhow.adapt.lm import NextToken
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.loop.world import start_world
world = start_world()
model = tiny()
spec = LoopSpec(6, precision="float32", world=world)
losses = [i.loss for i in train(model, NextToken(), stream(), Optim(model, OptimSpec(1e-2)), schedule("constant", 6, warmup=0), spec)]
if world.first:
    print(json.dumps(losses))
"""


def test_two_processes_give_the_losses_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", str(script), str(Path(__file__).parent)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    one = subprocess.run([sys.executable, str(script), str(Path(__file__).parent)], capture_output=True, text=True, timeout=300)
    two_losses, one_losses = json.loads(out.stdout.strip().splitlines()[-1]), json.loads(one.stdout.strip().splitlines()[-1])
    assert np.allclose(two_losses, one_losses, atol=1e-5)
