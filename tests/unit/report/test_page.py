from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import fake_run
import pytest

from knowhow.errors import UsageError
from knowhow.report import charts, page, read, training

JUNK = (
    *(None, 7, "text", [], [[]], {}, {"a": None}, [{"a": {}}]),
    {"rows": [1], "balance": 3, "leakage": {"x": 1}, "stages": [2], "labels": 5, "matrix": {}},
)


class Outline(HTMLParser):
    """What a browser would make of the page: elements, attributes, scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles}.get(self._inside, self.text).append(data)


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text("utf-8"))
    return parser


@pytest.fixture(scope="module", autouse=True)
def _checked() -> Iterator[None]:
    """Every chart of these pages is checked against Altair's schema."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "CHECKED", True)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fake_run.write_run(tmp_path_factory.mktemp("plain"))
    return page.write(run, run / "report.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fake_run.write_run(tmp_path_factory.mktemp("hostile"), hostile=True)
    return page.write(run, run / "report.html")


def missing(path: Path) -> dict[str, str]:
    """{section: its one line} of the sections that have nothing to show."""
    found = re.findall(r'<section id="([a-z]+)" class="missing".*?<p class="quiet">(.*?)</p>', path.read_text(), re.S)
    return {name: html.unescape(line) for name, line in found}


def test_every_section_is_there_and_only_later_stages_are_missing(plain: Path) -> None:
    ids = [attrs.get("id") for tag, attrs in outline(plain).tags if tag == "section"]
    assert ids == [name for name, *_ in page.SECTIONS]
    assert missing(plain) == {"predictions": "not run: verify/predictions.json is not there"}


def test_evidence_says_what_was_shown_and_what_was_not(plain: Path) -> None:
    page_text = html.unescape(plain.read_text())
    assert (
        "without as many random lines it was gone in 10% of the tries" in page_text
        or "without as many random lines it was gone in 10.0% of the tries" in page_text
    )
    assert "Not supported: without" in page_text


def test_parts_stand_beside_their_control_and_unsupported_is_said(plain: Path) -> None:
    shown = outline(plain)
    text = " ".join(" ".join(shown.text).split())
    assert "What 20 right answers (12 groups of twins) lose without a part" in text
    assert "not supported (undecided)" in text
    assert "head 1 of layer 1 previous token, induction 0.80 0.10 0.50 0.05" in text
    assert "On average the answer stands after layer 2" in text


def test_self_contained_small_and_reproducible(plain: Path, tmp_path: Path) -> None:
    assert plain.stat().st_size < 3_000_000
    for tag, attrs in outline(plain).tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
        assert not any(name.startswith("on") or name == "style" for name in attrs), "no inline handlers and styles: the policy would refuse them"
    again = fake_run.write_run(tmp_path / plain.parent.name)
    assert page.write(again, tmp_path / "again.html").read_bytes() == plain.read_bytes()


def test_policy_names_each_script_and_the_style_by_digest(hostile: Path) -> None:
    made = outline(hostile)
    content = next(attrs["content"] for tag, attrs in made.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    kinds = [attrs.get("type") for tag, attrs in made.tags if tag == "script"]
    assert kinds == ["application/json", None, None]
    assert content.startswith("default-src 'none'")
    assert "unsafe" not in content
    assert "http" not in content
    for text in (*made.scripts[1:], *made.styles):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in content


def test_hostile_text_is_shown_and_never_obeyed(hostile: Path) -> None:
    made = outline(hostile)
    assert not [attrs for tag, attrs in made.tags if tag == "img"]
    shown = "".join(made.text)
    assert fake_run.HOSTILE in shown
    assert "lone \\ud800 surrogate" in shown
    assert "\\u202egnp.exe" in shown
    assert fake_run.RTL in shown
    assert "\\u0000\\u001b[31m" in shown
    assert "characters left out" in shown
    assert not re.search("[\u202a-\u202e\x00-\x08\x1b]", hostile.read_text("utf-8"))
    assert fake_run.HOSTILE not in made.scripts[0], "inside the JSON a < is an escape"
    json.loads(made.scripts[0])


def test_every_chart_has_a_place_a_sentence_and_its_data(plain: Path) -> None:
    made = outline(plain)
    specs = json.loads(made.scripts[0])
    places = [attrs for tag, attrs in made.tags if "data-chart" in attrs]
    assert {attrs["data-chart"] for attrs in places} == set(specs)
    assert len(specs) == 22
    for attrs in places:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"] or "") > 15
    assert '"value": 0.096' in json.dumps(specs["forest"])
    assert "http" not in json.dumps({name: {key: part for key, part in spec.items() if key != "$schema"} for name, spec in specs.items()})


def test_a_partly_finished_run_says_what_is_not_there(tmp_path: Path) -> None:
    fake_run.save(tmp_path / "recipe.json", fake_run.recipe(fake_run.LABELS, ""))
    lines = missing(page.write(tmp_path, tmp_path / "report.html"))
    assert set(lines) == {name for name, *_ in page.SECTIONS} - {"asked"}
    assert lines["baselines"] == "not run: evaluate/results.json is not there"
    assert "No verdict yet" in (tmp_path / "report.html").read_text()


def test_torn_and_misshapen_files_leave_one_line_each(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    (run / "data/audit.json").write_text('{"rows": 3')
    (run / "base/vocabulary.json").unlink()
    (run / "evaluate/calibration.json").write_text("[1, 2]")
    (run / "evaluate/confusion.json").write_text('{"labels": ["a", "b"], "matrix": [[1], [2]]}')
    (run / "evaluate/forgetting.json").write_text('{"value": "much"}')
    (run / "measured.json").write_bytes(b"\xff\xfe\x00")
    (run / "adapt/trace.jsonl").write_text('{"phase": "a", "step": 1, "loss": 2.0}\n{"phase": "a", "ste')
    lines = missing(page.write(run, tmp_path / "report.html"))
    assert lines["audit"].startswith("data/audit.json could not be read")
    assert lines["calibration"] == "evaluate/calibration.json does not have the expected form"
    assert "one row and one column per label" in lines["classes"]
    assert lines["forgetting"] == "evaluate/forgetting.json holds no value"
    assert lines["cost"] == "measured.json could not be read as JSON"
    assert "learning" not in lines


@pytest.mark.parametrize("junk", JUNK)
def test_no_shape_of_json_breaks_the_page(tmp_path: Path, junk: object) -> None:
    for name in read.FILES.values():
        fake_run.save(tmp_path / name, junk)
    fake_run.save_lines(tmp_path / "adapt/trace.jsonl", [junk])  # type: ignore[list-item]
    fake_run.save_lines(tmp_path / "evaluate/samples.jsonl", [junk])  # type: ignore[list-item]
    assert "<main" in page.write(tmp_path, tmp_path / "report.html").read_text()


def test_no_damaged_value_breaks_the_page(tmp_path: Path) -> None:
    """Any one part of any file replaced by something else: the section shows what is left or says why not."""
    whole = read.load(fake_run.write_run(tmp_path))
    rng = random.Random(0)
    for key, content in whole.files.items():
        for junk in (None, -1e308, {"deep": [None]}):
            damaged = replace(whole, files={**whole.files, key: damage(content, rng, junk)})
            for entry in page.SECTIONS:
                if key in entry[2] or (key == "recipe" and entry[0] == "forgetting") or (key == "estimate" and entry[0] in ("asked", "cost")):
                    assert page.section(damaged, *entry).title == entry[1]


def damage(value: object, rng: random.Random, junk: object) -> object:
    """A copy of `value` with one part, at a random depth, replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        return {**value, key: damage(value[key], rng, junk)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        return [*value[:index], damage(value[index], rng, junk), *value[index + 1 :]]
    return junk


def test_a_folder_that_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither run\.json nor recipe\.json"):
        page.write(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_many_classes_are_cut_and_the_page_says_so(tmp_path: Path) -> None:
    labels = tuple(f"class number {i}" for i in range(60))
    run = fake_run.write_run(tmp_path)
    fake_run.save(run / "evaluate/confusion.json", {"labels": list(labels), "matrix": [[i == j for j in range(60)] for i in range(60)]})
    text = page.write(run, tmp_path / "report.html").read_text()
    assert "The 30 largest of 60 classes are shown." in text
    assert "It makes no mistakes." in text


def test_many_labels_balances_and_canaries_read_back(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    cells = [{"hit": 20.0, "missed": 3.0, "false_alarm": 41.0, "silent": 60.0}, {"hit": 5.0, "missed": 17.0, "false_alarm": 2.0, "silent": 80.0}]
    fake_run.save(run / "evaluate/confusion.json", {"labels": ["rat", "dropper"], "many": cells})
    audit = json.loads((run / "data/audit.json").read_text())
    fake_run.save(run / "data/audit.json", audit | {"balance": {"a": 1}, "balances": {"test": {"a": 1, "b": 3}, "train": {"a": 9, "b": 3}}})
    fake_run.save(run / "evaluate/memorisation.json", {"canaries": {"exposure_mean": 3.8, "exposure_max": 8.0, "n": 8, "chance": 1.42, "read_back": 2}})
    text = page.write(run, tmp_path / "report.html").read_text()
    assert "Most often missed: dropper (17 times); most false alarms: rat (41)." in text
    assert "The largest class is a (62.5% of the rows), the smallest b (37.5% of the rows)." in text
    assert "highest 8.0; chance is 1.4; 2 of them can be read back" in text


def test_abstention_that_no_threshold_keeps_is_said(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path)
    found = json.loads((run / "evaluate/calibration.json").read_text())
    for abstention, told in (
        ({"risk": 0.05, "threshold": None, "coverage": 0.0, "upper": 1.0}, "No threshold keeps the stated risk of 5.0%"),
        ({"risk": 0.05, "threshold": 0.9, "coverage": 0.5, "test_coverage": 0.45, "upper": 0.048}, "it answers 45% and is wrong at most 4.8% of the time"),
    ):
        fake_run.save(run / "evaluate/calibration.json", found | {"abstention": abstention})
        assert told in page.write(run, tmp_path / "report.html").read_text()


def test_steps_of_phases_follow_each_other_and_a_resumed_step_counts_once() -> None:
    trace = ({"phase": 0, "step": 1, "loss": 3}, {"phase": 0, "step": 2, "loss": 9}, {"phase": 0, "step": 2, "loss": 2}, {"phase": 1, "step": 1, "loss": 1})
    rows, starts = training.global_steps(trace)
    assert [(row["x"], row["loss"]) for row in rows] == [(1, 3), (2, 2), (3, 1)]
    assert starts == [("0", 1), ("1", 2)]
    rows, _ = training.global_steps(({"phase": 0, "step": 5}, {"phase": 1, "step": 6}))
    assert [row["x"] for row in rows] == [5, 6]
