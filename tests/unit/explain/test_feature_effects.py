"""Ablated features against edits made by hand, and two models against each other feature by feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.data.batch import Rows, rows
from knowhow.errors import UsageError
from knowhow.explain.features.dictionary import Dictionary, Form
from knowhow.explain.features.effects import _discovered, ablate, compare
from knowhow.explain.features.splice import label_logit, token_loss
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.model.loaded import Loaded
from knowhow.model.taps import At, Edit, tap

SITE = "layers.0.resid_post"
TRANSCODER = ("layers.0.mlp.in", "layers.0.mlp.out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.twin("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    return load(str(folder))


def random_rows(count: int, seed: int = 0, groups: tuple[str, ...] = ()) -> Rows:
    random = np.random.default_rng(seed)
    return rows([random.integers(5, 300, random.integers(3, 10)).tolist() for _ in range(count)], [str(at) for at in range(count)], groups=groups)


def tokens_of(texts: Rows, row: int) -> torch.Tensor:
    return torch.tensor(texts.tokens[texts.offsets[row] : texts.offsets[row + 1]][None].astype(np.int64))


@pytest.mark.parametrize("reads, writes", [(SITE, SITE), TRANSCODER])
def test_an_effect_is_what_an_edit_by_hand_does(reads: str, writes: str, model: Loaded) -> None:
    texts = random_rows(14)
    one = Dictionary(Form(reads, writes, 32, 32, 40, "topk", 4, skip=1)).eval()
    found = ablate(model, one, texts, [3, 11], token_loss, controls=3)
    for effect in found:
        changes, active = [], 0
        for row in range(14):
            tokens = tokens_of(texts, row)

            def lost(edits: list[Edit], tokens: torch.Tensor = tokens) -> float:
                with torch.no_grad(), tap(model.model, edits=edits):
                    logits_TV = model.model(input_ids=tokens).logits[0]
                return float(torch.nn.functional.cross_entropy(logits_TV[:-1], tokens[0, 1:], reduction="sum"))

            with torch.no_grad(), tap(model.model, reads) as seen:
                model.model(input_ids=tokens)
            strength_T = one.encode(seen[reads][0])[:, effect.feature].detach()
            strength_T[0] = 0
            part_TE = strength_T[:, None] * one.direction(effect.feature)
            changes.append(lost([Edit(writes, lambda value, part=part_TE: value - part)]) - lost([]))
            active += bool((strength_T > 0).any())
        assert effect.change.value == pytest.approx(float(np.mean(changes)), abs=1e-4)
        assert effect.strength.value == pytest.approx(float(np.abs(changes).mean()), abs=1e-4)
        assert effect.active == active / 14
        assert effect.strength.value > 0
        assert len(set(effect.controls)) == 3
        assert not set(effect.controls) & {3, 11}
    assert ablate(model, one, texts, [3, 11], token_loss, controls=3) == found


def test_the_feature_that_the_answer_hangs_on_stands_out_of_its_like(folder: Path) -> None:
    loaded = load(str(folder), head="classifier", labels=("a", "b"))
    texts, site = random_rows(40), "final"
    one = Dictionary(Form(site, site, 32, 32, 64, "relu", 1)).eval()
    with torch.no_grad():
        one.decoder_FE[7] = torch.nn.functional.normalize(loaded.model.score.weight[0], dim=0)
        one.encoder_FD[7] = one.decoder_FE[7]
        away_FE = one.decoder_FE - (one.decoder_FE @ one.decoder_FE[7])[:, None] * one.decoder_FE[7]
        one.decoder_FE[:7], one.decoder_FE[8:] = away_FE[:7], away_FE[8:]
    (effect,) = ablate(loaded, one, texts, [7], label_logit(0), controls=8)
    assert effect.change.high < 0
    assert effect.beyond.low > 0
    assert effect.rank == pytest.approx(1 / 9)
    (other,) = ablate(loaded, one, texts, [8], label_logit(0), controls=8)
    assert other.rank > effect.rank
    assert abs(other.change.value) < 0.01 * abs(effect.change.value)


def test_what_cannot_be_ablated_is_refused(model: Loaded) -> None:
    one = Dictionary(Form(SITE, SITE, 32, 32, 40, "topk", 4)).eval()
    with pytest.raises(UsageError, match="0 to 39"):
        ablate(model, one, random_rows(4), [40], token_loss)
    with pytest.raises(UsageError, match="60 controls"):
        ablate(model, one, random_rows(4), [0], token_loss, controls=60)
    with pytest.raises(UsageError, match="16 inputs"):
        ablate(model, Dictionary(Form(SITE, SITE, 16, 16, 40, "topk", 4)), random_rows(4), [0], token_loss)


def test_a_model_does_not_differ_from_itself(model: Loaded) -> None:
    one = Dictionary(Form(SITE, SITE, 32, 32, 40, "topk", 4)).eval()
    found = compare(model, model, one, random_rows(12), draws=50)
    assert found.changed == found.gained == ()
    assert not found.density.change.any()
    assert not found.mean.high.any()
    first, second, difference = found.unexplained
    assert first == second
    assert difference.low == difference.high == 0


def test_a_direction_that_one_model_alone_writes_is_gained(folder: Path) -> None:
    base, changed, texts = load(str(folder)), load(str(folder)), random_rows(30, groups=tuple(str(at // 2) for at in range(30)))
    one = Dictionary(Form(SITE, SITE, 32, 32, 40, "relu", 1, skip=1)).eval()
    with torch.no_grad():
        one.bias_F[:] = -0.2
        one.bias_F[9] = -3
        away_FE = one.decoder_FE - (one.decoder_FE @ one.decoder_FE[9])[:, None] * one.decoder_FE[9]
        one.encoder_FD[:9], one.encoder_FD[10:] = away_FE[:9], away_FE[10:]
    direction_D = one.direction(9)
    with torch.no_grad():
        changed.model.model.embed_tokens.weight[5:150] += 6 * direction_D
    found = compare(base, changed, one, texts, draws=200)
    assert found.gained[0] == found.changed[0] == 9
    assert found.density.first[9] == 0
    assert 0 < found.density.low[9] <= found.density.change[9] <= found.density.high[9]
    counts = []
    for loaded in (base, changed):
        codes = []
        for row in range(30):
            with torch.no_grad(), tap(loaded.model, SITE, at=At(positions=slice(1, None))) as seen:
                loaded.model(input_ids=tokens_of(texts, row))
            codes.append((one.encode(seen[SITE][0]).detach(), seen[SITE][0], one(seen[SITE][0]).detach()))
        features_NF, value_ND, made_ND = (torch.cat(parts) for parts in zip(*codes, strict=True))
        error = (value_ND - made_ND).square().sum() / (value_ND - value_ND.mean(0)).square().sum()
        counts.append(((features_NF > 0).float().mean(0).numpy(), features_NF.mean(0).numpy(), float(error)))
    for shift, at in ((found.density, 0), (found.mean, 1)):
        np.testing.assert_allclose(shift.first, counts[0][at], atol=1e-5)
        np.testing.assert_allclose(shift.second, counts[1][at], atol=1e-5)
        np.testing.assert_allclose(shift.change, counts[1][at] - counts[0][at], atol=1e-5)
        assert (shift.low <= shift.high).all()
    assert [interval.value for interval in found.unexplained] == pytest.approx([counts[0][2], counts[1][2], counts[1][2] - counts[0][2]], rel=1e-3, abs=1e-4)
    assert found.unexplained[0].n == 15
    with pytest.raises(UsageError, match="30 and 4"):
        compare(base, changed, one, (texts, random_rows(4)))


def test_chance_is_seldom_discovered() -> None:
    random = np.random.default_rng(0)
    found = [len(_discovered(random.normal(size=500), np.ones(500))) for _ in range(100)]
    assert sum(count > 0 for count in found) <= 12
    change_F = random.normal(size=500)
    change_F[[3, 4]] = 9, -12
    assert _discovered(change_F, np.ones(500))[:2] == (4, 3)
    assert _discovered(np.array([0.0, 1.0]), np.zeros(2)) == (1,)
