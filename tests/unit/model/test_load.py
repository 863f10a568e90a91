"""Loading: heads, labels, pad tokens, determinism, and what is refused after the guard has passed."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from knowhow.errors import SafetyError, UsageError
from knowhow.model import toys
from knowhow.model.load import Loaded, head_modules, load, save

Twin = Callable[[str], Path]


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return dict(loaded.model.named_parameters())


def test_a_language_model(twin: Twin) -> None:
    loaded = load(str(twin("llama")))
    assert (loaded.kind, loaded.head, loaded.labels, loaded.context) == ("causal", "lm", (), 128)
    assert not loaded.model.training
    assert len(loaded.ref.sha256) == 64
    assert loaded.tokenizer.padding_side == "right"


def test_fresh_heads_are_drawn_from_the_seed_alone(twin: Twin, capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (load(str(twin("llama")), head="classifier", labels=("a", "b"), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.model.score.weight, again.model.score.weight)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    assert 0.01 < float(first.model.score.weight.detach().std()) < 0.03
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert", "roberta"])
def test_labels_and_problem_types(family: str, twin: Twin) -> None:
    one = load(str(twin(family)), head="classifier", labels=("a", "b", "c"))
    many = load(str(twin(family)), head="classifier", labels=("a", "b", "c"), many=True)
    number = load(str(twin(family)), head="regressor")
    assert one.model.config.problem_type == "single_label_classification"
    assert many.model.config.problem_type == "multi_label_classification"
    assert (number.model.config.problem_type, number.model.config.num_labels, number.labels) == ("regression", 1, ())
    assert one.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert one.model.config.label2id == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_pad_token_is_always_set_without_a_new_row(family: str, twin: Twin) -> None:
    loaded = load(str(twin(family)), head="classifier", labels=("a", "b"))
    assert loaded.tokenizer.pad_token_id is not None
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert loaded.model.get_input_embeddings().weight.shape[0] == 320


def test_a_folders_own_head_is_kept_for_its_labels(twin: Twin, tmp_path: Path) -> None:
    trained = load(str(twin("gpt2")), head="classifier", labels=("a", "b", "c"), many=True, seed=9)
    save(trained, tmp_path / "trained")
    again = load(str(tmp_path / "trained"), head="classifier")
    assert again.labels == ("a", "b", "c")
    assert again.model.config.problem_type == "multi_label_classification"
    assert torch.equal(again.model.score.weight, trained.model.score.weight)
    turned = load(str(tmp_path / "trained"), head="classifier", labels=("c", "a", "b"))
    assert torch.equal(turned.model.score.weight, trained.model.score.weight[[2, 0, 1]])
    assert turned.model.config.id2label == {0: "c", 1: "a", 2: "b"}
    fresh = load(str(tmp_path / "trained"), head="classifier", labels=("a", "b", "x"), seed=1)
    assert not torch.equal(fresh.model.score.weight, trained.model.score.weight)
    fewer = load(str(tmp_path / "trained"), head="classifier", labels=("a", "b"), seed=1)
    assert fewer.model.score.weight.shape == (2, 32)


def test_an_encoders_head_is_drawn_whole_for_other_labels(twin: Twin, tmp_path: Path) -> None:
    trained = load(str(twin("roberta")), head="classifier", labels=("a", "b"), seed=9)
    save(trained, tmp_path / "trained")
    fresh = load(str(tmp_path / "trained"), head="classifier", labels=("x", "y"), seed=1)
    twice = load(str(tmp_path / "trained"), head="classifier", labels=("x", "y"), seed=1)
    assert head_modules(fresh.model) == ["classifier"]
    for name, parameter in weights(fresh).items():
        assert torch.equal(parameter, weights(twice)[name])
        if name.startswith("classifier") and parameter.ndim > 1:
            assert not torch.equal(parameter, weights(trained)[name])


def test_dtypes(twin: Twin) -> None:
    assert load(str(twin("llama")), dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="bfloat16"):
        load(str(twin("llama")), dtype="int4")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"head": "tail"}, "head"),
        ({"head": "classifier"}, "no labels"),
        ({"labels": ("a",)}, "labels"),
        ({"head": "classifier", "labels": ("a", "a")}, "labels"),
        ({"head": "classifier", "labels": "ab"}, "labels"),
    ],
)
def test_bad_arguments(options: dict, reason: str, twin: Twin) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(twin("llama")), **options)
    assert reason in caught.value.got


def test_an_encoder_without_its_language_model_head(twin: Twin, tmp_path: Path) -> None:
    save(load(str(twin("bert")), head="classifier", labels=("a", "b")), tmp_path / "classifier")
    with pytest.raises(UsageError, match="language-model head"):
        load(str(tmp_path / "classifier"))
    body = load(str(tmp_path / "classifier"), head="body")
    assert (body.kind, body.head) == ("encoder", "classifier")
    assert load(str(twin("llama")), head="body").head == "lm"


def spoiled(twin: Twin, family: str, folder: Path, act: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(twin(family), folder)
    tensors = load_file(folder / "model.safetensors")
    act(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_weights_that_are_missing_are_named(twin: Twin, tmp_path: Path) -> None:
    folder = spoiled(twin, "llama", tmp_path / "m", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises((UsageError, SafetyError), match=r"up_proj|declares"):
        load(str(folder))


def test_a_config_larger_than_its_weights(twin: Twin, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin("llama"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 32, "head_dim": 4096}))
    with pytest.raises(SafetyError, match="declares"):
        load(str(folder))


def test_a_tokenizer_of_another_model(twin: Twin, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin("llama"), tmp_path / "m"))
    toys.tokenizer_for("llama", 600, tuple(f"word{index} word{index} other{index} other{index}" for index in range(200))).save_pretrained(folder)
    with pytest.raises(UsageError, match="beyond the embedding"):
        load(str(folder))


def test_a_broken_tokenizer(twin: Twin, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(twin("llama"), tmp_path / "m"))
    (folder / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": []}')
    with pytest.raises(UsageError, match="tokenizer"):
        load(str(folder))


def test_saving_again_is_the_same_bytes_and_leaves_no_trace_of_the_machine(twin: Twin, tmp_path: Path) -> None:
    loaded = load(str(twin("qwen2")), head="classifier", labels=("a", "b"))
    one, two = save(loaded, tmp_path / "one"), save(loaded, tmp_path / "two")
    assert one.sha256 == two.sha256
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes()
    assert not list(tmp_path.glob(".*"))
    save(load(str(twin("llama"))), tmp_path / "two")
    assert load(str(tmp_path / "two")).kind == "causal"


def test_saving_in_another_dtype(twin: Twin, tmp_path: Path) -> None:
    loaded = load(str(twin("llama")))
    save(loaded, tmp_path / "half", dtype="bfloat16")
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.dtype == torch.float32
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_nan_weights_are_not_written(twin: Twin, tmp_path: Path) -> None:
    loaded = load(str(twin("llama")))
    with torch.no_grad():
        loaded.model.model.norm.weight[0] = float("nan")
    with pytest.raises(SafetyError, match="NaN"):
        save(loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_generation_settings_that_contradict_themselves_do_not_stop_saving(twin: Twin, tmp_path: Path) -> None:
    loaded = load(str(twin("llama")))
    loaded.model.generation_config.temperature = 0.3
    loaded.model.generation_config.do_sample = False
    save(loaded, tmp_path / "out")
    assert load(str(tmp_path / "out")).head == "lm"
