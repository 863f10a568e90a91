"""Scores on patterns made by hand; factors, spectra and composition against whole matrices, for all families."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from knowhow.errors import UsageError
from knowhow.explain.heads import HeadScores, attention_to, head_scores, kurtosis, massive, repeated_tokens, targets
from knowhow.explain.spectra import composition, factors, spectra
from knowhow.model import toys
from knowhow.model.quiet import quiet
from knowhow.model.replay import Recording, record
from knowhow.model.sites import body
from knowhow.model.taps import tap

Twin = Callable[..., torch.nn.Module]
TOKENS = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def twin() -> Twin:
    """A family's tiny model in eval mode, every parameter moved at random so that no bias is 0 and no gain 1."""

    def make(family: str, **options: int) -> torch.nn.Module:
        config = AutoConfig.for_model(family, vocab_size=96, pad_token_id=1, bos_token_id=2, eos_token_id=3, **{**toys.FAMILIES[family], **options})
        maker = AutoModelForMaskedLM if family in toys.ENCODERS else AutoModelForCausalLM
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = maker.from_config(config).eval()
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


def by_hand(looks_at: dict[int, int], T: int) -> torch.Tensor:
    """A pattern 11TT of a head that looks at one key from each query, at itself unless said otherwise."""
    pattern_TT = torch.zeros(T, T)
    for query in range(T):
        pattern_TT[query, looks_at.get(query, query)] = 1.0
    return pattern_TT[None, None]


def scored(pattern: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor | None = None) -> dict[str, float]:
    wanted = targets(tokens, torch.ones_like(tokens, dtype=torch.bool) if real is None else real)
    return {name: float(attention_to(pattern, *where)) for name, where in wanted.items()}


def test_heads_made_by_hand_score_one_at_what_they_do_and_nothing_else() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8]])
    nothing = {"previous": 0.0, "duplicate": 0.0, "induction": 0.0, "sink": 0.0}
    assert scored(by_hand({4: 1, 5: 2, 6: 3, 7: 4}, 8), tokens) == nothing | {"induction": 1.0}
    assert scored(by_hand({5: 1, 6: 2, 7: 3, 4: 0}, 8), tokens) == nothing | {"duplicate": 1.0, "sink": pytest.approx(1 / 7)}
    assert scored(by_hand({at: at - 1 for at in range(1, 8)}, 8), tokens) == nothing | {"previous": 1.0, "sink": pytest.approx(1 / 7)}
    assert scored(by_hand({}, 8), tokens) == nothing


def test_sinks_are_looked_at_from_everywhere() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8]])
    found = scored(by_hand(dict.fromkeys(range(1, 8), 0), 8), tokens)
    assert found == {"previous": pytest.approx(1 / 7), "duplicate": 0.25, "induction": 0.0, "sink": 1.0}


def test_padding_neither_asks_nor_answers() -> None:
    tokens = torch.tensor([[9, 9, 5, 6, 5, 6, 9]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 0]]).bool()
    pattern = by_hand({3: 2, 4: 3, 5: 4, 6: 5}, 7)
    pattern[:, :, 0] = torch.nan
    assert scored(pattern, tokens, real) == {"previous": 1.0, "duplicate": 0.0, "induction": 1.0, "sink": pytest.approx(1 / 3)}


def test_a_row_without_a_repetition_has_no_induction_score() -> None:
    found = scored(by_hand({}, 4), torch.tensor([[5, 6, 7, 8]]))
    assert math.isnan(found["induction"])
    assert math.isnan(found["duplicate"])
    assert found["previous"] == 0.0
    adjacent = scored(by_hand({}, 4), torch.tensor([[5, 5, 7, 8]]))
    assert math.isnan(adjacent["induction"])


def test_a_role_is_the_largest_score_that_reaches_its_threshold() -> None:
    values = {
        "previous": torch.tensor([[[0.9, 0.39, 0.5, math.nan]], [[0.9, 0.39, 0.5, math.nan]]]),
        "sink": torch.tensor([[[0.1, 0.2, 0.8, 0.31]], [[0.1, 0.2, 0.4, math.nan]]]),
    }
    scores = HeadScores(values)
    torch.testing.assert_close(scores.means["sink"], torch.tensor([[0.1, 0.2, 0.6, 0.31]]))
    assert scores.roles({"previous": 0.4, "sink": 0.3}) == (("previous", "other", "sink", "sink"),)
    assert scores.roles({"previous": 0.3}) == (("previous", "previous", "previous", "other"),)
    for wrong in ({"copying": 0.4}, {}):
        with pytest.raises(UsageError, match="previous, sink"):
            scores.roles(wrong)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "modernbert"])
def test_scores_of_a_model_are_those_of_its_patterns(family: str, twin: Twin) -> None:
    model, tokens = twin(family), repeated_tokens(range(5, 90), rows=3, period=6, first=2)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    found, apart = head_scores(model, inputs), head_scores(model, inputs, rows=2)
    with torch.no_grad(), tap(model, "layers.1.attn.pattern") as seen:
        model(**inputs)
    pattern_BHTS = seen["layers.1.attn.pattern"]
    by_diagonal = {
        "previous": (pattern_BHTS.diagonal(-1, 2, 3), 0),
        "duplicate": (pattern_BHTS.diagonal(-6, 2, 3), 1),
        "induction": (pattern_BHTS.diagonal(-5, 2, 3), 2),
    }
    for name, (paid, skipped) in by_diagonal.items():
        torch.testing.assert_close(found.values[name][:, 1], paid[..., skipped:].mean(-1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.values[name], apart.values[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.values["sink"][:, 1], pattern_BHTS[:, :, 1:, 0].mean(-1), atol=1e-6, rtol=1e-5)
    assert found.values["sink"].shape == (3, 2, 4)
    assert len(found.roles()) == 2


def test_repeated_tokens_repeat() -> None:
    rows = repeated_tokens([7, 8, 9, 10], rows=5, period=3, repeats=3, seed=1, first=2)
    assert rows.shape == (5, 10)
    assert (rows[:, 0] == 2).all()
    assert torch.equal(rows[:, 1:4], rows[:, 4:7])
    assert torch.equal(rows[:, 1:4], rows[:, 7:])
    assert all(len(set(row.tolist())) == 3 for row in rows[:, 1:4])
    assert torch.equal(rows, repeated_tokens([7, 8, 9, 10], rows=5, period=3, repeats=3, seed=1, first=2))
    for wrong in ({"period": 5}, {"period": 0}, {"repeats": 1}, {"rows": 0}):
        with pytest.raises(UsageError, match="as many tokens as the period"):
            repeated_tokens([7, 8, 9, 10], **{"rows": 2, "period": 3, **wrong})


def planted(twin: Twin) -> Recording:
    recorded = record(twin("llama"), {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0], [1] * 7])})
    stream = [torch.ones(3, 7, 32) * 0.1 for _ in range(3)]
    stream[2][0, 0, 5], stream[2][2, 3, 9] = -250.0, 101.0
    stream[2][1, 6, 9] = 900.0
    stream[1][0, 0, 5] = 99.0
    return replace(recorded, stream=tuple(stream))


def test_massive_activations_are_found_where_they_were_put(twin: Twin) -> None:
    recorded = planted(twin)
    assert [(one.layer, one.row, one.position, one.feature, one.value) for one in massive(recorded)] == [(1, 0, 0, 5, -250.0), (1, 2, 3, 9, 101.0)]
    assert [one.value for one in massive(recorded, ratio=2000)] == [-250.0]
    assert len(massive(recorded, size=50, ratio=900)) == 3
    assert massive(record(twin("llama"), {"input_ids": TOKENS})) == ()
    with pytest.raises(UsageError, match="from 0 on"):
        massive(recorded, size=-1)


def test_kurtosis_is_three_for_normal_values_and_large_for_outliers(twin: Twin) -> None:
    recorded = record(twin("llama"), {"input_ids": TOKENS})
    wide = torch.randn(3, 7, 20_000, generator=torch.Generator().manual_seed(0))
    spiked = torch.zeros(3, 7, 20_000)
    spiked[..., 0] = 5.0
    found_BL = kurtosis(replace(recorded, stream=(wide, wide, spiked)))
    torch.testing.assert_close(found_BL[:, 0], torch.full((3,), 3.0), atol=0.1, rtol=0)
    torch.testing.assert_close(found_BL[:, 1], torch.full((3,), 20_000.0), atol=10, rtol=0)


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_factors_make_the_model_s_own_scores_and_values(family: str, twin: Twin) -> None:
    """Without rotation: at position 0 queries and keys are not turned; differences of two streams leave biases out."""
    model = twin(family)
    parts, layer = body(model), 1
    part = factors(model, layer)
    sites = [f"layers.{layer}.{kind}" for kind in ("resid_pre", "attn.v", "attn.q", "attn.k")]
    with torch.no_grad(), tap(model, *sites) as seen:
        model(input_ids=TOKENS)
    stream_BTD, value_BTJK, query_BTHK, key_BTJK = (seen[name] for name in sites)
    read_BD = stream_BTD[:, 0]
    if parts.anatomy.norm:
        norm = parts.block(layer).get_submodule(parts.anatomy.norm)
        with torch.no_grad():
            read_BD = norm(read_BD) - norm(torch.zeros_like(read_BD))
        # the factors have the gain in them, so what they read is the stream over its scale alone
        centred_BD = (
            stream_BTD[:, 0] - stream_BTD[:, 0].mean(1, keepdim=True) if family in ("gpt2", "gpt_neox", "phi", "olmo", "modernbert") else stream_BTD[:, 0]
        )
        read_BD = centred_BD / (centred_BD.square().mean(1, keepdim=True) + 1e-6).sqrt()
    groups = 4 // value_BTJK.shape[2]
    compared = [(value_BTJK, part.value_HKD, groups)]
    if family not in ("qwen3", "gemma3_text", "olmo2"):
        compared += [(query_BTHK, part.query_HKD, 1), (key_BTJK, part.key_HKD, groups)]
    for value_BTHK, matrix_HKD, copies in compared:
        want_BHK = value_BTHK[:, 0].repeat_interleave(copies, 1)
        got_BHK = torch.einsum("hkd,bd->bhk", matrix_HKD, read_BD)
        torch.testing.assert_close(got_BHK - got_BHK[:1], want_BHK - want_BHK[:1], atol=2e-4, rtol=1e-3)
        assert float((want_BHK - want_BHK[:1]).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_what_heads_write_is_what_the_model_adds(family: str, twin: Twin) -> None:
    model = twin(family)
    with torch.no_grad(), tap(model, "layers.1.attn.z", "layers.1.attn.out") as seen:
        model(input_ids=TOKENS)
    z_BTHK, want_BTD = seen["layers.1.attn.z"], seen["layers.1.attn.out"]
    got_BTD = torch.einsum("hdk,bthk->btd", factors(model, 1).out_HDK, z_BTHK)
    if family == "gemma2":
        plain_BTD = model.model.layers[1].self_attn.o_proj(z_BTHK.flatten(2)).detach()
        got_BTD = got_BTD / (plain_BTD.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(got_BTD - got_BTD[:1], want_BTD - want_BTD[:1], atol=1e-4, rtol=1e-4)


def test_adapters_are_in_the_factors(twin: Twin) -> None:
    plain = twin("llama")
    before = factors(plain, 0)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)).eval()
    after, layer = factors(adapted, 0), plain.model.layers[0]
    assert torch.equal(after.value_HKD, before.value_HKD)
    change_DD = (layer.self_attn.q_proj.get_delta_weight("default") * layer.input_layernorm.weight).detach()
    torch.testing.assert_close((after.query_HKD - before.query_HKD).flatten(0, 1), change_DD, atol=1e-5, rtol=0)
    assert not torch.equal(after.out_HDK, before.out_HDK)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3", "bert"])
def test_spectra_are_those_of_the_whole_matrices(family: str, twin: Twin) -> None:
    model = twin(family)
    found = spectra(model)
    for layer in range(2):
        part = factors(model, layer)
        for got_LHR, whole_HDD in ((found.qk_LHR, part.query_HKD.mT @ part.key_HKD), (found.ov_LHR, part.out_HDK @ part.value_HKD)):
            torch.testing.assert_close(got_LHR[layer], torch.linalg.svdvals(whole_HDD)[:, :8], atol=1e-5, rtol=1e-4)
    assert found.qk_LHR.shape == (2, 4, 8)


def test_composition_is_the_ratio_of_whole_matrices(twin: Twin) -> None:
    model = twin("llama", num_hidden_layers=3)
    found = composition(model)
    sent, read = factors(model, 0), factors(model, 2)
    for sender in range(4):
        ov_DD = sent.out_HDK[sender] @ sent.value_HKD[sender]
        for reader in range(4):
            qk_DD, own_DD = read.query_HKD[reader].T @ read.key_HKD[reader], read.out_HDK[reader] @ read.value_HKD[reader]
            for got, left_DD in ((found.query, qk_DD.T), (found.key, qk_DD), (found.value, own_DD)):
                want = (left_DD @ ov_DD).norm() / left_DD.norm() / ov_DD.norm()
                torch.testing.assert_close(got[0, sender, 2, reader], want, atol=1e-5, rtol=1e-4)
    assert found.value[1, :, 1].isnan().all()
    assert found.value[2, :, 0].isnan().all()
    assert not found.value[1, :, 2].isnan().any()


def test_the_baseline_is_what_random_turns_give(twin: Twin) -> None:
    model = twin("llama")
    sent, read = factors(model, 0), factors(model, 1)
    ov_DD, qk_DD = sent.out_HDK[0] @ sent.value_HKD[0], read.query_HKD[1].T @ read.key_HKD[1]
    turns = torch.linalg.qr(torch.randn(4000, 32, 32, generator=torch.Generator().manual_seed(0))).Q
    ratios = torch.linalg.matrix_norm(qk_DD @ turns @ ov_DD) / qk_DD.norm() / ov_DD.norm()
    assert float(ratios.square().mean().sqrt()) == pytest.approx(composition(model).random, rel=0.02)


def test_a_reader_of_what_the_sender_writes_composes_fully(twin: Twin) -> None:
    model = twin("olmo2")
    first, second = (model.model.layers[layer].self_attn for layer in (0, 1))
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight.fill_(1.0)
        second.q_proj.weight.zero_()
        second.q_proj.weight[0] = first.o_proj.weight[:, 0]
        first.v_proj.weight[1:8] = 0
        second.k_proj.weight[8:] = 0
    found = composition(model)
    assert float(found.query[0, 0, 1, 0]) == pytest.approx(1.0, abs=1e-4)
    assert float(found.query[0, 3, 1, 0]) < 0.5


def test_what_cannot_be_is_refused(twin: Twin) -> None:
    model = twin("llama")
    with pytest.raises(UsageError, match="0 to 1"):
        factors(model, 2)
    with pytest.raises(UsageError, match="at least 1"):
        head_scores(model, {"input_ids": TOKENS[:0]})
    model.train()
    for call in (lambda: factors(model, 0), lambda: head_scores(model, {"input_ids": TOKENS})):
        with pytest.raises(UsageError, match="eval"):
            call()
