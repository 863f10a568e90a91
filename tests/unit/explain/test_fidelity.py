"""What a dictionary keeps, against dictionaries that keep all or nothing, and against the arithmetic written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.data.batch import Rows, collate, rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary, Form
from knowhow.explain.features.fidelity import fidelity, neurons_between
from knowhow.explain.features.splice import label_loss, run, splice
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.model.loaded import Loaded
from knowhow.model.taps import Edit, tap

TRANSCODER = ("layers.1.mlp.in", "layers.1.mlp.out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.twin("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    return lively(load(str(folder)))


def lively(loaded: Loaded) -> Loaded:
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return loaded


def random_rows(count: int, seed: int = 0, labels: np.ndarray | None = None) -> Rows:
    random = np.random.default_rng(seed)
    return rows([random.integers(5, 300, random.integers(2, 12)).tolist() for _ in range(count)], [str(at) for at in range(count)], labels=labels)


def identity(site: str, width: int, skip: int = 0) -> Dictionary:
    """Each coordinate's positive and negative part are its features."""
    one = Dictionary(Form(site, site, width, width, 2 * width, "relu", 1, skip=skip))
    with torch.no_grad():
        both = torch.cat([torch.eye(width), -torch.eye(width)])
        one.encoder_FD.copy_(both)
        one.decoder_FE.copy_(both)
    return one.eval()


def silent(reads: str, writes: str, inputs: int = 32, outputs: int = 32) -> Dictionary:
    one = Dictionary(Form(reads, writes, inputs, outputs, 64, "relu", 1))
    with torch.no_grad():
        one.bias_F -= 1e6
    return one.eval()


@pytest.mark.parametrize("site", ["layers.0.resid_post", "layers.1.attn.z", "embed", "final"])
def test_an_identity_recovers_all_and_silence_nothing(site: str, model: Loaded) -> None:
    texts = random_rows(24)
    whole = fidelity(model, identity(site, 32), texts, draws=50)
    assert whole.dictionary.recovered.value == pytest.approx(1, abs=1e-5)
    assert whole.dictionary.unexplained.value == pytest.approx(0, abs=1e-9)
    assert whole.dictionary.cost.value == pytest.approx(0, abs=1e-5)
    assert whole.dictionary.active == pytest.approx(32, abs=0.1)
    assert whole.dead == 0
    assert whole.tokens == int(texts.offsets[-1])
    # as many coordinates as there are: nothing is lost by any baseline either
    for baseline in whole.baselines:
        assert baseline.unexplained.value == pytest.approx(0, abs=1e-6)
    nothing = fidelity(model, silent(site, site), texts, draws=50)
    assert nothing.dictionary.recovered.value == pytest.approx(0, abs=1e-12)
    assert nothing.dead == 1
    assert nothing.dictionary.active == 0
    assert nothing.zero - nothing.clean == pytest.approx(nothing.dictionary.cost.value)
    assert nothing.dictionary.unexplained.value > 0.9


def test_the_numbers_are_the_arithmetic_written_out(model: Loaded) -> None:
    texts, site, skip = random_rows(10), "layers.0.mlp.act", 1
    one = Dictionary(Form(site, site, 48, 48, 100, "topk", 5, skip=skip)).eval()
    found = fidelity(model, one, texts, draws=200)
    x, made, neurons, losses = [], [], [], {"clean": 0.0, "zero": 0.0, "made": 0.0, "neurons": 0.0}
    for row in range(len(texts)):
        tokens = torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))

        def after(value: torch.Tensor | None, tokens: torch.Tensor = tokens) -> float:
            edits = [] if value is None else [Edit(site, lambda v: torch.cat([v[:, :skip], value[None, skip:]], 1))]
            with torch.no_grad(), tap(model.model, edits=edits):
                logits = model.model(input_ids=tokens).logits[0]
            return float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum"))

        with torch.no_grad(), tap(model.model, site) as seen:
            model.model(input_ids=tokens)
        value_TD = seen[site][0]
        with torch.no_grad():
            code_TF = (value_TD @ one.encoder_FD.T).clamp_min(0)
            code_TF = torch.where(code_TF >= code_TF.topk(5, 1).values[:, -1:], code_TF, 0.0)
            made_TD = code_TF @ one.decoder_FE
        kept_TD = torch.where(value_TD.abs() >= value_TD.abs().topk(5, 1).values[:, -1:], value_TD, 0.0)
        for name, stand_in in (("clean", None), ("zero", 0 * value_TD), ("made", made_TD), ("neurons", kept_TD)):
            losses[name] += after(stand_in)
        for into, part in ((x, value_TD), (made, made_TD), (neurons, kept_TD)):
            into.append(part[skip:])
    spread = (torch.cat(x) - torch.cat(x).mean(0)).square().sum()
    units = int(texts.offsets[-1]) - len(texts)
    assert found.clean == pytest.approx(losses["clean"] / units, rel=1e-4)
    assert found.zero == pytest.approx(losses["zero"] / units, rel=1e-4)
    for kept, values, name in ((found.dictionary, made, "made"), (found.baselines[0], neurons, "neurons")):
        assert kept.unexplained.value == pytest.approx(float((torch.cat(x) - torch.cat(values)).square().sum() / spread), rel=1e-3)
        assert kept.cost.value == pytest.approx((losses[name] - losses["clean"]) / units, rel=1e-3, abs=1e-4)
        want = (losses["zero"] - losses[name]) / (losses["zero"] - losses["clean"])
        assert kept.recovered.value == pytest.approx(want, rel=1e-2, abs=1e-3)
        assert kept.cost.low <= kept.cost.value <= kept.cost.high
    lead = found.baselines[0].lead
    assert lead is not None
    assert lead.value == pytest.approx(found.dictionary.cost.value - found.baselines[0].cost.value, abs=1e-9)
    assert found.dictionary.lead is None


def test_a_transcoder_stands_for_its_mlp_and_is_set_beside_the_neurons_between(model: Loaded) -> None:
    texts = random_rows(8)
    one = Dictionary(Form(*TRANSCODER, 32, 32, 64, "topk", 6)).eval()
    assert neurons_between(one) == "layers.1.mlp.act"
    found = fidelity(model, one, texts, draws=20)
    mlp, total, units = model.model.model.layers[1].mlp, 0.0, 0
    handle = mlp.register_forward_hook(lambda module, args, output: one(args[0].flatten(0, 1)).view_as(output))
    error, spread = 0.0, []
    for row in range(len(texts)):
        tokens = torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))
        with torch.no_grad():
            logits = model.model(input_ids=tokens).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum"))
        units += tokens.shape[1] - 1
    handle.remove()
    for row in range(len(texts)):
        tokens = torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))
        with torch.no_grad(), tap(model.model, *TRANSCODER) as seen:
            model.model(input_ids=tokens)
            error += float((seen[TRANSCODER[1]][0] - one(seen[TRANSCODER[0]][0])).square().sum())
        spread.append(seen[TRANSCODER[1]][0])
    assert found.dictionary.cost.value == pytest.approx(total / units - found.clean, abs=1e-4)
    want = error / float((torch.cat(spread) - torch.cat(spread).mean(0)).square().sum())
    assert found.dictionary.unexplained.value == pytest.approx(want, rel=1e-3)
    # six of the neurons between: less is unexplained than by zeros, more than nothing
    assert 0 < found.baselines[0].unexplained.value < 1
    assert neurons_between(Dictionary(Form("layers.0.mlp.in", "layers.1.mlp.out", 4, 4, 64))) == "layers.1.mlp.out"


def test_padding_and_skipped_positions_stay(model: Loaded) -> None:
    texts, site = random_rows(6), "layers.0.resid_post"
    batch = collate(texts, np.arange(6), pad=model.tokenizer.pad_token_id, language_model=True)
    real_BT = batch.mask_BT.clone()
    real_BT[:, :2] = False
    _, clean_BTD = run(model, batch, (), site)
    _, made_BTD = run(model, batch, splice(site, site, torch.zeros_like, real_BT), site)
    assert clean_BTD is not None
    assert made_BTD is not None
    assert torch.equal(made_BTD, torch.where(real_BT[..., None], 0.0, clean_BTD))


@pytest.mark.parametrize("many", [False, True])
def test_a_classifier_is_measured_by_its_own_loss(many: bool, folder: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (20, 3)).astype(np.float32) if many else np.random.default_rng(0).integers(0, 3, 20)
    texts = random_rows(20, labels=labels)
    loaded = lively(load(str(folder), head="classifier", labels=("a", "b", "c"), many=many))
    found = fidelity(loaded, identity("layers.0.resid_post", 32), texts, draws=20)
    total = 0.0
    for row in range(20):
        tokens = torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))
        with torch.no_grad():
            logits_C = loaded.model(input_ids=tokens).logits[0]
        if many:
            total += float(torch.nn.functional.binary_cross_entropy_with_logits(logits_C, torch.tensor(labels[row]), reduction="sum"))
        else:
            total += float(torch.nn.functional.cross_entropy(logits_C, torch.tensor(labels[row])))
    assert found.clean == pytest.approx(total / 20, rel=1e-4)
    assert found.dictionary.cost.value == pytest.approx(0, abs=1e-5)
    twice = fidelity(
        loaded,
        identity("layers.0.resid_post", 32),
        texts,
        loss=lambda logits, batch: (2 * label_loss(logits, batch)[0], label_loss(logits, batch)[1]),
        draws=20,
    )
    assert twice.clean == pytest.approx(2 * found.clean)


def test_what_cannot_be_measured_is_refused(model: Loaded, folder: Path) -> None:
    with pytest.raises(UsageError, match="32 and 32"):
        fidelity(model, identity("layers.0.resid_post", 16), random_rows(3))
    with pytest.raises(UsageError, match="0 rows"):
        fidelity(model, identity("embed", 32), rows([], []))
    with pytest.raises(UsageError, match="regressor"):
        fidelity(load(str(folder), head="regressor"), identity("embed", 32), random_rows(3))
    with pytest.raises(UsageError, match="without labels"):
        fidelity(load(str(folder), head="classifier", labels=("a", "b")), identity("embed", 32), random_rows(3))
