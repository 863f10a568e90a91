"""Where features are strongest and what they go with, against searches by hand and labels that were planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from knowhow.data.batch import Rows, rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary, Form
from knowhow.explain.features.examples import Basis, associate, auc, examples, features_of, neurons_beside, neurons_of, survey
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.model.loaded import Loaded
from knowhow.model.taps import tap

SITE = "layers.0.resid_post"


@pytest.fixture(scope="module", params=["llama", "bert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(str(toys.twin(request.param, tmp_path_factory.mktemp(request.param))))


def random_rows(count: int, groups: tuple[str, ...] = ()) -> Rows:
    random = np.random.default_rng(0)
    return rows([random.integers(5, 300, random.integers(3, 14)).tolist() for _ in range(count)], [str(at) for at in range(count)], groups=groups)


def by_hand(model: Loaded, basis: Basis, texts: Rows) -> list[torch.Tensor]:
    """TU of each row, run alone; the skipped positions left out."""
    found = []
    for row in range(len(texts)):
        tokens = torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))
        with torch.no_grad(), tap(model.model, basis.site) as seen:
            model.model(input_ids=tokens)
            found.append(basis.units(seen[basis.site][0].flatten(1))[basis.skip :])
    return found


@pytest.mark.parametrize("skip", [0, 2])
def test_a_survey_is_a_search_by_hand(skip: int, model: Loaded) -> None:
    texts = random_rows(25)
    one = Dictionary(Form(SITE, SITE, 32, 32, 50, "topk", 4, skip=skip))
    for basis in (features_of(one), neurons_beside(model, one)):
        codes = by_hand(model, basis, texts)
        found = survey(model, basis, texts, k=5, peaks=True)
        peak_RU = torch.stack([code.amax(0) for code in codes])
        assert found.peak_RU is not None
        torch.testing.assert_close(torch.from_numpy(found.peak_RU), peak_RU, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.values_KU, peak_RU.sort(0, descending=True).values[:5], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(peak_RU.gather(0, found.rows_KU), found.values_KU, atol=1e-5, rtol=1e-4)
        whole_NU = torch.cat(codes)
        torch.testing.assert_close(found.density_U.float(), (whole_NU > 0).float().mean(0), atol=1e-6, rtol=1e-5)
        mean_U = whole_NU.sum(0) / (whole_NU > 0).sum(0)
        torch.testing.assert_close(found.mean_U.float(), mean_U, atol=1e-5, rtol=1e-4, equal_nan=True)
        assert found.tokens == len(whole_NU)
    assert basis.site == "layers.0.mlp.act"
    assert found.values_KU.shape[1] == 2 * 48


def test_examples_show_the_tokens_round_the_peak(model: Loaded) -> None:
    texts = random_rows(25)
    one = Dictionary(Form(SITE, SITE, 32, 32, 50, "topk", 4, skip=1))
    basis = features_of(one)
    codes, found = by_hand(model, basis, texts), survey(model, basis, texts, k=3)
    unit, rare = int(found.density_U.argmax()), int(found.density_U.argmin())
    shown = examples(model, basis, texts, found, [unit, rare], window=2)
    assert [one.row for one in shown[unit]] == found.rows_KU[:, unit].tolist()
    for example in shown[unit]:
        line_T = torch.cat([torch.zeros(1), codes[example.row][:, unit]])
        start, end = max(0, example.position - 2), min(len(line_T), example.position + 3)
        assert float(line_T[example.position]) == pytest.approx(float(line_T.max()), rel=1e-4)
        assert example.tokens == tuple(texts.tokens[texts.offsets[example.row] :][start:end].tolist())
        assert example.values == pytest.approx(tuple(line_T[start:end].tolist()), rel=1e-3, abs=1e-4)
    assert all(example.value > 0 for example in shown[rare])
    with pytest.raises(UsageError, match="0 to 49"):
        examples(model, basis, texts, found, [50])


def test_neurons_have_two_signs_and_one_site(model: Loaded) -> None:
    values_ND = torch.tensor([[1.0, -2.0]])
    assert neurons_of(model, "layers.1.mlp.out").units(values_ND).tolist() == [[1.0, 0.0, 0.0, 2.0]]
    with pytest.raises(UsageError):
        neurons_of(model, "layers.0.attn.pattern")
    for reads, want in (("embed", 0), ("final", 1)):
        assert neurons_beside(model, Dictionary(Form(reads, reads, 32, 32, 40))).site == f"layers.{want}.mlp.act"


def test_auc_is_the_area_under_the_curve() -> None:
    random = np.random.default_rng(0)
    values_RU, held_RC = random.integers(0, 4, (40, 3)).astype(float), (random.random((40, 2)) < 0.4).astype(float)
    found = auc(rankdata(values_RU, axis=0), held_RC)
    assert found.shape == (3, 2)
    for unit in range(3):
        for label in range(2):
            assert found[unit, label] == pytest.approx(roc_auc_score(held_RC[:, label], values_RU[:, unit]))


def test_a_planted_label_is_found_and_chance_is_not() -> None:
    random = np.random.default_rng(3)
    texts = random_rows(200, tuple(str(at // 2) for at in range(200)))
    labels_RC = (random.random((200, 3)) < 0.5).astype(float)
    labels_RC[:, 2] = 1.0
    features_RU, neurons_RU = random.random((200, 60)), random.random((200, 60))
    features_RU[:, 17] = labels_RC[:, 0] + 0.3 * random.random(200)
    neurons_RU[:, 5] = -labels_RC[:, 0] + 2 * random.random(200)
    planted, chance = associate(features_RU, neurons_RU, labels_RC, ["planted", "chance", "always"], texts, permutations=99)
    assert (planted.label, planted.unit, planted.neuron) == ("planted", 17, 5)
    assert planted.auc.value == 1
    on_other_half = planted.neuron_auc
    assert 0 < on_other_half.low < on_other_half.value < on_other_half.high < 0.5
    assert planted.lead.value == pytest.approx(0.5 - (0.5 - on_other_half.value), abs=1e-9)
    assert planted.lead.low > 0
    assert planted.p_value == planted.neuron_p_value == 0.01
    assert chance.label == "chance"
    assert chance.p_value > 0.05
    assert chance.auc.low < 0.5 < chance.auc.high
    assert planted.auc.n == pytest.approx(50, abs=1)
    with pytest.raises(UsageError, match="3 names"):
        associate(features_RU, neurons_RU, labels_RC[:, :2], ["a", "b", "c"], texts)


def test_the_best_of_many_units_is_no_finding_on_random_labels() -> None:
    """Chosen and measured on the same rows, the best of 300 would look far from chance."""
    random, texts = np.random.default_rng(2), random_rows(60)
    features_RU, labels_RC = random.random((60, 300)), (random.random((60, 8)) < 0.5).astype(float)
    found = associate(features_RU, features_RU[:, :150], labels_RC, [str(at) for at in range(8)], texts, permutations=99)
    assert len(found) == 8
    assert abs(np.mean([abs(one.auc.value - 0.5) for one in found])) < 0.15
    assert sum(one.p_value < 0.05 for one in found) <= 2
    assert all(one.lead.low <= 0 for one in found)
