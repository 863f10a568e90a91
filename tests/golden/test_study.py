"""A base and a specialist, watched: rows, kept weights, a story and a page; a stop in the middle, a run that breaks down, a run that nobody watched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import recipe, silent

from knowhow.commands.study import shipped
from knowhow.errors import Interrupted, UsageError
from knowhow.files import digest_folder, read_json, read_jsonl
from knowhow.pretrain import pretrain
from knowhow.recipe import PretrainRecipe
from knowhow.study import run as work

SECTIONS = ("What happened when", "Loss and the n-gram tables", "What heads came to do", "Which step and which data brought a head about", "How it was watched")


def made(folder: Path, **changes) -> PretrainRecipe:
    generator = torch.Generator().manual_seed(0)
    words = ["rain", "roof", "night", "town", "storm", "dark", "old", "fell"]

    def text() -> str:
        half = " ".join(words[at] for at in torch.randint(8, (8,), generator=generator))
        return f"{half} {half} {half}"

    for name, count in (("copies", 150), ("valid", 20)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text()}) for _ in range(count)))
    asked = {
        "name": "tiny-life", "vocabulary": 300, "d_model": 16, "layers": 2, "heads": 2, "kv_heads": 2, "d_ff": 24, "context": 32,
        "corpora": {"copies": {"files": ["copies.jsonl"]}}, "valid": {"copies": {"files": ["valid.jsonl"]}}, "tokens": 12 * 128, "sequence": 32,
        "batch_tokens": 128, "microbatch_tokens": 128, "compile": False, "checkpoint_every": 4, "precision": "float32", "muon_lr": None, **changes,
    }  # fmt: skip
    return PretrainRecipe(**asked)


def test_a_base_is_watched_and_a_stop_changes_nothing(tmp_path):
    asked = made(tmp_path)
    plain = pretrain(asked, run=tmp_path / "plain", root=tmp_path, progress=silent)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("pretraining") and done == 6:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        work.base(asked, run=tmp_path / "run", root=tmp_path, progress=stop)
    studied = work.base(asked, run=tmp_path / "run", root=tmp_path, progress=silent)
    assert digest_folder(studied.folder / "model") == digest_folder(plain)  # nobody can tell that it was watched
    rows = list(read_jsonl(studied.folder / "study" / "rows.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 13))
    prefixes = {name.split(".")[0] for row in rows for name in row if "." in name}
    assert prefixes == {"ngrams", "tokens", "circuits", "spectra", "rotation", "one_step", "sparsity", "outliers"}
    assert {int(path.stem) for path in (studied.folder / "study" / "kept").iterdir()} >= {1, 12}
    story = read_json(studied.folder / "study" / "story.json")
    assert (story["last_look"], story["steps"], story["missing"], story["ended"]) == (12, 12, "", "")
    assert {event["what"] for event in story["events"]} >= {"below unigram", "induction head", "attention sink", "steepest drop"}
    page = studied.page.read_text()
    assert all(section in page for section in SECTIONS)
    assert "default-src" in page
    with pytest.raises(UsageError, match="before anybody watched"):
        work.base(asked, run=tmp_path / "plain", root=tmp_path, progress=silent)


def test_a_run_that_breaks_down_ends_its_story_there(tmp_path):
    studied = work.base(made(tmp_path, lr=1e30, weight_decay=0.0), run=tmp_path / "run", root=tmp_path, progress=silent)
    assert "step" in studied.ended
    story = read_json(studied.folder / "study" / "story.json")
    assert story["last_look"] < 12
    assert "The run broke down" in studied.page.read_text()


def test_a_specialist_is_watched(tmp_path, bases):
    asked = recipe(tmp_path, bases("llama"), steps=6)
    studied = work.specialist(asked, runs=tmp_path / "runs", root=tmp_path, resume=False, progress=silent)
    rows = list(read_jsonl(studied.folder / "study" / "rows.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    prefixes = {name.split(".")[0] for row in rows for name in row if "." in name}
    assert prefixes == {"geometry", "probes", "roles", "spectra", "rotation", "one_step", "sparsity", "outliers"}
    assert not studied.ended
    assert "Labels inside the model" in studied.page.read_text()
    assert read_json(studied.folder / "study" / "story.json")["steps"] == 6


def test_the_life_that_ships_needs_no_run(tmp_path):
    folder = shipped(tmp_path)
    events = {event["what"]: event for event in read_json(folder / "study" / "story.json")["events"]}
    assert (events["previous-token head"]["site"], events["previous-token head"]["step"]) == ("layers.5.heads.1", 546)
    assert events["previous-token head"]["confirmed"] == 1  # the run ended one look later
    assert events["induction head"]["step"] is None
    page = (folder / "study" / "page.html").read_text()
    assert "L5H1 reaches 0.42" in page
    assert all(section in page for section in SECTIONS)
