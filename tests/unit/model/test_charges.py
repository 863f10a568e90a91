"""Charges are derived for every family, and a step of plain descent changes them as the law says; what is not derived is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OlmoConfig, OlmoForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from knowhow.maths import noether
from knowhow.model.charges import Charge, cause, ledger
from knowhow.model.load import load
from knowhow.model.quiet import quiet
from knowhow.model.toys import FAMILIES, twin
from knowhow.types import Rate

RATE, DECAY = 0.02, 0.1
GROUPS = {"gpt2": 4, "gpt_neox": 4, "phi": 4, "olmo": 4, "bert": 4, "roberta": 4, "modernbert": 4}
NORMED = {"qwen3", "gemma3_text", "olmo2"}
SMOOTH = {"gpt2", "gpt_neox", "phi", "bert", "roberta"}
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
NO_ENDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def excluded(family: str) -> dict[tuple[str, str], int]:
    """(kind, word) → how many."""
    found = {("up_down", "activation"): 2} if family in SMOOTH else {}
    if family in ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "smollm3"):
        return {**found, ("norm_gain", "tied"): 1}
    missing = {"olmo": 5, "olmo2": 4, "bert": 5, "roberta": 5, "modernbert": 2}.get(family, 0)
    return {**found, **({("norm_gain", "norm"): missing} if missing else {})}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Weights and biases away from their start, in float64, so that the law is seen without rounding
    (but norms, which many families compute in float32)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.double().train()


def descend(model: torch.nn.Module, decay: float) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Residuals of the discrete law by kind after one step, of charges and of wrong ones."""
    found = ledger(model)
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(5, 60, (3, 12), generator=generator) for _ in range(2))
    moving = [p for p in model.parameters() if p.requires_grad]
    optim = torch.optim.SGD(moving, lr=RATE, weight_decay=decay)
    model.zero_grad()
    logits = model(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    before = found.weights(model)
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    optim.step()
    after = found.weights(model)
    rates = {name: Rate(RATE, decay, "sgd") for name, p in model.named_parameters() if p.requires_grad}

    def off(charge: Charge) -> float:
        old, slope, new = charge.pair(before), charge.pair(gradients), charge.pair(after)
        missed = noether.charge(new, new, charge.labels) - noether.descended(old, slope, charge.labels, RATE, decay)
        return float(missed.norm()) / noether.turnover(noether.combined((1 - RATE * decay, old)), new, charge.labels)

    right: dict[str, list[float]] = {}
    wrong: dict[str, list[float]] = {}
    for charge in found.charges:
        if not cause(charge, rates, found.offsets):
            right.setdefault(charge.kind, []).append(off(charge))
    for charge in found.wrong:
        wrong.setdefault(charge.kind, []).append(off(charge))
    return right, wrong


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_its_charges_and_they_obey_the_law(family: str, tmp_path: Path) -> None:
    model = shaken(load(str(twin(family, tmp_path / family))).model)
    found = ledger(model)
    assert dict(Counter((one.kind, one.word) for one in found.excluded)) == excluded(family)
    groups, counts = GROUPS.get(family, 2), found.counts()
    assert counts["vo"] == 2 * groups
    assert ("qk_gain" in counts and "scale" in counts and "qk" not in counts) if family in NORMED else counts["qk"] >= 2 * groups
    assert ("up_down" in counts) == (family not in SMOOTH)
    for decay in (0.0, DECAY):
        right, wrong = descend(model, decay)
        assert set(right) == set(counts) - ({"norm_gain", "qk_gain"} if decay and family.startswith("gemma") else set())
        assert max(value for kind in set(right) - {"scale"} for value in right[kind]) < 1e-6
        assert max(right.get("scale", [0.0])) < 1e-3
        assert all(max(values) > 0.1 for values in wrong.values())
        assert set(wrong) == (set() if family in NORMED or family in ("gpt2", "bert", "roberta") else {"qk_full"}) | (
            set() if family in SMOOTH else {"gate_down"}
        )


def test_a_partly_rotated_head_has_pairs_and_a_matrix(tmp_path: Path) -> None:
    found = ledger(load(str(twin("phi", tmp_path / "phi"))).model)
    own = [charge for charge in found.charges if charge.kind == "qk" and charge.layer == 0]
    pairs, rest = (next(one for one in own if (one.labels is None) == whole and one.site.startswith("layers.0.attn.0")) for whole in (False, True))
    assert list(pairs.labels or ()) == [0, 1, 0, 1]
    assert [piece.rows for piece in pairs.left] == [(0, 4), (0, 4)]
    assert [piece.rows for piece in rest.left] == [(4, 8), (4, 8)]
    assert [piece.parameter.rsplit(".", 1)[-1] for piece in rest.left] == ["weight", "bias"]


def test_gains_that_count_from_one_are_seen_and_their_decay_breaks_the_charge(tmp_path: Path) -> None:
    found = ledger(load(str(twin("gemma", tmp_path / "gemma"))).model)
    assert set(found.offsets.values()) == {1.0}
    assert len(found.offsets) == 5
    one = next(charge for charge in found.charges if charge.kind == "norm_gain")
    assert cause(one, {name: Rate(0.1, 0.0, "sgd") for name in one.parameters}, found.offsets) == ""
    assert cause(one, {name: Rate(0.1, 0.1, "sgd") for name in one.parameters}, found.offsets) == "decay"


def test_lora_has_charges_of_its_own_and_the_base_none() -> None:
    torch.manual_seed(0)
    with quiet():
        model = shaken(get_peft_model(LlamaForCausalLM(LlamaConfig(**TINY)), LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "down_proj"])))
    found = ledger(model)
    assert found.counts() == {"lora": 4}
    assert {one.word for one in found.excluded} == {"adapter", "frozen"}
    assert max(descend(model, DECAY)[0]["lora"]) < 1e-6


def test_tied_and_frozen_factors_are_left_out_by_name() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False))
    assert not ledger(model).excluded
    model.model.layers[0].self_attn.v_proj.weight.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    found = {(one.kind, one.site): one for one in ledger(model).excluded}
    assert {key: one.word for key, one in found.items()} == {
        ("vo", "layers.0.attn.0"): "frozen",
        ("vo", "layers.0.attn.1"): "frozen",
        ("norm_gain", "layers.0.input_layernorm"): "frozen",
        ("up_down", "layers.0.mlp"): "tied",
        ("up_down", "layers.1.mlp"): "tied",
        ("norm_gain", "layers.0.post_attention_layernorm"): "tied",
        ("norm_gain", "layers.1.post_attention_layernorm"): "tied",
    }
    assert "v_proj" in found["vo", "layers.0.attn.0"].because


def test_a_homogeneous_activation_conserves_what_a_smooth_one_does_not() -> None:
    torch.manual_seed(0)
    gated = shaken(LlamaForCausalLM(LlamaConfig(**TINY, hidden_act="relu")))
    plain = shaken(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=32, activation_function="relu", **NO_ENDS)))
    right, wrong = descend(gated, DECAY)
    assert max(right["gate_down"]) < 1e-6
    assert "gate_down" not in wrong
    assert max(descend(plain, DECAY)[0]["up_down"]) < 1e-6


def test_layers_without_rotation_have_whole_matrices_and_clipping_has_none() -> None:
    torch.manual_seed(0)
    mixed = shaken(SmolLM3ForCausalLM(SmolLM3Config(**TINY, no_rope_layers=[1, 0], **NO_ENDS)))
    own = {charge.site: charge.labels for charge in ledger(mixed).charges if charge.kind == "qk"}
    assert own["layers.0.attn.0"] is not None
    assert own["layers.1.attn.0"] is None
    assert max(descend(mixed, 0.0)[0]["qk"]) < 1e-6
    clipped = ledger(OlmoForCausalLM(OlmoConfig(**{**TINY, **NO_ENDS}, clip_qkv=0.5)))
    assert {"vo", "qk"} == {one.kind for one in clipped.excluded if one.word == "clipped"}


def test_a_family_that_is_not_known_is_one_exclusion() -> None:
    class Config:
        model_type = "martian"

        def get_text_config(self) -> Config:
            return self

    model = torch.nn.Linear(2, 2)
    model.config = Config()
    found = ledger(model)
    assert not found.charges
    assert [one.word for one in found.excluded] == ["unknown"]


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (Rate(0.1, 0.1, "sgd"), Rate(0.1, 0.1, "sgd"), ""),
        (Rate(0.1, 0.1, "sgd", 0.9), Rate(0.1, 0.1, "sgd", 0.9), "momentum"),
        (Rate(0.1, 0.0, "sgd"), Rate(0.1, 0.1, "sgd"), "decay"),
        (Rate(0.1, 0.1, "sgd"), Rate(0.2, 0.1, "sgd"), "rates"),
        (Rate(0.1, 0.1, "adamw", 0.9), Rate(0.1, 0.1, "adamw", 0.9), "adam"),
        (Rate(0.1, 0.1, "adamw", 0.9), Rate(0.1, 0.1, "muon", 0.9), "muon"),
        (Rate(0.1, 0.1, "sgd"), None, "frozen"),
    ],
)
def test_what_breaks_a_charge_is_named(left: Rate, right: Rate | None, said: str) -> None:
    found = ledger(LlamaForCausalLM(LlamaConfig(**TINY)))
    one = next(charge for charge in found.charges if charge.kind == "up_down")
    names = one.parameters
    rates = {names[0]: left, **({} if right is None else {names[1]: right})}
    assert cause(one, rates, found.offsets) == said
