"""The lenses against the models' own heads, and attribution against the arithmetic written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from knowhow.errors import UsageError
from knowhow.explain.lens import direct_logit_attribution, divergence, logit_lens, pulled_back, tune
from knowhow.model import toys
from knowhow.model.quiet import quiet
from knowhow.model.replay import record
from knowhow.model.taps import tap

DECODERS = [family for family in toys.FAMILIES if family not in toys.ENCODERS]
TOKENS = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0))
Twin = Callable[..., torch.nn.Module]


@pytest.fixture(scope="module")
def twin() -> Twin:
    """A family's tiny model in eval mode, every parameter moved at random so that no bias is 0 and no gain 1."""

    def make(family: str, head: str = "lm", scale: float = 0.1, seed: int = 0) -> torch.nn.Module:
        config = AutoConfig.for_model(family, vocab_size=96, pad_token_id=1, bos_token_id=2, eos_token_id=3, num_labels=3, **toys.FAMILIES[family])
        makers = {"lm": AutoModelForMaskedLM if family in toys.ENCODERS else AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model = makers[head].from_config(config).eval()
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
        return model

    return make


def inputs(rows: torch.Tensor = TOKENS) -> dict[str, torch.Tensor]:
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_the_last_layer_s_lens_is_the_model(family: str, twin: Twin) -> None:
    recorded = record(twin(family), inputs())
    lens_LBTV = logit_lens(recorded)
    torch.testing.assert_close(lens_LBTV[-1], recorded.logits_all, atol=1e-5, rtol=0)
    assert float((lens_LBTV[0] - recorded.logits_all).abs().max()) > 1e-2
    torch.testing.assert_close(logit_lens(recorded, position=2), lens_LBTV[:, :, 2], atol=1e-5, rtol=0)
    torch.testing.assert_close(logit_lens(recorded, kind="resid_pre")[1], lens_LBTV[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_the_lens_reads_classifiers(family: str, twin: Twin) -> None:
    recorded = record(twin(family, head="classifier"), inputs())
    lens_LBC = logit_lens(recorded)
    assert lens_LBC.shape == (2, 3, 3)
    torch.testing.assert_close(lens_LBC[-1], recorded.logits_all, atol=1e-5, rtol=0)


def test_the_lens_at_the_middle_is_norm_and_head_by_hand(twin: Twin) -> None:
    model = twin("llama")
    recorded = record(model, inputs())
    with torch.no_grad():
        want = model.lm_head(model.model.norm(recorded.middle[0]))
    torch.testing.assert_close(logit_lens(recorded, kind="resid_mid")[0], want, atol=1e-5, rtol=0)


def test_a_lens_that_cannot_be_is_refused(twin: Twin) -> None:
    recorded = record(twin("phi"), inputs())
    with pytest.raises(UsageError, match="side by side"):
        logit_lens(recorded, kind="resid_mid")
    with pytest.raises(UsageError, match="resid_pre, resid_mid, resid_post"):
        logit_lens(recorded, kind="mlp.out")
    for position in (7, -8):
        with pytest.raises(UsageError, match="-7 to 6"):
            logit_lens(recorded, position=position)


def test_divergence_is_kl() -> None:
    final, lens = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    want = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(divergence(lens.log() + 3, final.log() - 1), want)
    assert float(divergence(final.log(), final.log())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family, head", [("llama", "lm"), ("bert", "lm"), ("gpt2", "classifier")])
def test_tuning_lowers_the_divergence_of_rows_it_has_not_seen(family: str, head: str, twin: Twin) -> None:
    model = twin(family, head=head)
    rows = torch.randint(5, 90, (48, 7), generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lens = tune(model, inputs(rows[:40]), inputs(rows[40:]), steps=60, batch=8, rate=3e-3)
    assert float(lens.after_L[0]) < 0.8 * float(lens.before_L[0])
    assert float(lens.before_L[-1]) == pytest.approx(0, abs=1e-6)
    assert float(lens.after_L[-1]) == pytest.approx(0, abs=1e-6)
    recorded = record(model, inputs(rows[40:]))
    applied = lens.apply(recorded)
    torch.testing.assert_close(divergence(applied, recorded.logits_all).flatten(1).mean(1), lens.after_L, atol=1e-4, rtol=0)
    torch.testing.assert_close(divergence(logit_lens(recorded), recorded.logits_all).flatten(1).mean(1), lens.before_L, atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tuning_is_the_same_for_a_seed_and_ignores_padding(twin: Twin) -> None:
    model = twin("llama")
    rows = torch.randint(5, 90, (10, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(rows)
    mask[:, 4:] = 0
    padded = {"input_ids": rows, "attention_mask": mask}
    other = {"input_ids": torch.where(mask == 1, rows, 7), "attention_mask": mask}
    once, again, changed = (tune(model, given, given, steps=3, batch=4, seed=5) for given in (padded, padded, other))
    assert torch.equal(once.weight_LDD, again.weight_LDD)
    torch.testing.assert_close(once.weight_LDD, changed.weight_LDD, atol=1e-5, rtol=0)
    torch.testing.assert_close(once.after_L, changed.after_L, atol=1e-5, rtol=0)
    assert not torch.equal(once.weight_LDD, tune(model, padded, padded, steps=3, batch=4, seed=6).weight_LDD)


def test_tuning_on_nothing_is_refused(twin: Twin) -> None:
    model = twin("llama")
    for wrong in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            tune(model, inputs(), inputs(), **wrong)
    with pytest.raises(UsageError, match="held_out rows 0"):
        tune(model, inputs(), inputs(TOKENS[:0]))
    lens = tune(model, inputs(), inputs(), steps=1)
    with pytest.raises(UsageError, match=r"\(2, 32\)"):
        type(lens)(lens.weight_LDD[:1], lens.bias_LD[:1], lens.before_L, lens.after_L).apply(record(model, inputs()))


def difference(size: int) -> torch.Tensor:
    direction = torch.zeros(size)
    direction[11 % size], direction[20 % size] = 1.0, -1.0
    return direction


@pytest.mark.parametrize("position", [-1, 3])
@pytest.mark.parametrize("family", DECODERS)
def test_the_parts_sum_to_the_logits(family: str, position: int, twin: Twin) -> None:
    model = twin(family)
    recorded = record(model, inputs())
    found = direct_logit_attribution(recorded, difference(96), position=position)
    want_B = recorded.logits_all[:, position, 11] - recorded.logits_all[:, position, 20]
    torch.testing.assert_close(found.score_B, want_B, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values_PB.sum(0), want_B, atol=1e-4, rtol=0)
    assert [name for name in found.names if name.startswith("a1")] == ["a1.h0", "a1.h1", "a1.h2", "a1.h3", "a1.bias"]
    assert float(found.values_PB.abs().max()) > 0.1
    whole = direct_logit_attribution(recorded, difference(96), position=position, by_head=False)
    assert whole.names == ("embed", "a0", "m0", "a1", "m1", "bias")
    of_heads_B = found.values_PB[[name.startswith("a0") for name in found.names]].sum(0)
    torch.testing.assert_close(whole.values_PB[1], of_heads_B, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_parts_sum_to_a_classifier_s_logits(family: str, twin: Twin) -> None:
    rows = TOKENS.clone()
    rows[0, 5:] = 1
    given = {"input_ids": rows, "attention_mask": (rows != 1).long()}
    recorded = record(twin(family, head="classifier"), given)
    directions_BC = torch.eye(3)
    found = direct_logit_attribution(recorded, directions_BC)
    torch.testing.assert_close(found.score_B, recorded.logits_all.diagonal(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values_PB.sum(0), found.score_B, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_part_of_what_heads_and_mlps_add(family: str, twin: Twin) -> None:
    targets = {"llama": ["o_proj", "down_proj"], "gpt2": ["c_proj"]}[family]
    plain = twin(family)
    before = direct_logit_attribution(record(plain, inputs()), difference(96))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2")).eval()
    recorded = record(adapted, inputs())
    found = direct_logit_attribution(recorded, difference(96))
    torch.testing.assert_close(found.values_PB.sum(0), recorded.logits_all[:, -1] @ difference(96), atol=1e-4, rtol=0)
    assert float((found.values_PB - before.values_PB).abs().max()) > 0.1


def test_rounding_of_half_precision_is_not_taken_for_a_head_that_is_not_affine(twin: Twin) -> None:
    recorded = record(twin("gemma2").bfloat16(), inputs())
    found = direct_logit_attribution(recorded, difference(96))
    torch.testing.assert_close(found.values_PB.sum(0), found.score_B, atol=0.1, rtol=0)


def test_parts_of_gpt2_are_the_arithmetic_written_out(twin: Twin) -> None:
    model = twin("gpt2")
    recorded = record(model, inputs())
    found = direct_logit_attribution(recorded, difference(96))
    parts = dict(zip(found.names, found.values_PB, strict=True))
    with torch.no_grad():
        norm, row_D = model.transformer.ln_f, model.lm_head.weight[11] - model.lm_head.weight[20]
        scale_B1 = (recorded.stream[-1][:, -1].var(-1, correction=0, keepdim=True) + norm.eps).sqrt()

        def read(part_BD: torch.Tensor) -> torch.Tensor:
            return ((part_BD - part_BD.mean(-1, keepdim=True)) / scale_B1 * norm.weight) @ row_D

        block = model.transformer.h[1]
        with tap(model, "layers.1.attn.z") as seen:
            model(**inputs())
        z_B4K = seen["layers.1.attn.z"][:, -1]
        matrix = block.attn.c_proj.weight.view(4, 8, 32)
        for head in range(4):
            torch.testing.assert_close(parts[f"a1.h{head}"], read(z_B4K[:, head] @ matrix[head]), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts["a1.bias"], read(block.attn.c_proj.bias.expand(3, -1)), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts["embed"], read(recorded.stream[0][:, -1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts["bias"], (norm.bias @ row_D).expand(3), atol=1e-5, rtol=0)


def test_heads_of_gemma2_go_through_the_frozen_norm_behind_attention_and_the_frozen_cap(twin: Twin) -> None:
    model = twin("gemma2", scale=0.4)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    recorded = record(model, inputs())
    direction = torch.zeros(96).index_fill(0, torch.tensor([11]), 1.0)
    parts = dict(zip((found := direct_logit_attribution(recorded, direction)).names, found.values_PB, strict=True))
    with torch.no_grad():
        final, behind, mix = model.model.norm, model.model.layers[1].post_attention_layernorm, model.model.layers[1].self_attn.o_proj
        with tap(model, "layers.1.attn.z") as seen:
            model(**inputs())
        z_BHK = seen["layers.1.attn.z"][:, -1]
        rms = [(value.square().mean(-1, keepdim=True) + 1e-6).sqrt() for value in (recorded.stream[-1][:, -1], mix(z_BHK.flatten(1)))]
        plain_B = final(recorded.stream[-1][:, -1]) @ model.lm_head.weight[11]
        capped_B = recorded.logits_all[:, -1, 11]
        assert float((plain_B - capped_B).abs().max()) > 0.1
        for head in range(4):
            out_BD = z_BHK[:, head] @ mix.weight[:, head * 8 : head * 8 + 8].T
            normed_BD = out_BD / rms[1] * (1 + behind.weight) / rms[0] * (1 + final.weight)
            torch.testing.assert_close(parts[f"a1.h{head}"], normed_BD @ model.lm_head.weight[11] * capped_B / plain_B, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_a_covector_through_a_norm_is_gain_over_the_frozen_scale(centred: bool, eps: float) -> None:
    draw = torch.Generator().manual_seed(0)
    norm = torch.nn.LayerNorm(5, eps=eps) if centred else torch.nn.RMSNorm(5, eps=eps)
    gain, at, covector = torch.randn(5, generator=draw), torch.randn(4, 5, generator=draw) + 2, torch.randn(4, 5, generator=draw)
    with torch.no_grad():
        norm.weight.copy_(gain)
        if centred:
            norm.bias.copy_(torch.randn(5, generator=draw))
    middle = at - at.mean(-1, keepdim=True) if centred else at
    want = covector * gain / (middle.square().mean(-1, keepdim=True) + eps).sqrt()
    want = want - want.mean(-1, keepdim=True) if centred else want
    torch.testing.assert_close(pulled_back(norm, at, covector), want, atol=1e-5, rtol=1e-5)


def test_attribution_that_would_not_add_up_is_refused(twin: Twin) -> None:
    with pytest.raises(UsageError, match="norms the sum"):
        direct_logit_attribution(record(twin("bert"), inputs()), difference(96))
    with pytest.raises(UsageError, match="not affine"):
        direct_logit_attribution(record(twin("modernbert"), inputs()), difference(96))
    recorded = record(twin("llama"), inputs())
    with pytest.raises(UsageError, match="each of 96 logits"):
        direct_logit_attribution(recorded, torch.ones(95))
    with pytest.raises(UsageError, match="-7 to 6"):
        direct_logit_attribution(recorded, difference(96), position=9)
