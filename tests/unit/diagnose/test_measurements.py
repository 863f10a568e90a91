"""Measurements of a base on models whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.adapt.classify import Classify
from knowhow.data.batch import rows
from knowhow.diagnose import gradients, layers, line, outliers, probes
from knowhow.diagnose.subject import Subject, at_rest, plain_loss, shuffled
from knowhow.errors import UsageError
from knowhow.experiments.system import CrossEntropy, numbers
from knowhow.maths.linear import fit, score_of
from knowhow.model import load, toys
from knowhow.stages import diagnose as diagnosis
from knowhow.types import Batch


def toy(count: int = 6, rows: int = 40, noise: float = 0.0, seed: int = 0) -> Subject:
    """A linear classifier of two classes told apart by the first feature."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False))
    batches = []
    for _ in range(count):
        labels = torch.randint(2, (rows,))
        inputs = torch.randn(rows, 4) * 0.3
        inputs[:, 0] += 2.0 * labels - 1
        flip = torch.rand(rows) < noise
        batches.append(numbers(inputs, torch.where(flip, 1 - labels, labels)))
    return Subject(model, CrossEntropy(), batches[: count // 2], batches[count // 2 :])


def test_the_mean_gradient_is_that_of_all_rows_and_its_signal_is_unbiased() -> None:
    subject = toy(count=40)
    found = gradients.gradients(subject)
    whole = numbers(torch.cat([b.tokens_BT for b in subject.batches]), torch.cat([b.labels for b in subject.batches]))
    loss = subject.objective(subject.model, whole)[0] / len(whole.tokens_BT)
    expected = torch.autograd.grad(loss, list(subject.model.parameters()))
    for got, want in zip(found.mean.values(), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    truth = sum(float(g.square().sum()) for g in expected)
    assert sum(found.signal.values()) == pytest.approx(truth, rel=0.15)
    assert sum(found.square.values()) > sum(found.signal.values())


def test_shuffled_labels_leave_little_of_the_pull() -> None:
    subject = toy(count=40)
    first = gradients.gradients(subject)
    rows = gradients.pull(subject, first, gradients.spectra(first))
    signal = sum(m.value for m in rows if m.metric == "gradient.signal")
    other = sum(m.value for m in rows if m.metric == "gradient.shuffled")
    assert other < 0.2 * signal


def test_the_noise_scale_is_trace_over_square() -> None:
    subject = toy(count=60, rows=10)
    found = gradients.gradients(subject)
    scale = next(m.value for m in gradients.noise(found, 30) if m.metric == "noise.scale")
    each = [
        torch.cat([g.flatten() for g in torch.autograd.grad(plain(subject, batch, row), list(subject.model.parameters()))])
        for batch in subject.batches
        for row in range(10)
    ]
    per_row = torch.stack(each)
    direct = float(per_row.var(0).sum() / per_row.mean(0).square().sum())
    assert scale == pytest.approx(direct, rel=0.4)


def plain(subject: Subject, batch: Batch, row: int) -> torch.Tensor:
    return subject.objective(subject.model, numbers(batch.tokens_BT[row : row + 1], batch.labels[row : row + 1]))[0]


def test_zero_gradients_are_an_error_and_not_a_plan() -> None:
    subject = toy()
    with torch.no_grad():
        for p in subject.model.parameters():
            p.zero_()
    with pytest.raises(UsageError, match="zero"):
        gradients.gradients(subject)


def test_weights_and_random_state_are_what_they_were() -> None:
    subject = toy()
    before = [p.detach().clone() for p in subject.model.parameters()]
    random = torch.get_rng_state()
    with at_rest(subject.model):
        found = gradients.gradients(subject)
        gradients.pull(subject, found, gradients.spectra(found))
        line.along_signs(subject, found)
        torch.rand(3)
    assert all(torch.equal(p, old) for p, old in zip(subject.model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in subject.model.parameters())


def test_the_ceiling_is_where_the_loss_comes_back() -> None:
    assert line.crossing([1e-3, 1e-2, 1e-1], [-0.1, -0.2, 0.2]) == pytest.approx(math.sqrt(1e-3))
    assert line.crossing([1e-3, 1e-2, 1e-1], [-0.1, -0.2, -0.3]) is None
    assert line.crossing([1e-3, 1e-2, 1e-1], [0.1, 0.2, 0.3]) is None
    assert line.crossing([1e-3, 1e-2, 1e-1], [-0.1, 0.1, -0.1]) is None, "a rise that does not last is no ceiling"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[load.Loaded, list[Batch], Classify]:
    loaded = load.load(str(toys.twin("llama", tmp_path_factory.mktemp("diagnosed") / "llama")), head="classifier", labels=("a", "b"))
    random = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(5, 300, (24, 12), generator=random)
    labels = (tokens_BT[:, -1] > 150).long()
    mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return loaded, [Batch(tokens_BT[at : at + 8], mask_BT[at : at + 8], labels=labels[at : at + 8]) for at in (0, 8, 16)], Classify()


def test_a_layer_that_writes_nothing_costs_nothing(classifier: tuple[load.Loaded, list[Batch], Classify]) -> None:
    loaded, batches, objective = classifier
    block = loaded.model.model.layers[1]
    kept = block.self_attn.o_proj.weight.detach().clone(), block.mlp.down_proj.weight.detach().clone()
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    found = {m.site: m.value for m in layers.skips(loaded.model, objective, batches, metric="skip.task")}
    turned = {m.site: m.value for m in layers.turns(loaded.model, batches[0])}
    with torch.no_grad():
        block.self_attn.o_proj.weight.copy_(kept[0])
        block.mlp.down_proj.weight.copy_(kept[1])
    assert found["layers.1"] == pytest.approx(0.0, abs=1e-6)
    assert found["layers.0"] != pytest.approx(0.0, abs=1e-6)
    assert turned["layers.1"] == pytest.approx(0.0, abs=1e-6)
    assert turned["layers.0"] > 1e-4


def test_sinks_and_tails_count_what_is_there(classifier: tuple[load.Loaded, list[Batch], Classify]) -> None:
    loaded, batches, _ = classifier
    found = outliers.sinks(loaded.model, batches[0])
    assert all(0 < m.value < 1 for m in found if m.metric == "sink.attention")
    tails = outliers.tails(loaded.model, batches[0])
    assert all(1 < m.value < 60 for m in tails if m.metric == "outlier.kurtosis")


def test_probes_read_what_is_there_and_not_what_is_shuffled(classifier: tuple[load.Loaded, list[Batch], Classify]) -> None:
    loaded, batches, _ = classifier
    seen = probes.features(loaded.model, batches, head=loaded.model.score, encoder=False)
    expected = loaded.model(input_ids=batches[0].tokens_BT).logits
    assert torch.allclose(loaded.model.score(seen.final_ND[:8]), expected, atol=1e-5), "the features are what the head reads"
    reader = fit(seen.final_ND, seen.labels, "one", 2)
    assert score_of(reader(seen.final_ND), seen.labels, "one") == 1.0
    rows = probes.growth(seen, seen, "one", 2)
    losses = [m.value for m in rows if m.metric == "growth.loss"]
    assert losses[-1] < losses[0]


def test_shuffling_keeps_inputs_and_multiset_of_labels(classifier: tuple[load.Loaded, list[Batch], Classify]) -> None:
    _, batches, _ = classifier
    for batch, other in zip(batches, shuffled(batches), strict=True):
        assert torch.equal(batch.tokens_BT, other.tokens_BT)
        assert torch.equal(batch.labels.sort().values, other.labels.sort().values)


def test_plain_loss_weighs_batches_by_their_units(classifier: tuple[load.Loaded, list[Batch], Classify], tmp_path: Path) -> None:
    loaded, batches, objective = classifier
    with torch.no_grad():
        whole = sum(float(objective(loaded.model, batch)[0]) for batch in batches) / 24
    assert plain_loss(loaded.model, objective, batches) == pytest.approx(whole, rel=1e-5)


def test_a_class_that_few_rows_do_not_show_is_rare_and_not_impossible() -> None:
    shares = probes.smoothed(torch.tensor([0, 0, 1]), "one", 4)
    assert torch.allclose(shares.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(shares.mean(0), torch.tensor([2.25, 1.25, 0.25, 0.25], dtype=torch.float64) / 4)
    many = probes.smoothed(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "many", 2)
    assert torch.allclose(many[0], torch.tensor([2.5, 0.5], dtype=torch.float64) / 3)


def test_probes_read_rows_that_no_gradient_saw_each_once() -> None:
    made = rows([[1] * (5 + at % 7) for at in range(200)], [f"r{at}" for at in range(200)], labels=np.arange(200) % 2)
    seen = diagnosis.some(made, 0, 0, False, 64)
    read = [row for batch in diagnosis.unread(made, seen, 0, 0, 300) for row in batch.ids]
    assert len(read) == len(set(read))
    assert not {row for batch in seen for row in batch.ids} & set(read)
    assert 250 < sum(5 + int(row[1:]) % 7 for row in read) <= 300
    few = rows([[1] * 5 for _ in range(6)], [f"r{at}" for at in range(6)], labels=np.arange(6) % 2)
    assert len([row for batch in diagnosis.unread(few, diagnosis.some(few, 0, 0, False, 64), 0, 0, 300) for row in batch.ids]) == 6


def test_answers_move_by_the_divergence_of_what_was_said() -> None:
    before, after = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    p, q = 0.5, 1 / (1 + math.exp(-1.0))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert layers.divergence(before, after, many=False).tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    assert layers.divergence(before, after, many=True).tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    assert layers.divergence(before[:, :1], after[:, :1], many=False).tolist() == pytest.approx([0.5, 0.0])


def test_a_layer_that_does_nothing_moves_nothing(tmp_path) -> None:
    loaded = load.load(str(toys.twin("llama", tmp_path / "llama")), head="classifier", labels=("a", "b"), seed=3)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "layers.1." in name and name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    batch = Batch(torch.arange(5, 45).view(4, 10), torch.ones(4, 10, dtype=torch.bool))
    found = {m.site: m.value for m in layers.shifts(loaded.model, [batch], many=False, metric="skip.shift")}
    assert found["layers.1"] == pytest.approx(0.0, abs=1e-12)
    assert found["layers.0"] > 1e-9
