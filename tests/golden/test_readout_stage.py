"""What answers are read off: validation picks, the specialist answers as it was measured, plain transformers loads its part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from small import built, explained, recipe, rows

from knowhow.data.chat import prompt_text
from knowhow.recipe import Recipe
from knowhow.specialist import ask, open_specialist
from knowhow.stages.common import load_predictions
from knowhow.stages.readout import SHARES

ALL = ["tuned", "frozen", "tuned+ngrams", "frozen+ngrams"]


def asked(tmp_path, base: str, candidates: list[str], **said) -> Recipe:
    return Recipe.model_validate({**explained(recipe(tmp_path, base, **said)).model_dump(), "readout": {"candidates": candidates}})


@pytest.mark.parametrize(("family", "task"), [("llama", "classify"), ("bert", "many")])
def test_the_best_on_validation_is_packaged(bases, tmp_path, family, task) -> None:
    done = built(asked(tmp_path, bases(family), ALL, task=task), tmp_path)
    choice = json.loads(done.run.path("readout", "choice.json").read_text())
    scores = {one["name"]: one["score"] for one in choice["tried"]}
    assert list(scores) == ALL
    assert scores[choice["chosen"]] == max(scores.values())
    assert scores["frozen+ngrams"] > 0.85  # words tell warm from cold, and little tells odd rows
    assert choice["tried"][2]["share"] in SHARES


@pytest.mark.parametrize("name", ["frozen", "tuned+ngrams"])
def test_a_specialist_answers_as_it_was_measured(bases, tmp_path, name) -> None:
    done = built(asked(tmp_path, bases("llama"), [name]), tmp_path)
    given = load_predictions(done.run.path("evaluate", "predictions", "test"))
    opened = open_specialist(str(done.specialist), tmp_path)
    assert (opened.loaded.ngrams is not None) == name.endswith("ngrams")
    row = next(one for one in rows("classify") if one["text"].endswith("number 7"))
    texts = {example.id: prompt_text(example, opened.task) for example in _test_rows(done)}
    at = next(iter(texts))
    told = ask(opened, texts[at])
    assert np.allclose(list(told["probabilities"].values()), given.probs_NC[given.ids.index(at)], atol=1e-4)
    assert ask(opened, row["text"])["answer"] in ("warm", "cold")
    limits = json.loads((done.specialist / "knowhow.json").read_text())["limits"]
    assert any("N-grams" in limit for limit in limits) == name.endswith("ngrams")


def _test_rows(done):
    from knowhow.data.store import Examples

    return Examples(done.run.path("data", "test.arrow"))


def test_what_cannot_be_read_out_is_said_before_anything_starts(tmp_path) -> None:
    plain = recipe(tmp_path, "seedling").model_dump()
    for change in (
        {"task": {"kind": "regress"}},
        {"package": {"label_tokens": True}},
        {"package": {"merge": False}, "adapt": [{"method": "lora", "steps": 2}]},
    ):
        with pytest.raises(ValidationError, match=r"readout|label_tokens|merge"):
            Recipe.model_validate({**plain, "readout": {"candidates": ["frozen+ngrams"]}, **change})


def test_phases_in_a_row_are_planned_before_the_first_has_run(bases, tmp_path) -> None:
    plain = recipe(tmp_path, bases("llama")).model_dump()
    phases = [{"objective": "lm", "steps": 3, "batch_tokens": 512}, {**plain["adapt"][0], "lr": "auto", "steps": 5}]
    done = built(Recipe.model_validate({**plain, "adapt": phases}), tmp_path)
    assert [row["objective"] for row in json.loads(done.run.path("adapt", "choices.json").read_text())] == ["lm", "classify"]


def test_a_head_that_reads_the_mean_has_a_layer_more_than_its_base(bases, tmp_path) -> None:
    done = built(explained(recipe(tmp_path, bases("bert"), pooling="mean")), tmp_path)
    layers = [json.loads((folder / "config.json").read_text())["num_hidden_layers"] for folder in (Path(bases("bert")), done.specialist)]
    assert layers == [2, 3]
    changed = json.loads(done.run.path("explain", "diff.json").read_text())
    assert "cannot be compared" in changed["why"]


def test_lora_does_not_add_a_layer(tmp_path) -> None:
    plain = recipe(tmp_path, "seedling").model_dump()
    with pytest.raises(ValidationError, match="pooling"):
        Recipe.model_validate({**plain, "adapt": [{"steps": 2, "pooling": "mean", "method": "lora"}]})
