"""Pretraining on a tiny corpus: stops anywhere, goes on, ends in the same bytes, and leaves a base that `build` can start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knowhow.errors import Interrupted
from knowhow.files import digest_folder, read_json, read_jsonl
from knowhow.model import load
from knowhow.pretrain import pretrain
from knowhow.recipe import PretrainRecipe


def recipe(folder: Path, **changes) -> PretrainRecipe:
    text = "It was a dark and stormy night, and the rain fell in torrents upon the roofs of the old town. "
    for name, count in (("train", 400), ("valid", 60)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": f"{text * 3} Chapter {at}.\n"}) for at in range(count)))
    made = {"domain": "malware", "options": {"tier": "O"}}
    return PretrainRecipe(
        **{
            "name": "tiny-base", "vocabulary": 512, "d_model": 32, "layers": 2, "heads": 2, "kv_heads": 2, "d_ff": 48, "context": 64, "embedding_std": 0.1,
            "corpora": {
                "books": {"files": ["train.jsonl"], "share": 0.6},
                "traces": {"documents": True, "generate": {**made, "train": 200, "seed": 5}, "share": 0.4},
            },
            "valid": {"books": {"files": ["valid.jsonl"]}, "traces": {"generate": {**made, "train": 20, "seed": 6}}},
            "tokens": 40 * 512, "sequence": 32, "long_sequence": 64, "batch_tokens": 512, "microbatch_tokens": 256, "compile": False,
            "checkpoint_every": 10, "precision": "float32", **changes,
        }
    )  # fmt: skip


def silent(what: str, done: int, total: int) -> None:
    """Nothing to draw."""


def test_a_base_is_made_and_any_stop_ends_in_the_same_bytes(tmp_path):
    asked = recipe(tmp_path)
    folder = pretrain(asked, run=tmp_path / "whole", root=tmp_path, progress=silent)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("pretraining") and done == 17:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        pretrain(asked, run=tmp_path / "cut", root=tmp_path, progress=stop)
    again = pretrain(asked, run=tmp_path / "cut", root=tmp_path, progress=silent)
    assert digest_folder(folder) == digest_folder(again)
    found = read_json(folder / "validation.json")
    assert found["books"]["model"] < found["books"]["untrained"] - 1
    assert found["books"]["five_gram"] < found["books"]["unigram"]
    assert [row["step"] for row in read_jsonl(folder / "observations.jsonl")][-1] == 40
    assert "| books |" in (folder / "README.md").read_text()
    loaded = load.load(str(folder))
    assert loaded.context == 64
    assert loaded.tokenizer.eos_token == "<|endoftext|>"
