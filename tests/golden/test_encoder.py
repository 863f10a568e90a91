"""A sentence encoder, which has no head for words, as a base."""

from __future__ import annotations

import json

from small import recipe, silent

from knowhow import run
from knowhow.model import load


def test_an_encoder_without_a_head_for_words_is_as_good_a_base(bases, tmp_path) -> None:
    load.save(load.load(bases("bert"), head="classifier", labels=("a", "b")), tmp_path / "bare")
    asked = recipe(tmp_path, str(tmp_path / "bare"))
    found = run.flow(asked, runs=tmp_path / "runs", resume=False, start_from=None, progress=silent, root=tmp_path, until="adapt").run.folder
    assert json.loads((found / "base" / "base.json").read_text())["kind"] == "encoder"
    assert json.loads((found / "adapt" / "choices.json").read_text())[0]["steps"] == 20
