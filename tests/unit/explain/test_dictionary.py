"""Dictionaries against closed forms, and against directions that were planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from knowhow.errors import UsageError
from knowhow.explain.features import dictionary as dictionaries
from knowhow.explain.features.dictionary import Activation, Dictionary, Form, geometric_median, load, loss, save, strongest

PLAIN = Form("embed", "embed", 6, 6, 10, "topk", 3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(
    one: Dictionary, batch: Callable[[int], torch.Tensor], steps: int, *, revive: float = 1 / 32, dead_after: int = 0, rate: float = 3e-3
) -> Dictionary:
    optimizer = torch.optim.Adam(one.parameters(), lr=rate)
    one.train()
    for step in range(steps):
        values_ND = batch(step)
        optimizer.zero_grad()
        (loss(one, values_ND, values_ND, revive=revive, dead_after=dead_after)[0] / len(values_ND)).backward()
        optimizer.step()
        one.renormalise()
    return one.eval()


def test_topk_keeps_the_k_largest_that_are_above_zero() -> None:
    one, values_ND = Dictionary(PLAIN), drawn(20, 6)
    one.fit_scale(values_ND, values_ND)
    with torch.no_grad():
        one.bias_F -= 0.7
        pre_NF, found_NF = one.pre(values_ND), one.encode(values_ND)
    centred_ND = (values_ND - one.centre_D) / one.scale
    torch.testing.assert_close(pre_NF, centred_ND @ one.encoder_FD.T + one.bias_F)
    for pre_F, found_F in zip(pre_NF, found_NF, strict=True):
        want_F = torch.zeros(10)
        for feature in sorted(range(10), key=lambda at: -float(pre_F[at]))[:3]:
            want_F[feature] = max(0.0, float(pre_F[feature]))
        torch.testing.assert_close(found_F, want_F)
    assert int((found_NF > 0).sum(1).min()) < 3 < int((pre_NF > 0).sum(1).max())


def test_batchtopk_keeps_the_largest_of_the_batch_and_then_those_above_the_threshold() -> None:
    one, pre_NF = Dictionary(Form("embed", "embed", 6, 6, 10, "batchtopk", 2)), drawn(50, 10)
    one.train()
    kept_NF = one.code(pre_NF).dense()
    cut = pre_NF.flatten().sort(descending=True).values[99]
    torch.testing.assert_close(kept_NF, torch.where(pre_NF >= cut, pre_NF, 0.0))
    assert sorted(set((kept_NF > 0).sum(1).tolist())) != [2]
    assert int((one.code(pre_NF[:1] - 100).dense() > 0).sum()) == 0
    assert int((one.code(pre_NF[:, :2].repeat(1, 5) + 9)).value_M.numel()) > 0
    values_ND = drawn(200, 6, seed=1)
    one.fit_threshold(values_ND)
    one.eval()
    assert int((one.encode(values_ND) > 0).sum()) == 400
    pre_NF = one.pre(values_ND).detach()
    torch.testing.assert_close(one.encode(values_ND[:7]), torch.where(pre_NF[:7] > one.threshold, pre_NF[:7], 0.0))


@pytest.mark.parametrize("activation", dictionaries.ACTIVATIONS)
def test_all_ways_of_decoding_agree(activation: Activation) -> None:
    one, values_ND = Dictionary(Form("embed", "embed", 6, 6, 64, activation, 2)), 3 * drawn(30, 6) + 5
    one.fit_scale(values_ND, values_ND)
    with torch.no_grad():
        one.bias_E += drawn(6, seed=1)
        one.decoder_FE *= 1.7
        one.threshold += 1.5
        features_NF = one.encode(values_ND)
        want_NE = (features_NF @ (one.decoder_FE / one.decoder_FE.norm(dim=1, keepdim=True)) + one.bias_E) * one.target_scale + one.target_centre_E
        torch.testing.assert_close(one(values_ND), want_NE)
        torch.testing.assert_close(one.decode(features_NF), want_NE)
        step_NE = one.decode(features_NF + torch.eye(64)[3]) - one.decode(features_NF)
    torch.testing.assert_close(step_NE, one.direction(3).expand(30, 6), atol=1e-4, rtol=1e-4)


def test_an_autoencoder_begins_as_its_transpose_on_scaled_inputs() -> None:
    values_ND = 7 * drawn(500, 6) + 40
    one = Dictionary(PLAIN)
    one.fit_scale(values_ND, values_ND)
    assert torch.equal(one.encoder_FD, one.decoder_FE)
    torch.testing.assert_close(one.decoder_FE.norm(dim=1), torch.ones(10))
    scaled_ND = (values_ND - one.centre_D) / one.scale
    assert float(scaled_ND.square().mean()) == pytest.approx(1, abs=1e-4)
    other = Dictionary(Form("layers.0.mlp.in", "layers.0.mlp.out", 4, 6, 10, k=3))
    assert other.encoder_FD.shape == (10, 4)
    for bad in (values_ND[:0], values_ND[:1].repeat(5, 1), values_ND * float("nan")):
        with pytest.raises(UsageError):
            one.fit_scale(bad, bad)


def test_no_direction_begins_as_a_head_drawn_from_the_same_seed() -> None:
    one, other = (Dictionary(Form("embed", "embed", 256, 256, 64), seed=seed) for seed in (0, 1))
    for rows_FE in (drawn(64, 256), other.decoder_FE.detach(), Dictionary(Form("final", "final", 256, 256, 64)).decoder_FE.detach()):
        cosine_FF = one.decoder_FE.detach() @ torch.nn.functional.normalize(rows_FE, dim=1).T
        assert float(cosine_FF.abs().max()) < 0.5
    assert torch.equal(one.decoder_FE, Dictionary(one.form).decoder_FE)


def test_the_geometric_median_has_the_least_sum_of_distances_and_stays_with_the_many() -> None:
    points_ND = drawn(40, 3)
    found_D = geometric_median(points_ND)
    least = (points_ND - found_D).norm(dim=1).sum()
    for move_D in 0.01 * drawn(30, 3, seed=1):
        assert (points_ND - found_D - move_D).norm(dim=1).sum() >= least - 1e-5
    points_ND[0] = 1e6
    assert float(geometric_median(points_ND).norm()) < 2 < float(points_ND.mean(0).norm())


def test_strongest_keeps_the_farthest_coordinates() -> None:
    values_ND = torch.tensor([[3.0, -5.0, 1.0], [0.5, 0.1, -0.2]])
    torch.testing.assert_close(strongest(values_ND, 1), torch.tensor([[0.0, -5.0, 0.0], [0.5, 0.0, 0.0]]))
    torch.testing.assert_close(strongest(values_ND, 2, torch.tensor([3.0, 0.0, 0.0])), torch.tensor([[3.0, -5.0, 1.0], [0.5, 0.0, -0.2]]))


def test_the_loss_is_the_error_written_out() -> None:
    values_ND = drawn(20, 6) * 4 + 1
    one = Dictionary(Form("embed", "embed", 6, 6, 10, "relu", 1, sparsity=0.3))
    one.fit_scale(values_ND, values_ND)
    total, metrics = loss(one, values_ND, values_ND)
    error_NE = (values_ND - one(values_ND)) / one.scale
    torch.testing.assert_close(total, error_NE.square().sum() + 0.3 * one.encode(values_ND).sum())
    torch.testing.assert_close(metrics["unexplained"], error_NE.square().sum().detach() / 6)
    assert float(metrics["active"]) == float((one.encode(values_ND) > 0).sum())


def test_no_gradient_lengthens_a_direction_and_training_keeps_unit_length() -> None:
    one, values_ND = Dictionary(PLAIN), drawn(50, 6)
    one.fit_scale(values_ND, values_ND)
    loss(one, values_ND, values_ND)[0].backward()
    assert one.decoder_FE.grad is not None
    along_F = (one.decoder_FE.grad * one.decoder_FE.detach()).sum(1)
    assert float(one.decoder_FE.grad.norm()) > 1
    torch.testing.assert_close(along_F, torch.zeros(10), atol=1e-4, rtol=0)
    trained(one, lambda step: drawn(50, 6, seed=step), 20)
    torch.testing.assert_close(one.decoder_FE.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu"])
def test_planted_directions_are_found_again(activation: Activation) -> None:
    planted_GD = torch.nn.functional.normalize(drawn(32, 24, seed=9), dim=1)

    def batch(step: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(1000 + step)
        active_NG = torch.rand(256, 32, generator=random) < 3 / 32
        return (active_NG * (0.5 + torch.rand(256, 32, generator=random))) @ planted_GD

    one = Dictionary(Form("embed", "embed", 24, 24, 48, activation, 3, sparsity=1.0 if activation == "relu" else 0.0))
    one.fit_scale(batch(-1), batch(-1))
    before = float((planted_GD @ one.directions.detach().T).amax(1).mean())
    trained(one, batch, 300, dead_after=20_000, rate=1e-2).fit_threshold(batch(-3))
    cosine_GF = planted_GD @ one.directions.detach().T
    assert float(cosine_GF.amax(1).mean()) >= 0.9 > before + 0.3
    features_NF = one.encode(batch(-2)).detach()
    assert 2 < float((features_NF > 0).float().sum(1).mean()) < 8


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_dead_features_are_revived(activation: Activation) -> None:
    planted_GD = torch.nn.functional.normalize(drawn(24, 16, seed=9), dim=1)

    def batch(step: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(step)
        active_NG = torch.rand(256, 24, generator=random) < 2 / 24
        return (active_NG * (0.5 + torch.rand(256, 24, generator=random))) @ planted_GD

    def after(revive: float) -> tuple[float, float]:
        """Share of the silenced features that are active at last, and what is unexplained."""
        one = Dictionary(Form("embed", "embed", 16, 16, 24, activation, 3))
        one.fit_scale(batch(0), batch(0))
        with torch.no_grad():
            one.bias_F[6:] = -8
        trained(one, batch, 600, revive=revive, dead_after=1000, rate=0.05)
        values_ND = torch.cat([batch(999 + at) for at in range(4)])
        with torch.no_grad():
            error = (one(values_ND) - values_ND).square().sum() / (values_ND - values_ND.mean(0)).square().sum()
            return float((one.encode(values_ND) > 0).any(0)[6:].float().mean()), float(error)

    (none, without), (alive, revived) = after(0.0), after(1 / 32)
    assert none <= 0.1
    assert alive >= 0.75
    assert revived < 0.8 * without


def test_idleness_is_counted_in_vectors() -> None:
    one = Dictionary(PLAIN)
    code = one.code(torch.eye(10)[:4])
    one.note(code)
    one.note(one.code(torch.eye(10)[:1]))
    assert one.idle_F.tolist() == [0, 1, 1, 1, 5, 5, 5, 5, 5, 5]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    values_ND = drawn(50, 6)
    one = Dictionary(Form("layers.0.mlp.in", "layers.0.mlp.out", 6, 6, 10, "batchtopk", 2, 0.0, 1), seed=3)
    one.fit_scale(values_ND, values_ND)
    trained(one, lambda step: values_ND, 3)
    save(one, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"layers.0.mlp.in-to-layers.0.mlp.out.{end}" for end in ("json", "safetensors")]
    again = load(tmp_path / "layers.0.mlp.in-to-layers.0.mlp.out.json")
    assert again.form == one.form
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in one.state_dict().items())
    assert torch.equal(again(values_ND), one(values_ND))


def test_what_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    save(Dictionary(PLAIN), tmp_path)
    path, weights = tmp_path / "embed.json", tmp_path / "embed.safetensors"
    with pytest.raises(UsageError, match="no such dictionary"):
        load(tmp_path / "other.json")
    form, whole = json.loads(path.read_text()), weights.read_bytes()
    for change in ({"k": 11}, {"k": "3"}, {"activation": "gelu"}, {"features": 12}, {"more": 1}):
        path.write_text(json.dumps(form | change))
        with pytest.raises(UsageError):
            load(path)
    path.write_text(json.dumps(form))
    weights.write_bytes(whole[:-40])
    with pytest.raises(UsageError, match="cannot be read"):
        load(path)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    for odd in (tensors | {"bias_E": tensors["bias_E"] / 0}, tensors | {"bias_E": torch.zeros(5)}, tensors | {"extra": torch.zeros(1)}):
        save_file(odd, weights)
        with pytest.raises(UsageError, match="do not fit"):
            load(path)


@pytest.mark.parametrize(
    "form",
    [
        Form("embed", "embed", 6, 6, 10, "topk", 11), Form("embed", "embed", 6, 6, 0), Form("embed", "embed", 6, 5, 40), Form("a", "b", 6, 5, 40, skip=-1),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_is_refused(form: Form) -> None:
    with pytest.raises(UsageError):
        Dictionary(form)
