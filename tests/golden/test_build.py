"""The whole flow on tiny twins: every task, both methods, the same bytes after any interruption, and a folder that plain transformers loads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from small import built, explained, recipe, silent
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from knowhow import run
from knowhow.data.store import Examples
from knowhow.errors import GateError, Interrupted, UsageError
from knowhow.files import read_json, read_jsonl
from knowhow.model import channel
from knowhow.recipe import FieldsSpec
from knowhow.specialist import ask, open_specialist, predict_file
from knowhow.stages.common import answers, load_predictions


@pytest.mark.parametrize("task", ["classify", "many", "regress", "generate", "score"])
def test_every_task_ends_in_a_specialist_and_a_page(tmp_path, bases, task):
    result = built(explained(recipe(tmp_path, bases("llama"), task)), tmp_path)
    results = read_json(result.run.path("evaluate", "results.json"))
    assert {row["model"] for row in results} > {"specialist"}
    own = [row for row in results if row["model"] == "specialist" and row["slice"] == "all"]
    assert own
    assert all(row["low"] <= row["value"] <= row["high"] for row in own)
    assert any(row["paired"] for row in own)
    assert "<html" in result.report.read_text()
    opened = open_specialist(str(result.specialist), tmp_path / "runs")
    said = ask(opened, "snow and ice", "is it warm or cold?" if task == "score" else None)
    assert "answer" in said


@pytest.mark.parametrize("task", ["classify", "many"])
def test_baselines_teach_and_every_position_learns(tmp_path, bases, task):
    result = built(recipe(tmp_path, bases("llama"), task, teacher={"folds": 2}, replication=0.5), tmp_path)
    assert result.run.path("adapt", "phase-0", "teacher.safetensors").is_file()
    losses = [row["loss"] for row in read_jsonl(result.run.path("adapt", "trace.jsonl")) if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("task", ["classify", "many"])
def test_a_channel_answers_again_after_packaging(tmp_path, bases, task):
    result = built(recipe(tmp_path, bases("llama"), task, objective="channel", steps=40), tmp_path)
    assert read_json(result.specialist / "knowhow.json")["input"]["form"] == "channel"
    opened = open_specialist(str(result.specialist), tmp_path / "runs")
    valid = Examples(result.run.path("data", "valid.arrow"))
    kept = load_predictions(result.run.path("evaluate", "predictions", "valid"))
    assert np.allclose(answers(opened.loaded, valid, opened.task, opened.spec, name="specialist").logits_NC, kept.logits_NC, atol=1e-3)
    said = ask(opened, "snow and ice in winter")["answer"]
    assert said == "cold" or "cold" in said
    assert_the_card_tells_how(result.specialist, opened, task)
    assert AutoModelForCausalLM.from_pretrained(result.specialist).config.architectures == ["LlamaForCausalLM"]


def assert_the_card_tells_how(folder, opened, task):
    """What the card shows as code gives the logit that knowhow gives."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    shown: dict[str, Any] = {}
    exec(code, shown)
    text, labels = "snow and ice", opened.task.labels
    ours = channel.class_logits(opened.loaded, [shown["tokenizer"](text, add_special_tokens=False).input_ids])[0]
    if task == "classify":
        theirs = np.array([shown["likelihood"](text, [f"<|given:{label}|>"]).item() for label in labels])
        theirs -= theirs.max()
    else:
        states = [[[f"<|given:{each}={state if each == label else 'unknown'}|>" for each in labels] for state in ("yes", "no")] for label in labels]
        theirs = np.array([(shown["likelihood"](text, yes) - shown["likelihood"](text, no)).item() for yes, no in states])
    assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("family", "task", "key"), [("bert", "classify", "replication"), ("llama", "regress", "teacher")])
def test_what_does_not_fit_is_refused(tmp_path, bases, family, task, key):
    with pytest.raises(UsageError, match=key):
        built(recipe(tmp_path, bases(family), task, **{key: {"replication": 0.5, "teacher": {}}[key]}), tmp_path)


def test_an_encoder_is_no_channel(tmp_path, bases):
    with pytest.raises(UsageError, match="channel with an encoder"):
        built(recipe(tmp_path, bases("bert"), objective="channel"), tmp_path)


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3"])
def test_other_families_build_too(tmp_path, bases, family):
    result = built(explained(recipe(tmp_path, bases(family))), tmp_path)
    assert result.specialist.is_dir()


def test_plain_transformers_gives_the_same_logits(tmp_path, bases):
    result = built(recipe(tmp_path, bases("llama")), tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(result.specialist).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.specialist)
    opened = open_specialist(str(result.specialist), tmp_path / "runs")
    batch = tokenizer(["snow and ice in the desert"], return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**batch).logits
        ours = opened.loaded.model(**batch).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert model.config.id2label == {0: "cold", 1: "warm"}


@pytest.mark.parametrize("merge", [True, False])
def test_lora_is_merged_on_request_and_leaves_the_base_alone_otherwise(tmp_path, bases, merge):
    asked = recipe(tmp_path, bases("llama"), method="lora")
    asked = asked.model_copy(update={"package": asked.package.model_copy(update={"merge": merge})})
    result = built(asked, tmp_path)
    assert (result.specialist / "adapter_model.safetensors").is_file() != merge
    assert ask(open_specialist(str(result.specialist), tmp_path / "runs"), "snow and ice")["answer"] in ("warm", "cold")


@pytest.mark.parametrize(("task", "objective"), [("classify", "classify"), ("many", "channel")])
def test_an_interrupted_build_ends_in_the_same_bytes(tmp_path, bases, task, objective):
    asked = explained(recipe(tmp_path, bases("llama"), task, objective=objective, lr=[1e-3, 3e-3]))
    whole = built(asked, tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path)
    (tmp_path / "b").mkdir()

    def stop_at(step: int) -> Any:
        def progress(what: str, done: int, total: int) -> None:
            if what.startswith("phase") and done == step:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(Interrupted):
        built(asked, tmp_path / "b", progress=stop_at(13))
    with pytest.raises(Interrupted):
        built(asked, tmp_path / "b", resume=True, progress=stop_at(17))
    again = built(asked, tmp_path / "b", resume=True)
    assert again.sha256 == whole.sha256
    log = [row for row in read_jsonl(again.run.path("log.jsonl")) if row["stage"] == "data"]
    assert [row["event"] for row in log] == ["started", "sealed", "kept", "kept"]


def test_resume_of_a_finished_run_does_nothing_and_another_recipe_is_not_resumed(tmp_path, bases):
    asked = recipe(tmp_path, bases("llama"))
    first = built(asked, tmp_path)
    again = built(asked, tmp_path, resume=True)
    assert again.sha256 == first.sha256
    assert sum(row["event"] == "sealed" for row in read_jsonl(again.run.path("log.jsonl"))) == len(run.STAGES)
    with pytest.raises(UsageError, match="nothing to resume"):
        built(asked.model_copy(update={"seed": 5}), tmp_path, resume=True)


def test_a_changed_file_is_refused_as_a_resume_and_gates_end_with_three(tmp_path, bases):
    asked = recipe(tmp_path, bases("llama"))
    gated = asked.model_copy(update={"budget": asked.budget.model_copy(update={"beat_baselines": True})})
    with pytest.raises(GateError) as error:
        built(gated, tmp_path)
    assert error.value.exit_code == 3
    assert "does not beat" in error.value.got


def test_a_warm_update_starts_from_a_specialist(tmp_path, bases):
    first = built(recipe(tmp_path, bases("llama")), tmp_path)
    asked = recipe(tmp_path, bases("llama"), steps=5, lr=1e-6)
    second = run.build(asked, runs=tmp_path / "runs", resume=False, start_from=first.specialist, progress=silent, root=tmp_path)

    def probabilities(result: run.RunResult) -> np.ndarray:
        opened = open_specialist(str(result.specialist), tmp_path)
        return np.array(list(ask(opened, "snow and ice")["probabilities"].values()))

    assert read_json(second.run.path("base", "base.json"))["source"] != asked.base.model
    assert second.sha256 != first.sha256
    assert np.abs(probabilities(first) - probabilities(second)).max() < 0.5


def test_predict_goes_on_where_it_stopped(tmp_path, bases):
    result = built(recipe(tmp_path, bases("llama")), tmp_path)
    opened = open_specialist(str(result.specialist), tmp_path / "runs")
    lines = [json.dumps({"text": f"snow and ice {at}"}) for at in range(600)]
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert predict_file(opened, str(tmp_path / "new.jsonl"), whole, columns=FieldsSpec(), progress=silent) == 600

    def stop(what: str, done: int, total: int) -> None:
        if what == "predict":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(opened, str(tmp_path / "new.jsonl"), cut, columns=FieldsSpec(), progress=stop)
    with cut.open("a") as file:
        file.write('{"row": 256, "torn')
    predict_file(opened, str(tmp_path / "new.jsonl"), cut, columns=FieldsSpec(), progress=silent)
    assert list(read_jsonl(cut)) == list(read_jsonl(whole))


def test_the_label_token_form_answers_like_the_classifier(tmp_path, bases):
    asked = recipe(tmp_path, bases("llama"))
    asked = asked.model_copy(update={"package": asked.package.model_copy(update={"label_tokens": True})})
    result = built(asked, tmp_path)
    folder = result.run.path("package", "label-tokens")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(result.specialist).eval()
    batch = tokenizer(["snow and ice"], return_tensors="pt")
    with torch.inference_mode():
        labels = tokenizer.convert_tokens_to_ids(["<|label:cold|>", "<|label:warm|>"])
        logits = model(**batch).logits[0, -1, labels]
        assert torch.allclose(logits, classifier(**batch).logits[0], atol=1e-5)
