"""LoRA: what it targets, that the base stays as it is, and that a saved adapter belongs to its base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from knowhow.errors import SafetyError, UsageError
from knowhow.model.adapters import BASE_FILE, add_lora, base_digest, load_adapter, lora_targets, merge, save_adapter
from knowhow.model.load import Loaded, load, save
from knowhow.model.vocabulary import added, extend

Make = Callable[..., Loaded]
Twin = Callable[[str], Path]
ROW = torch.tensor([[0, 5, 260, 281, 17, 290]])


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(input_ids=ROW).logits.clone()


def train(loaded: Loaded) -> None:
    """Any change of everything that is trainable."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize(
    "family, attention, mlp",
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
        ("gpt_neox", {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
        ("phi", {"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
        ("bert", {"query", "key", "value", "dense"}, {"dense"}),
        ("modernbert", {"Wqkv", "Wo"}, {"Wi", "Wo"}),
    ],
)
def test_targets(family: str, attention: set[str], mlp: set[str], lm: Make) -> None:
    model = lm(family).model
    attn, feed, both = (lora_targets(model, which) for which in ("attn", "mlp", "all"))
    assert {name.rsplit(".", 1)[-1] for name in attn} == attention
    assert {name.rsplit(".", 1)[-1] for name in feed} == mlp
    assert sorted(attn + feed) == sorted(both) == sorted(lora_targets(model, "auto"))
    assert not set(attn) & set(feed)
    assert not any("head" in name or "decoder" in name or "embed" in name for name in both)


def test_targets_by_name_and_wrong_ones(lm: Make) -> None:
    model = lm("llama").model
    assert len(lora_targets(model, ["q_proj", "mlp.up_proj"])) == 4
    for wrong in ("everything", ["q_proj", "w_proj"], []):
        with pytest.raises(UsageError) as caught:
            lora_targets(model, wrong)
        assert "q_proj" in caught.value.allowed or "attn" in caught.value.allowed


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("which", ["attn", "mlp"])
def test_only_the_wanted_modules_get_matrices(family: str, which: str, lm: Make) -> None:
    loaded = lm(family)
    wanted = lora_targets(loaded.model, which)
    adapted = add_lora(loaded, rank=2, alpha=4, targets=which)
    got = {name.removeprefix("base_model.model.").split(".lora_")[0] for name, _ in adapted.model.named_parameters() if "lora_A" in name}
    assert got == set(wanted)
    assert all("lora_" in name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad)


def test_it_starts_as_the_base_and_is_drawn_from_the_seed(lm: Make) -> None:
    before = logits(lm())
    state = torch.get_rng_state()
    one, two, other = (add_lora(lm(), rank=4, alpha=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(logits(one), before)
    first, second, third = (next(p for name, p in loaded.model.named_parameters() if "lora_A" in name) for loaded in (one, two, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_round_trip_merge_and_same_bytes(classifier: Make, tmp_path: Path) -> None:
    adapted = add_lora(classifier("llama"), rank=4, alpha=8, seed=1)
    train(adapted)
    want = logits(adapted)
    for name in ("one", "two"):
        save_adapter(adapted, tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["adapter_config.json", "adapter_model.safetensors", BASE_FILE]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    again = load_adapter(classifier("llama"), tmp_path / "one")
    assert again.ref.adapter == str(tmp_path / "one")
    assert torch.equal(logits(again), want)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert any(parameter.requires_grad for parameter in load_adapter(classifier("llama"), tmp_path / "one", trainable=True).model.parameters())
    merged = merge(adapted)
    torch.testing.assert_close(logits(merged), want, atol=1e-5, rtol=0)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    save(merged, tmp_path / "merged")
    torch.testing.assert_close(logits(load(str(tmp_path / "merged"), head="classifier")), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
def test_new_vocabulary_rows_train_and_old_ones_do_not(family: str, lm: Make, tmp_path: Path) -> None:
    base = lm(family)
    parent = extend(base, ["kernel32.getprocaddress", "ntdll.zwopen"])
    rows = added(base.tokenizer, parent.tokenizer)
    old = parent.model.get_input_embeddings().weight.detach().clone()
    adapted = add_lora(parent, rank=2, alpha=4, new_rows=rows, seed=1)
    train(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    merged = merge(adapted)
    new = merged.model.get_input_embeddings().weight
    changed = (new != old).any(1).nonzero().flatten().tolist()
    assert changed == rows
    with pytest.raises(UsageError, match="rows"):
        add_lora(lm(family), rank=2, alpha=4, new_rows=[10_000])


def test_an_encoders_pooler_travels_with_the_adapter(twin: Twin, tmp_path: Path) -> None:
    """A masked language model's folder has no pooler: the one that was drawn must come back with the adapter, whatever the next draw."""
    adapted = add_lora(load(str(twin("bert")), head="classifier", labels=("a", "b"), seed=1), rank=2, alpha=4)
    train(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(load(str(twin("bert")), head="classifier", labels=("a", "b"), seed=2), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(adapted))


def test_the_base_is_untouched_and_it_is_noticed_when_not(lm: Make, tmp_path: Path) -> None:
    loaded = lm()
    digest = base_digest(loaded.model)
    adapted = add_lora(loaded, rank=2, alpha=4)
    train(adapted)
    assert base_digest(adapted.model) == digest == adapted.frozen
    with torch.no_grad():
        adapted.model.get_base_model().model.norm.weight[0] += 1
    with pytest.raises(AssertionError):
        save_adapter(adapted, tmp_path / "adapter")
    with pytest.raises(SafetyError):
        merge(adapted)


def test_an_adapter_of_another_base(lm: Make, tmp_path: Path) -> None:
    save_adapter(add_lora(lm(), rank=2, alpha=4), tmp_path / "adapter")
    other = lm()
    with torch.no_grad():
        other.model.model.norm.weight[0] += 1
    with pytest.raises(UsageError, match="belongs to base weights"):
        load_adapter(other, tmp_path / "adapter")
    (tmp_path / "adapter" / BASE_FILE).unlink()
    assert load_adapter(other, tmp_path / "adapter").frozen
    with pytest.raises(UsageError, match=r"fit|belongs"):
        load_adapter(lm("gpt2"), tmp_path / "adapter")


def test_hostile_adapters_are_refused_first(lm: Make, tmp_path: Path) -> None:
    save_adapter(add_lora(lm(), rank=2, alpha=4), tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "hostile")
    config = json.loads((tmp_path / "hostile" / "adapter_config.json").read_text())
    (tmp_path / "hostile" / "adapter_config.json").write_text(json.dumps({**config, "auto_mapping": {"parent_library": "os", "base_model_class": "x"}}))
    with pytest.raises(SafetyError, match="auto_mapping"):
        load_adapter(lm(), tmp_path / "hostile")
    with pytest.raises(UsageError, match="without its base"):
        load(str(tmp_path / "adapter"))


def test_wrong_use(lm: Make, tmp_path: Path) -> None:
    adapted = add_lora(lm(), rank=2, alpha=4)
    with pytest.raises(UsageError, match="already"):
        add_lora(adapted, rank=2, alpha=4)
    with pytest.raises(UsageError, match="merge"):
        save(adapted, tmp_path / "x")
    for act in (lambda: merge(lm()), lambda: save_adapter(lm(), tmp_path / "y")):
        with pytest.raises(UsageError, match="without an adapter"):
            act()
    for values in ({"rank": 0, "alpha": 1}, {"rank": 1, "alpha": 0}, {"rank": 1, "alpha": 1, "dropout": 1.0}):
        with pytest.raises(UsageError, match="rank"):
            add_lora(lm(), **values)
