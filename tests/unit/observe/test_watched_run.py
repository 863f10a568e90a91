"""The observers of a study, each against brute force, and none of them leaves a trace in the run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowhow.adapt.lm import NextToken
from knowhow.experiments.language import decoder, next_token
from knowhow.experiments.system import Drawn
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.maths import ngram
from knowhow.maths.spectra import kurtosis, participation, spread
from knowhow.observe import every, observer
from knowhow.observe.ngrams import NGrams, tables
from knowhow.observe.outliers import Outliers
from knowhow.observe.probes import Probes, scores
from knowhow.observe.sparsity import Sparsity, sparsity
from knowhow.observe.spectra import Spectra
from knowhow.observe.tokens import TokenLosses, bands, kind_of, losses, shown_before
from knowhow.types import Batch, StepInfo

VOCAB = 24


def drawn(generator: torch.Generator) -> Batch:
    return next_token(torch.randint(VOCAB, (4, 17), generator=generator))


def looked(model: torch.nn.Module, batch: Batch, step: int = 1) -> StepInfo:
    return StepInfo(step, 0, 0.0, {}, 0.0, 0.0, model, [batch])


def labelled(rows: int = 40) -> Batch:
    tokens_BT = torch.randint(VOCAB, (rows, 9), generator=torch.Generator().manual_seed(3))
    tokens_BT[:, -1] = torch.arange(rows) % 2
    return Batch(tokens_BT, torch.ones_like(tokens_BT), labels=tokens_BT[:, -1].clone())


def dropping() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, attention_dropout=0.2
    )  # fmt: skip
    return LlamaForCausalLM(config)


def watched(names: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor, list]:
    model = dropping()
    valid = [drawn(torch.Generator().manual_seed(9))]
    stream = torch.randint(VOCAB, (500,), generator=torch.Generator().manual_seed(1)).numpy()
    look = every(1)
    observers = [
        TokenLosses(look, valid, strings=["a"] * VOCAB, counts=np.arange(VOCAB)), Spectra(look), Sparsity(look), Outliers(look, valid),
        Probes(look, [labelled()]), NGrams(look, {"text": tables(stream, VOCAB, valid, places=20)}),
    ]  # fmt: skip
    torch.manual_seed(5)
    run = train(model, NextToken(), Drawn(drawn, 0), Optim(model, OptimSpec(1e-3)), lambda _: 1.0, LoopSpec(3), observers if names else [])
    list(run)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, torch.get_rng_state(), observers


def test_nothing_in_the_run_shows_that_it_was_watched():
    with_weights, with_random, observers = watched(True)
    without_weights, without_random, _ = watched(False)
    assert all(torch.equal(with_weights[name], weight) for name, weight in without_weights.items())
    assert torch.equal(with_random, without_random)
    for one in observers:
        assert [row["step"] for row in one.rows()] == [1, 2, 3], one.name
        assert all(name == "step" or name.startswith(f"{one.name}.") for row in one.rows() for name in row)
        assert all(np.isfinite(value) for row in one.rows() for value in row.values()), one.name


@pytest.mark.parametrize("name", ["tokens", "spectra", "sparsity", "outliers", "probes"])
def test_observers_are_made_by_name(name):
    assert observer(name, {"looks": 5}, 100).name == name


def test_spread_against_its_definition():
    torch.manual_seed(0)
    matrix = torch.randn(7, 5)
    values = torch.linalg.svdvals(matrix.double())
    found = spread(matrix)
    shares = values / values.sum()
    assert found.norm == pytest.approx(float(values.square().sum().sqrt()), rel=1e-5)
    assert found.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-5)
    assert found.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)
    assert spread(torch.eye(4)).stable_rank == pytest.approx(4)
    assert spread(torch.ones(4, 3)).effective_rank == pytest.approx(1, abs=1e-4)
    assert spread(torch.zeros(3, 3)).stable_rank == 0
    assert spread(matrix * 1e25).stable_rank == pytest.approx(found.stable_rank, rel=1e-5)
    assert np.isnan(spread(torch.full((2, 2), float("nan"))).norm)


def test_spectra_of_gradient_and_update():
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    batch = drawn(torch.Generator().manual_seed(0))
    look = Spectra(every(1))
    NextToken()(model, batch)[0].backward()
    look.before(looked(model, batch))
    weight = model.model.layers[1].mlp.down_proj.weight
    gradient = weight.grad.clone()
    with torch.no_grad():
        weight.add_(torch.outer(torch.arange(16.0), torch.ones(32)))
    look.after(looked(model, batch))
    (row,) = look.rows()
    assert row["spectra.layers.1.mlp.down_proj.gradient.norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert row["spectra.layers.1.mlp.down_proj.update.stable_rank"] == pytest.approx(1, abs=1e-4)
    assert row["spectra.layers.0.mlp.down_proj.update.norm"] == 0
    assert not [name for name in row if "embed" in name or "lm_head" in name]


def test_sparsity_by_hand():
    values = torch.tensor([[0.0, 0.0, 3.0, 4.0], [0.0, 0.01, 5.0, 0.0]])
    found = sparsity(values, 0.1)
    assert found["zero"] == pytest.approx(4 / 8)
    assert found["small"] == pytest.approx(5 / 8)
    energies = values.double().square()
    one_by_one = [float(row.sum() ** 2 / (4 * row.square().sum())) for row in energies]
    assert found["active"] == pytest.approx(sum(one_by_one) / 2)
    mean = energies.mean(0)
    assert found["neurons"] == pytest.approx(float(mean.sum() ** 2 / (4 * mean.square().sum())))
    assert float(participation(torch.zeros(4))) == 0
    assert float(participation(torch.ones(4))) == pytest.approx(1)


def test_a_dead_layer_is_seen_as_zero():
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    look = Sparsity(every(1))
    look.after(looked(model, drawn(torch.Generator().manual_seed(0))))
    (row,) = look.rows()
    assert row["sparsity.layers.1.zero"] == 1
    assert row["sparsity.layers.0.zero"] == 0
    assert 0.05 < row["sparsity.layers.0.mlp.gate_proj.weights"] < 0.11


def test_kurtosis_and_the_stream():
    torch.manual_seed(0)
    assert kurtosis(torch.randn(200_000)) == pytest.approx(3, abs=0.05)
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    batch = drawn(torch.Generator().manual_seed(0))
    look = Outliers(every(1), rows=2)
    look.after(looked(model, batch))
    with torch.no_grad():
        states = model(input_ids=batch.tokens_BT[:2], output_hidden_states=True).hidden_states
    (row,) = look.rows()
    assert row["outliers.layers.0.largest"] == pytest.approx(float(states[1].abs().max()), rel=1e-5)
    assert row["outliers.layers.0.kurtosis"] == pytest.approx(kurtosis(states[1]), rel=1e-4)


def test_probes_read_what_is_there_and_shuffled_labels_do_not():
    torch.manual_seed(0)
    labels = torch.arange(80) % 3
    features = {0: torch.randn(80, 6), 1: torch.nn.functional.one_hot(labels, 3).float() + 0.01 * torch.randn(80, 3)}
    row = scores(features, labels, 1e-2)
    assert row["probes.layers.1.score"] == 1
    assert row["probes.layers.0.score"] < 0.7
    assert row["probes.layers.1.shuffled"] < 0.8  # three classes, 40 rows
    numbers = features[1][:, 0] * 2 + 1
    assert scores(features, numbers, 1e-4)["probes.layers.1.score"] > 0.99
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    look = Probes(every(1), [labelled()])
    look.after(looked(model, drawn(torch.Generator().manual_seed(0))))
    assert look.rows()[0]["probes.layers.0.score"] == 1
    silent = Probes(every(1))
    silent.after(looked(model, drawn(torch.Generator().manual_seed(0))))
    assert not silent.rows()


def test_what_a_row_has_shown_before():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(6, (5, 30), generator=generator)
    repeated, copied = shown_before(whole[:, :-1], whole[:, 1:])
    for row in range(5):
        tokens = whole[row].tolist()
        for at in range(29):
            assert bool(repeated[row, at]) == (tokens[at + 1] in tokens[: at + 1])
            pairs = list(itertools.pairwise(tokens[: at + 1]))
            assert bool(copied[row, at]) == ((tokens[at], tokens[at + 1]) in pairs)


def test_losses_by_class_add_up():
    model = decoder(0, vocab=VOCAB, width=16, heads=2)
    batch = drawn(torch.Generator().manual_seed(0))
    batch.targets_BT[0, 5:] = -100
    strings = [" a", "b", "7", ";", "\n", "x1"] * 4
    look = TokenLosses(every(1), [batch], strings, np.arange(VOCAB))
    look.after(looked(model, batch))
    (row,) = look.rows()
    with torch.no_grad():
        nll = losses(model, batch)
    real = batch.targets_BT != -100
    assert row["tokens.loss.all"] == pytest.approx(float(nll[real].mean()))
    words = real & torch.isin(batch.targets_BT % 6, torch.tensor([0, 1]))
    assert row["tokens.loss.word"] == pytest.approx(float(nll[words].mean()))
    for names in (("repeated", "first"), ("copied", "fresh"), ("space", "word", "number", "punctuation", "other"), ("common", "middling", "rare")):
        assert sum(row[f"tokens.share.{name}"] for name in names) == pytest.approx(1)
        assert sum(row[f"tokens.share.{n}"] * row.get(f"tokens.loss.{n}", 0) for n in names) == pytest.approx(row["tokens.loss.all"])


def test_kinds_and_bands():
    assert [kind_of(text) for text in (" the", "\n ", "12", " ,", "x9", "\ufffd", "")] == ["word", "space", "number", "punctuation", "other", "other", "other"]
    assert bands(np.array([1, 60, 30, 9])).tolist() == [2, 0, 1, 2]


def test_tables_are_distributions_and_agree_with_the_losses():
    random = np.random.default_rng(0)
    stream = random.integers(0, VOCAB, 400)
    text = random.integers(0, VOCAB, 40)
    for order in (1, 2, 3):
        gram = ngram.fit(stream, VOCAB, order=order)
        shares = ngram.following(gram, text, np.arange(39))
        assert shares.sum(1) == pytest.approx(np.ones(39))
        assert -np.log(shares[np.arange(39), text[1:]]) == pytest.approx(ngram.losses(gram, text)[1:])
        assert ngram.following(gram, stream[:60], np.array([58]))[0, stream[59]] == pytest.approx(np.exp(-ngram.losses(gram, stream[:60])[59]))


def test_a_model_that_is_the_bigram_has_no_distance_from_it():
    random = np.random.default_rng(1)
    stream = random.integers(0, VOCAB, 3000) // 2 * 2
    batch = next_token(torch.from_numpy(random.integers(0, VOCAB, (3, 21))))
    made = tables(stream, VOCAB, [batch], places=30)
    gram = ngram.fit(stream, VOCAB, order=2)
    logits = torch.stack([torch.from_numpy(np.log(ngram.following(gram, row.numpy(), np.arange(20)))) for row in batch.tokens_BT]).float()

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return type("Output", (), {"logits": logits})

    look = NGrams(every(1), {"text": made})
    look.after(looked(Table(), batch))
    (row,) = look.rows()
    assert row["ngrams.text.kl.2"] == pytest.approx(0, abs=1e-5)
    assert row["ngrams.text.kl.1"] > 1e-3
    assert row["ngrams.text.top.2"] == 1
    assert row["ngrams.text.loss"] == pytest.approx(row["ngrams.text.loss.2"], rel=1e-4)
