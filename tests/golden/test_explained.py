"""What a build says about its answers, and what can be asked of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import built, recipe, rows, silent

from knowhow import run
from knowhow.commands import deeper
from knowhow.commands.output import Output
from knowhow.errors import UsageError
from knowhow.files import read_json, read_jsonl
from knowhow.recipe import Recipe
from knowhow.report import page
from knowhow.specialist import explain, open_specialist
from knowhow.types import Example


def test_answers_come_with_evidence_that_was_tested(tmp_path: Path, bases: Callable[[str], str]) -> None:
    words = {"warm": "fire", "cold": "snow"}
    lines = ["a door", "a walk", "a clock", "a bird", "a stone"]
    random = np.random.default_rng(1)
    made = []
    for at in range(200):
        label = "warm" if at % 2 else "cold"
        text = [*random.permutation(lines)[:3], f"and {words[label]}"]
        made.append({"text": "\n".join(random.permutation(text)) + f"\n{at}", "label": label})
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in made))
    asked = recipe(tmp_path, bases("llama"), steps=150).model_copy(update={"name": "lines"})
    asked = Recipe.model_validate({**asked.model_dump(), "data": {"train": str(tmp_path / "lines.jsonl"), "canaries": 0}, "explain": {"examples": 8}})
    done = run.build(asked, runs=tmp_path / "runs", resume=False, start_from=None, progress=silent, root=tmp_path)
    folder = done.run.path("explain")
    rows = list(read_jsonl(folder / "evidence.jsonl"))
    assert len(rows) == 8
    held = [row for row in rows if row["verdict"] == "supported"]
    # one of two labels may be what the model says when nothing speaks against it: then no line carries it, and the verdict says so
    assert held
    hits = [any(word in row["text"][span["start"] : span["end"]] for span in row["evidence"] for word in words.values()) for row in held]
    assert np.mean(hits) >= 0.75
    findings = {row["claim"]: row for row in read_json(folder / "findings.json")}
    lost = next(row for claim, row in findings.items() if claim.startswith("Without the marked lines"))
    assert lost["effect"] > lost["control"]
    assert {row["method"] for row in read_json(folder / "methods.json")} == {"occlusion", "gradient x input", "integrated gradients", "attention", "random"}
    inside = read_json(folder / "inside.json")
    assert {(cell["part"], cell["head"]) for cell in inside["map"]} == {("attn", 0), ("mlp", 0), *(("head", head) for head in range(4))}
    assert inside["map"][0]["low"] <= inside["map"][0]["fall"] <= inside["map"][0]["high"]
    assert [len(row["inside"]["lens"]) for row in rows] == [len(inside["lens"])] * 8
    assert rows[0]["inside"]["lens"][-1] == pytest.approx(rows[0]["logit"], abs=1e-3), "the last layer's lens is the answer itself"
    assert "What answers rest on" in done.report.read_text()
    assert "Where the skill lives" in done.report.read_text()
    told_of = read_json(done.specialist / "knowhow.json")["findings"]
    assert [row["claim"] for row in told_of] == [*findings, *(row["claim"] for row in inside["findings"])]
    opened = open_specialist(str(done.specialist), tmp_path / "runs")
    told = list(explain(opened, [Example("7", "a door\nand fire\na bird")], silent))
    assert [row["label"] for row in told] == ["warm"]
    assert told[0]["evidence"]
    with pytest.raises(UsageError, match="two words"):
        list(explain(opened, [Example("8", "fire")], silent))


def test_a_finished_run_tells_its_circuit_and_its_training_rows(tmp_path: Path, bases: Callable[[str], str]) -> None:
    small = recipe(tmp_path, bases("llama"), steps=60, keep=3).model_dump()
    asked = Recipe.model_validate({**small, "explain": {"examples": 4, "pairs": 8, "rows": 40, "answers": 2, "features": 64, "feature_steps": 20}})
    done = built(asked, tmp_path)
    folder = done.run.folder
    assert {path.stem for path in (folder / "adapt/phase-0/kept").glob("*.safetensors")} == {"1", "8", "60"}
    sealed = (folder / "run.json").read_text()
    for what in ("circuit", "influence", "features"):
        deeper.look(str(folder), what, (), tmp_path / "runs", Output(True, True))
    circuit, influence = (read_json(folder / "looked" / f"{what}.json") for what in ("circuit", "influence"))
    learned = read_json(folder / "looked/features.json")["dictionaries"][0]
    assert learned["name"] == "layers.1.resid_post"
    assert [way["name"] for way in learned["kept"]] == ["dictionary", "neurons", "neurons-mean", "pca"]
    assert {one["label"] for one in learned["strongest"]} <= {"warm", "cold"}
    assert circuit["against"] == "means"
    assert circuit["curve"]["points"][-1]["value"] == pytest.approx(1.0, abs=1e-4), "the whole model is faithful to itself"
    assert abs(circuit["complement"]["value"]) < 1
    assert influence["method"] == "TracIn over 3 checkpoints"
    assert influence["rows"] == 40
    assert len(influence["answers"]) == 2
    assert influence["answers"][0]["helped"][0]["score"] > 0
    assert (folder / "run.json").read_text() == sealed, "what the build sealed stays as it was"
    out = page.write(folder, tmp_path / "again.html").read_text()
    assert "The circuit behind the answers" in out
    assert "TracIn over 3 checkpoints" in out
    with pytest.raises(UsageError, match="circuit"):
        deeper.look(str(folder), "soul", (), tmp_path / "runs", Output(True, True))


def test_written_answers_have_evidence_token_by_token(tmp_path: Path, bases: Callable[[str], str]) -> None:
    made = [{"text": f"{row['text'].split(' number')[0].replace(' ', chr(10))}", "completion": row["label"]} for row in rows("classify", 200)]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in made))
    asked = recipe(tmp_path, bases("llama"), "generate", steps=120)
    asked = Recipe.model_validate({**asked.model_dump(), "data": {"train": str(tmp_path / "lines.jsonl"), "canaries": 0}, "explain": {"examples": 4}})
    done = run.build(asked, runs=tmp_path / "runs", resume=False, start_from=None, progress=silent, root=tmp_path)
    told = list(read_jsonl(done.run.path("explain", "evidence.jsonl")))
    assert len(told) == 4
    for row in told:
        assert "".join(piece for piece, _ in row["tokens"]).strip() == row["label"]
        assert {len(falls) for _, falls in row["tokens"]} == {len(row["units"])}
    assert {row["method"] for row in read_json(done.run.path("explain", "methods.json"))} == {"occlusion", "random"}
    assert 'class="token"' in done.report.read_text()
    opened = open_specialist(str(done.specialist), tmp_path / "runs")
    (row,) = explain(opened, [Example("3", "the\nsun\nof\nfire")], silent)
    assert row["tokens"]
