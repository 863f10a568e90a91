"""`knowhow triage` on a folder as it lies about: reports of several formats, a page of text, a broken one, a refused one."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from knowhow.cli import main
from knowhow.domains.malware import ingest
from knowhow.domains.malware.emit import EMITTERS
from knowhow.domains.malware.generate import generate
from knowhow.files import read_json, read_jsonl
from knowhow.model.toys import twin

RECIPE = """
schema_version: 1
name: tiny
task: {kind: classify, many: true}
base: {model: ./base, context: 160}
data: {generate: {domain: malware, options: {tier: O, behaviours: [run_key, service]}, train: 60, valid: 20, test: 20}, audit: false}
adapt: [{steps: 6, batch_tokens: 1024, lr: 3.0e-3}]
evaluate: {draws: 20, forgetting: false, memorisation: false, baselines: [majority]}
explain: {examples: 0}
"""

FAMILY = """
schema_version: 1
name: family
task: {kind: classify}
base: {model: ./base, context: 160}
data: {domain: malware, train: ., test: ., options: {label: family}, split: {by: group, valid: 0.2}, audit: false}
adapt: [{steps: 4, batch_tokens: 1024, lr: 3.0e-3}]
readout: {candidates: [tuned+ngrams]}
evaluate: {draws: 20, forgetting: false, memorisation: false, baselines: [majority]}
explain: {examples: 0}
"""

WRITER = """
schema_version: 1
name: writer
task: {kind: generate}
base: {model: seedling, context: 512}
data: {generate: {domain: malware, options: {write: true}, train: 12, valid: 2, test: 2}, audit: false}
adapt: [{objective: sft, steps: 2, batch_tokens: 2048}]
evaluate: {draws: 20, forgetting: false, memorisation: false, baselines: []}
explain: {examples: 0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("triage")
        patch.chdir(folder)
        patch.setattr("knowhow.commands.failures._settle", lambda debug: None)
        twin("llama", folder / "base")
        (folder / "tiny.yaml").write_text(RECIPE)
        assert main(["build", "tiny.yaml", "--quiet"]) == 0
        (folder / "reports").mkdir()
        for (name, emit), made in zip(EMITTERS.items(), generate({"tier": "O", "behaviours": ["run_key", "service"]}, seed=5, n=len(EMITTERS)), strict=True):
            report = emit(ingest.read_report(str(made.prompt)))
            (folder / "reports" / f"{name}.json").write_text(report if isinstance(report, str) else json.dumps(report))
        yield folder


def test_every_report_gets_a_record_a_page_and_exports(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triage", "tiny", "reports", "--out", "out"]) == 0
    rows = list(read_jsonl(place / "out" / "answers.jsonl"))
    assert [Path(row["name"]).stem for row in rows] == sorted(EMITTERS)
    assert {row["exit"] for row in rows} == {0}
    assert all(row["probabilities"].keys() == {"run_key", "service"} for row in rows)
    assert all(row["nearest"] for row in rows)
    assert next(row for row in rows if "avast" in row["name"])["status"] == "insufficient evidence"
    for finding in (finding for row in rows for finding in row["findings"]):
        assert finding["state"] in ("shown", "not confirmed")
        assert "of validation rows without it got it" in finding["operating"]
        assert (finding["state"] == "shown") == bool(finding["sentence"])
    for row in rows:
        for finding in row["findings"]:
            document = json.loads(Path(row["name"]).read_text()) if row["report"]["source"] not in ("flat", "csv") else None
            for call in finding["evidence"]:
                assert call["pointer"]
                assert document is None or ingest.resolve(document, call["pointer"]) is not None
    assert "<script" not in (place / "out" / "triage.html").read_text()
    assert read_json(place / "out" / "stix.json")["type"] == "bundle"
    assert len(read_json(place / "out" / "misp.json")["response"]) == len(rows)
    assert "triage.html" in capsys.readouterr().out


def test_what_cannot_be_read_has_its_own_exit_code_and_the_batch_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "mixed"
    folder.mkdir()
    (folder / "a.json").write_text('{"what": "no report"}')
    (folder / "b.json").write_text("")
    os.mkfifo(folder / "c.json")
    (folder / "d.json").write_text((place / "reports" / "cape.json").read_text())
    capsys.readouterr()
    assert main(["triage", "tiny", "mixed", "--out", "out-mixed", "--no-evidence", "--json"]) == 4
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    codes = {Path(row["name"]).stem: row["exit"] for row in told if row["event"] == "triaged"}
    assert codes == {"a": 2, "b": 2, "c": 4, "d": 0}
    assert told[-1]["event"] == "done"
    assert "not read" in (place / "out-mixed" / "triage.html").read_text()


def test_a_triage_that_was_stopped_goes_on_and_another_model_s_is_not_touched(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = place / "out" / "answers.jsonl"
    whole = answers.read_text().splitlines()
    answers.write_text("\n".join(whole[:3]) + "\n")
    assert main(["triage", "tiny", "reports", "--out", "out"]) == 0
    assert [json.loads(line)["name"] for line in answers.read_text().splitlines()] == [json.loads(line)["name"] for line in whole]
    before = answers.read_bytes()
    assert main(["triage", "tiny", "reports/cape.json", "--out", "out"]) == 2
    assert "another model or of other reports" in capsys.readouterr().err
    assert answers.read_bytes() == before


def test_bad_words_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triage", "tiny", "nowhere.json"]) == 2
    assert "no file or folder nowhere.json" in capsys.readouterr().err
    assert main(["triage", "nobody", "reports"]) == 2


def test_a_specialist_of_published_sequences_reads_a_report_as_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"rat": "kernel32.sleep <ret_val> ", "clean": "kernel32.getacp 0x4e4 ", "trojan": "user32.loadicona 0x4 "}
    sequences = [(label, f"apis {word * (5 + at % 9)}kernel32.{label}{at} 0x{at:x}") for at in range(60) for label, word in texts.items()]
    with gzip.open(place / "sequences.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"seq_id": at, "tokens": text}) + "\n" for at, (_, text) in enumerate(sequences))
    with gzip.open(place / "rows.csv.gz", "wt") as file:
        file.write("split,row,family,malicious,seq_id\n")
        file.writelines(f"{'test' if at % 5 == 0 else 'train'},{at},{label},1,{at}\n" for at, (label, _) in enumerate(sequences))
    (place / "family.yaml").write_text(FAMILY)
    assert main(["build", "family.yaml", "--quiet"]) == 0
    calls = [{"api_name": "KERNEL32.Sleep", "args": ["0x1"], "ret_val": None}] + [{"api_name": "KERNEL32.GetACP", "args": [], "ret_val": "0x4e4"}] * 4
    (place / "one.json").write_text(json.dumps({"report_version": "1.1.0", "entry_points": [{"ep_type": "m", "start_addr": "0x1", "apis": calls}]}))
    assert main(["triage", "family", "one.json", "--out", "family_out"]) == 0
    (row,) = read_jsonl(place / "family_out" / "answers.jsonl")
    assert row["verdict"]["basis"] in ("label", "the report")
    assert row["probabilities"]["clean"] > 0.5
    assert all(call["pointer"].startswith("/entry_points/0/apis/") for finding in row["findings"] for call in finding["evidence"])
    assert row["nearest"]
    assert main(["triage", "tiny", "one.json", "--with", "family", "--out", "with_family"]) == 0
    (both,) = read_jsonl(place / "with_family" / "answers.jsonl")
    assert both["family"]["probabilities"].keys() == texts.keys()
    assert main(["triage", "tiny", "one.json", "--with", "family", "--with", "tiny", "--out", "others"]) == 2
    assert "reads flat traces" in capsys.readouterr().err


@pytest.mark.slow
def test_specialists_work_together_in_one_answer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{chr(97 + at % 26)}{chr(97 + at // 26 % 26)}{chr(97 + at % 7)}zo" for at in range(900)]
    said = ("sends files", "reads keys")
    rows = [(f"T100{at % 2}", f"S{at // 3:04}", "Foo", f"{said[at % 2]} {' '.join(words[at * 9 : at * 9 + 9])}") for at in range(90)]
    (place / "sentences").mkdir()
    with gzip.open(place / "sentences" / "procedure_examples.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("technique", "source", "source_name", "text"), *rows])
    reader = FAMILY.replace("name: family", "name: reader").replace("train: ., test: .", "train: sentences").replace("{label: family}", "{least: 5}")
    (place / "reader.yaml").write_text(reader)
    (place / "writer.yaml").write_text(WRITER)
    assert main(["build", "reader.yaml", "--quiet"]) == 0
    assert main(["build", "writer.yaml", "--quiet"]) == 0
    apis = [{"api_name": f"KERNEL32.A{at}", "args": [], "ret_val": "0x1"} for at in range(9)]
    signed = {"report_version": "1.1.0", "entry_points": [{"ep_type": "m", "apis": apis}]}
    (place / "signed.json").write_text(json.dumps(signed))
    asked = ["triage", "tiny", "signed.json", "reports/cape.json", "--with", "family", "--with", "reader", "--with", "writer", "--out", "together"]
    assert main(asked) == 0
    first, second = read_jsonl(place / "together" / "answers.jsonl")
    assert first["family"]["model"] == "family"
    assert first["family"]["probabilities"].keys() == {"rat", "clean", "trojan"}
    assert "Speakeasy" in second["family"]["because"]
    assert all(row["sentences_read"] == [] or row["summaries"] for row in (first, second))
    assert "<b>Family</b>" in (place / "together" / "triage.html").read_text()
    assert main(["triage", "reader", "signed.json", "--out", "others"]) == 2
    assert "reads sentences" in capsys.readouterr().err
