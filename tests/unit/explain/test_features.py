"""Learning dictionaries by the project's loop: together as alone, stopped as not, and nothing of the model moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.data.batch import Rows, collate, rows
from knowhow.errors import Interrupted, UsageError
from knowhow.explain.features.fidelity import fidelity
from knowhow.explain.features.learn import Course, Reconstruct, learn, opened
from knowhow.files import digest_folder, read_jsonl
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.model.loaded import Loaded, digest_tensors
from knowhow.model.taps import tap
from knowhow.protocols import Objective

SMALL = Course(features=40, k=4, steps=12, batch_tokens=256, microbatch_tokens=128, lr=3e-3, dead_after=300, sample=300, checkpoint_every=5, skip=1)
TRANSCODER = ("layers.0.mlp.in", "layers.0.mlp.out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(str(toys.twin("llama", tmp_path_factory.mktemp("llama"))))


@pytest.fixture(scope="module")
def texts() -> Rows:
    return random_rows(60)


def random_rows(count: int, seed: int = 0, low: int = 3) -> Rows:
    random = np.random.default_rng(seed)
    return rows([random.integers(5, 300, random.integers(low, 20)).tolist() for _ in range(count)], [str(at) for at in range(count)])


def stopping(at: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return progress


def files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in digest_folder(folder).items() if name in {f"{one}.safetensors" for one in names} | {"trace.jsonl", "result.json"}}


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu"])
def test_stopped_and_gone_on_it_ends_in_the_same_bytes(activation: str, model: Loaded, texts: Rows, tmp_path: Path) -> None:
    course = replace(SMALL, activation=activation, sparsity=0.1)  # type: ignore[arg-type]
    sites = ["layers.1.resid_post", TRANSCODER]
    names = ["layers.1.resid_post", "layers.0.mlp.in-to-layers.0.mlp.out"]
    learn(model, texts, sites, tmp_path / "whole", course)
    for stop in (3, 8, 11):
        with pytest.raises(Interrupted, match="last checkpoint"):
            learn(model, texts, sites, tmp_path / "parts", course, stopping(stop))
        with pytest.raises(UsageError, match="to the end"):
            opened(tmp_path / "parts")
    torch.manual_seed(5)
    done: list[int] = []
    learn(model, texts, sites, tmp_path / "parts", course, lambda what, at, total: done.append(at))
    assert done == [11, 12]
    whole = files(tmp_path / "whole", names)
    assert len(whole) == 4
    assert files(tmp_path / "parts", names) == whole


def test_learned_together_each_is_as_alone(model: Loaded, texts: Rows, tmp_path: Path) -> None:
    together = learn(model, texts, ["layers.0.resid_post", TRANSCODER, "layers.1.attn.z"], tmp_path / "all", SMALL)
    alone = learn(model, texts, ["layers.1.attn.z"], tmp_path / "one", SMALL)
    assert list(together.dictionaries) == ["layers.0.resid_post", "layers.0.mlp.in-to-layers.0.mlp.out", "layers.1.attn.z"]
    for name, value in alone.dictionaries["layers.1.attn.z"].state_dict().items():
        assert torch.equal(value, together.dictionaries["layers.1.attn.z"].state_dict()[name]), name


def test_learning_lowers_what_is_unexplained_and_leaves_the_model(model: Loaded, texts: Rows, tmp_path: Path) -> None:
    before = digest_tensors(model.model.state_dict())
    found = learn(model, texts, ["layers.1.resid_post"], tmp_path, replace(SMALL, steps=80, k=8, features=64, lr=1e-2))
    assert digest_tensors(model.model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not model.model.training
    trace = list(read_jsonl(tmp_path / "trace.jsonl"))
    name = "layers.1.resid_post.unexplained"
    assert trace[-1][name] < 0.5 * trace[0][name]
    assert trace[-1]["layers.1.resid_post.active"] == pytest.approx(8, abs=0.5)
    one = found.dictionaries["layers.1.resid_post"]
    torch.testing.assert_close(one.decoder_FE.norm(dim=1), torch.ones(64))
    held_out = random_rows(20, seed=1)
    assert fidelity(model, one, held_out, draws=20).dictionary.unexplained.value == pytest.approx(trace[-1][name], rel=0.4)
    assert fidelity(model, one, texts, draws=2).dictionary.active == pytest.approx(8, abs=1)
    assert found.tokens == trace[-1]["tokens"] > 0


def test_the_objective_reads_what_a_tap_reads_without_padding_and_skipped_positions(model: Loaded, texts: Rows) -> None:
    objective = Reconstruct((model, model), skip=2)
    assert isinstance(objective, Objective)
    batch = collate(texts, np.arange(5), pad=model.tokenizer.pad_token_id, language_model=False)
    found_ND = objective.vectors(["layers.0.attn.z"], batch)["layers.0.attn.z"]
    want = []
    for row in range(5):
        tokens = texts.tokens[texts.offsets[row] : texts.offsets[row + 1]]
        with tap(model.model, "layers.0.attn.z") as seen, torch.no_grad():
            model.model(input_ids=torch.tensor(tokens[None].astype(np.int64)))
        want.append(seen["layers.0.attn.z"][0, 2:].flatten(1))
    torch.testing.assert_close(found_ND, torch.cat([*want, *want]), atol=1e-5, rtol=1e-4)
    assert objective.units(batch) == len(found_ND)


def test_an_encoder_is_read_without_its_padding(texts: Rows, tmp_path: Path) -> None:
    encoder = load(str(toys.twin("bert", tmp_path / "bert")))
    found = learn(encoder, texts, ["layers.0.mlp.out"], tmp_path / "out", SMALL)
    assert found.dictionaries["layers.0.mlp.out"].form.inputs == 32
    batch = collate(texts, np.arange(6), pad=encoder.tokenizer.pad_token_id, language_model=False)
    changed = replace(batch, tokens_BT=torch.where(batch.mask_BT, batch.tokens_BT, 99))
    vectors = [Reconstruct((encoder,)).vectors(["layers.0.mlp.out"], one)["layers.0.mlp.out"] for one in (batch, changed)]
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=0)


def test_another_plan_in_the_same_folder_is_refused_and_a_finished_one_only_read(model: Loaded, texts: Rows, tmp_path: Path) -> None:
    first = learn(model, texts, ["embed"], tmp_path, SMALL)
    before = digest_folder(tmp_path)
    again = learn(model, texts, ["embed"], tmp_path, SMALL, stopping(1))
    assert digest_folder(tmp_path) == before
    assert again.tokens == first.tokens
    for args in ((texts, ["final"], SMALL), (random_rows(60, seed=1), ["embed"], SMALL), (texts, ["embed"], replace(SMALL, k=5))):
        with pytest.raises(UsageError, match="something else"):
            learn(model, args[0], args[1], tmp_path, args[2])


def test_a_damaged_result_is_named(model: Loaded, texts: Rows, tmp_path: Path) -> None:
    learn(model, texts, ["embed"], tmp_path, SMALL)
    (tmp_path / "embed.json").write_text(json.dumps({"reads": "embed"}))
    with pytest.raises(UsageError, match="form"):
        opened(tmp_path)


def test_what_cannot_be_learned_is_refused(model: Loaded, texts: Rows, tmp_path: Path) -> None:
    for site in ("layers.0.attn.pattern", "layers.*.resid_post", "layers.9.resid_post", "logits"):
        with pytest.raises(UsageError):
            learn(model, texts, [site], tmp_path, SMALL)
    for course in (replace(SMALL, steps=0), replace(SMALL, skip=3), replace(SMALL, lr=0.0), replace(SMALL, k=41), replace(SMALL, checkpoint_every=0)):
        with pytest.raises(UsageError):
            learn(model, texts, ["embed"], tmp_path / str(course.skip), course)
    with pytest.raises(UsageError, match="no site twice"):
        learn(model, texts, ["embed", "embed"], tmp_path, SMALL)
    with pytest.raises(UsageError, match="at least one of each"):
        learn((), texts, ["embed"], tmp_path, SMALL)
    model.model.train()
    with pytest.raises(UsageError, match="eval"):
        learn(model, texts, ["embed"], tmp_path, SMALL)
    model.model.eval()
