from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.numpy import save_file

from knowhow.errors import SafetyError, UsageError
from knowhow.files import digest, digest_folder
from knowhow.package import MANIFEST, as_specialist, package, read
from knowhow.report.card import portable
from knowhow.types import EvalResult, Interval, ModelRef, Specialist, Task

CHANGES = (
    *("one bit of the weights", "a file removed", "a file added", "a link in place of a file", "a result made better"),
    "a path that leaves the folder",
)
LABELS = ("clean", "ransomware", "rat")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from knowhow.model.toys import twin

    return twin("llama", tmp_path_factory.mktemp("model") / "twin")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "specialist"
    package(model, out, specialist=specialist(), extras=extras(), adapter=False)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def result(model: str, slice: str = "all", metric: str = "macro_f1", value: float = 0.6, **paired: float) -> EvalResult:
    gaps = {name: Interval(gap, gap - 0.02, gap + 0.02, 900) for name, gap in paired.items()}
    cost = {"mcnemar_p:majority": 0.01, "seconds": 12.5, "latency_ms": 3.0}
    return EvalResult("classify", metric, value, value - 0.03, value + 0.03, 900, slice, model, gaps, cost, "evaluate/samples.jsonl")


def specialist(name: str = "triage", labels: tuple[str, ...] = LABELS, base: str = "seedling", licence: str = "Apache-2.0") -> Specialist:
    results = [result("specialist", slice, metric, majority=0.4, lightgbm=0.05) for slice in ("all", "novel") for metric in ("macro_f1", "accuracy")]
    results += [result("majority", value=0.2), result("lightgbm", value=0.55), result("specialist", "class:rat", "f1")]
    results += [result("specialist", metric="auc", value=float("nan")), result("specialist", "class:trojan", "precision", lightgbm=float("nan"))]
    limits = ("Seen only in one sandbox | and <b>one</b> month.",)
    task = Task("classify", labels, metric="macro_f1")
    return Specialist(name, ModelRef(base, sha256="ab" * 32, parent="cd" * 32), task, tuple(results), (), ({"law": "l", "value": 1.0},), limits, licence, {})


def extras() -> dict[str, Any]:
    secret = {"examples": ["SECRET TRAINING ROW"]}
    abstention = {"risk": 0.05, "threshold": 0.8, "coverage": 0.4, "bound": 0.049}
    leakage = {"train→test": {"exact": 5, "near": 1} | secret}
    return {
        "input": {"context": 256, "truncate": "head"},
        "calibration": {"temperature": 1.7, "thresholds": [0.5, 0.4, 0.6], "abstention": abstention, "before": {"ece": 0.1, "bins": []}},
        "recipe": {"name": "triage", "description": "Families.", "data": {"train": "org/traces", "test": "/srv/somebody/test.jsonl"}, "seed": 7},
        "audit": {"rows": {"train": 900, "test": 300}, "duplicates": {"exact": 3} | secret, "leakage": leakage, "warnings": ["few rats"]},
        "licences": {"base": "Apache-2.0", "data": "MIT", "note": "Any use with attribution."},
        "vocabulary": {"words": 12, "new_words": ["SECRET TRAINING ROW"], "before": 600.0, "after": 150.0},
        "forgetting": {"value": 0.1, "low": 0.08, "high": 0.12, "n": 400, "unit": "nats per token"},
        "language": ["en"],
    }


def test_model_files_are_unchanged_and_the_manifest_reads_back(made: Path, model: Path) -> None:
    before, after = digest_folder(model, without=["README.md"]), digest_folder(made)
    assert {name: after[name] for name in before} == before
    manifest = read(made)
    assert set(after) == {*manifest.files, MANIFEST}
    assert {name: after[name] for name in manifest.files} == manifest.files
    assert (manifest.labels, manifest.calibration.temperature, manifest.parent, manifest.adapter) == (LABELS, 1.7, "cd" * 32, False)
    assert manifest.digest == digest({key: value for key, value in json.loads((made / MANIFEST).read_text()).items() if key != "digest"})
    assert (manifest.input.context, manifest.input.truncate, manifest.calibration.thresholds) == (256, "head", (0.5, 0.4, 0.6))
    back = as_specialist(manifest)
    assert (back.task, back.limits, back.base.source) == (specialist().task, specialist().limits, "seedling")
    assert back.results[0].paired["lightgbm"].low == pytest.approx(0.03)


def test_same_run_same_bytes_whatever_the_folder_and_the_clock(made: Path, model: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(model, tmp_path / "other place"))
    os.utime(elsewhere / "config.json", (1, 1))
    package(elsewhere, tmp_path / "again", specialist=specialist(), extras=extras(), adapter=False)
    assert digest_folder(tmp_path / "again") == digest_folder(made)
    text = "".join(path.read_text("utf-8") for path in made.rglob("*") if path.suffix in (".json", ".md", ".yaml"))
    assert str(tmp_path.parent) not in text


def test_no_clock_readings_and_no_training_rows_travel(made: Path) -> None:
    text = (made / MANIFEST).read_text() + (made / "README.md").read_text() + (made / "evals/results.json").read_text()
    for absent in ("SECRET TRAINING ROW", "seconds", "latency", "samples.jsonl", "NaN"):
        assert absent not in text
    row = json.loads((made / "evals/results.json").read_text())[0]
    assert row["cost"] == {"mcnemar_p:majority": 0.01}


def test_the_card_is_one_that_the_hub_reads(made: Path) -> None:
    card = ModelCard.load(made / "README.md")
    assert card.data.license == "apache-2.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert (card.data.base_model, card.data.base_model_relation) == ("seedling", "finetune")
    assert (card.data.language, card.data.datasets, card.data.metrics) == (["en"], ["org/traces"], ["f1", "accuracy"])
    header = yaml.safe_load((made / "README.md").read_text().split("---\n")[1])
    name, results = model_index_to_eval_results(header["model-index"])
    assert name == "triage"
    assert [(row.metric_type, row.metric_value, row.dataset_config) for row in results] == [
        ("f1", 0.6, "all"), ("accuracy", 0.6, "all"), ("f1", 0.6, "novel"), ("accuracy", 0.6, "novel"),
    ]  # fmt: skip
    assert results[0].metric_args == {"low": 0.57, "high": 0.63, "confidence": 0.95, "n": 900}
    for shown in (
        *(
            "The specialist beats every baseline",
            "| macro-F1 | 0.600 (0.570 to 0.630), n = 900 | 0.600 (0.570",
            "| lightgbm | 0.550 |",
            "+0.050 (+0.030 to +0.070)",
        ),
        *("Seen only in one sandbox \\| and \\<b\\>one\\</b\\> month.", "changed by +0.100 nats per token", "40.0% of the inputs", "Any use with attribution."),
        *("12 domain words were added", "few rats", "AutoModelForSequenceClassification"),
    ):
        assert shown in card.text, shown


def test_an_adapter_says_so(tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (source / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.q_proj.lora_A.weight": np.zeros((2, 4), dtype=np.float32)}, source / "adapter_model.safetensors")
    package(source, tmp_path / "out", specialist=specialist(base="org/base", licence="My Own Terms"), extras={}, adapter=True)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.library_name, card.data.base_model_relation, card.data.base_model) == ("peft", "adapter", "org/base")
    assert (card.data.license, card.data.license_name) == ("other", "My Own Terms")
    assert "PeftModel" in card.text
    assert read(tmp_path / "out").adapter


def test_repackaging_replaces_the_whole_folder_and_leaves_nothing_beside_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    package(model, out, specialist=specialist(), extras=extras(), adapter=False)
    (out / "measured.json").write_text("{}")
    package(out, tmp_path / "second", specialist=specialist("other"), extras={}, adapter=False)
    assert read(tmp_path / "second").name == "other"
    assert not (tmp_path / "second/measured.json").exists()
    package(model, out, specialist=specialist("third"), extras={}, adapter=False)
    assert read(out).name == "third"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "second"}


def test_a_packaging_killed_at_any_point_leaves_the_old_folder_or_the_new(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    package(model, out, specialist=specialist("old"), extras={}, adapter=False)
    real, calls = Path.replace, []

    def dies_between(path: Path, target: Path) -> Path:
        if str(path).endswith(".part") and target == out:
            calls.append(path)
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies_between)
        with pytest.raises(KeyboardInterrupt):
            package(model, out, specialist=specialist("new"), extras={}, adapter=False)
    assert calls
    package(model, out, specialist=specialist("new"), extras={}, adapter=False)
    assert read(out).name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_specialist_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no specialist"):
        package(model, tmp_path / "mine", specialist=specialist(), extras={}, adapter=False)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["model.pkl", "modeling.py"])
def test_what_could_run_is_not_packaged(model: Path, tmp_path: Path, name: str) -> None:
    source = Path(shutil.copytree(model, tmp_path / "source"))
    (source / name).write_bytes(b"x")
    with pytest.raises(SafetyError):
        package(source, tmp_path / "out", specialist=specialist(), extras={}, adapter=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def change(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "one bit of the weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "a file removed":
        weights.unlink()
    elif how == "a file added":
        (folder / "modeling.py").write_text("import os")
    elif how == "a link in place of a file":
        weights.rename(folder.parent / "elsewhere")
        weights.symlink_to(folder.parent / "elsewhere")
    elif how == "a result made better":
        edit(folder, lambda document: document["results"][0].update(value=0.99))
    elif how == "a path that leaves the folder":
        edit(folder, lambda document: document["files"].update({"../../etc/passwd": "0" * 64}), seal=True)


def edit(folder: Path, change: Any, *, seal: bool = False) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    if seal:
        document["digest"] = digest({key: value for key, value in document.items() if key != "digest"})
    (folder / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize("how", CHANGES)
def test_any_change_after_packaging_is_refused(folder: Path, how: str) -> None:
    read(folder)
    change(folder, how)
    with pytest.raises(SafetyError):
        read(folder)


def test_a_report_and_measurements_may_be_put_beside(folder: Path) -> None:
    for name in ("report.html", "measured.json", ".gitattributes"):
        (folder / name).write_text("later")
    assert read(folder).name == "triage"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda document: document.update(surprise=1), "surprise: Extra inputs"),
        (lambda document: document.update(schema_version=99), "version 99"),
        (lambda document: document.update(name="../../x"), "name:"),
        (lambda document: document["task"].update(kind="conquer"), "task.kind"),
        (lambda document: document.update(digest="short"), "digest"),
        (lambda document: document["calibration"].update(temperature=-1), "calibration.temperature"),
    ],
)
def test_a_manifest_of_another_shape_is_a_user_error_that_names_the_place(folder: Path, change: Any, told: str) -> None:
    edit(folder, change)
    with pytest.raises(UsageError, match=told):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_object_is_a_user_error(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(UsageError):
        read(folder)


def test_no_manifest_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no knowhow\.json"):
        read(tmp_path)


def test_hostile_names_stay_text(model: Path, tmp_path: Path) -> None:
    labels = (fake_run.HOSTILE, fake_run.LONE, fake_run.RTL, "a|b`c`\n# heading", "---")
    hostile: Mapping[str, Any] = {"recipe": {"description": f"---\nlicense: evil\n{fake_run.HOSTILE}", "labels": list(labels)}, "language": ["en"]}
    package(model, tmp_path / "out", specialist=specialist(labels=labels), extras=hostile, adapter=False)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "apache-2.0"
    assert "<script" not in card.text.replace("\\<", "")
    assert "\n# heading" not in card.text
    manifest = read(tmp_path / "out")
    assert manifest.labels[1] == "lone \\ud800 surrogate"
    assert manifest.labels[2] == fake_run.RTL
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text("utf-8"))["labels"][3] == labels[3]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("seedling", "seedling"),
        ("org/model-1.5B", "org/model-1.5B"),
        ("/srv/somebody/models/my-base", "my-base"),
        ("/cache/hub/models--org--model-1.5B/snapshots/0a1b2c", "org/model-1.5B"),
        ("../there/base", "base"),
    ],
)
def test_the_base_is_named_without_this_machine_s_folders(source: str, name: str) -> None:
    assert portable(source) == name
