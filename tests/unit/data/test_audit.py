"""The audit finds what was planted, counts it right, and says nothing where there is nothing."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from knowhow.data import conflicts, lengths, noise, overlap
from knowhow.data.audit import audit
from knowhow.data.fields import FieldMap, examples, recognise
from knowhow.data.sources import open_source
from knowhow.types import Completion, Example, Message, Task

TASK = Task("classify", ("a", "b"))
WORDS = {
    "a": ["river", "mountain", "forest", "lake", "valley", "meadow", "cloud", "stone"],
    "b": ["engine", "wheel", "piston", "gear", "motor", "brake", "clutch", "axle"],
}


def clean(count: int, seed: int = 0, words: int = 12) -> list[Example]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["a", "b"], count)
    return [Example(f"{seed}-{n}", f"{n * 7919 + seed} " + " ".join(rng.choice(WORDS[label], words)), label=str(label)) for n, label in enumerate(labels)]


def bytes_of(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def test_clean_data_gets_no_warnings() -> None:
    report = audit({"train": clean(300), "test": clean(100, seed=1)}, TASK, tokenizer=bytes_of, context=1000)
    assert report["rows"] == {"train": 300, "test": 100}
    assert (report["duplicates"]["exact"], report["duplicates"]["near"]) == (0, 0)
    assert report["leakage"]["train/test"] == {"exact": 0, "near": 0, "groups": 0, "rows": 100, "examples": []}
    assert report["conflicts"]["ceiling_accuracy"] == report["conflicts"]["ceiling_macro_f1"] == 1.0
    assert report["label_noise"]["share"] < 0.02
    assert sum(report["balance"].values()) == 300
    assert [said for said in report["warnings"] if "tokens per word" not in said] == []


def test_planted_copies_are_counted_once_each() -> None:
    train, test = clean(300), clean(100, seed=1)
    train += [Example("x1", train[0].prompt.upper(), label=train[0].label), Example("x2", train[0].prompt + " near", label=train[0].label)]
    test += [Example("y1", train[5].prompt, label=train[5].label), Example("y2", train[6].prompt + " near", label=train[6].label)]
    report = audit({"train": train, "test": test}, TASK, tokenizer=None, context=None)
    assert report["duplicates"]["splits"] == {"train": {"exact": 1, "near": 1}, "test": {"exact": 0, "near": 0}}
    leak = report["leakage"]["train/test"]
    assert (leak["exact"], leak["near"], leak["rows"]) == (1, 1, 102)
    assert [pair["kind"] for pair in leak["examples"]] == ["exact", "near"]
    assert [row["id"] for row in leak["examples"][0]["rows"]] == [train[5].id, "y1"]
    assert any("1 of 102 rows of test also occur in train" in said for said in report["warnings"])


def test_labels_groups_and_ids_are_looked_at() -> None:
    train = [Example(f"{n}", f"text {n} {n * 31}", label="a", group="g1") for n in range(50)]
    test = [Example("same", f"other {n} {n * 17}", label="ab"[n % 2], group="g1" if n < 3 else "g2") for n in range(10)]
    said = audit({"train": train, "test": test}, TASK, tokenizer=None, context=None)["warnings"]
    assert any("1 labels of test never occur in train: b" in line for line in said)
    assert any("1 labels of the task have no row in train: b" in line for line in said)
    assert any("3 rows of test belong to groups" in line for line in said)
    assert any("9 rows of test share an id" in line for line in said)


def test_pairs_are_the_same_only_when_both_texts_are() -> None:
    rows = [Example("1", "claim one", pair="evidence one", label="a"), Example("2", "claim one", pair="evidence two", label="b")]
    report = audit({"train": rows}, Task("score", ("a", "b")), tokenizer=None, context=None)
    assert report["duplicates"]["exact"] == report["conflicts"]["inputs"] == 0


def test_the_report_is_json_and_the_same_twice() -> None:
    splits = {"train": clean(200), "test": clean(50)}
    one, other = (json.dumps(audit(splits, TASK, tokenizer=bytes_of, context=40)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (Task("regress"), [Example(str(n), f"t {n // 2}", label=float(n)) for n in range(20)]),
        (Task("generate"), [Example(str(n), (Message("user", f"q {n // 2}"),), (Completion(f"a {n}" * 50),)) for n in range(20)]),
        (Task("classify", ("a", "b"), many=True), [Example(str(n), f"t {n // 2}", label=(("a",), ("a", "b"), ())[n % 3]) for n in range(20)]),
        (Task("score"), [Example(str(n), f"t {n}", pair="p", label=n / 20) for n in range(20)]),
        (Task("classify"), [Example(str(n), f"t {n}") for n in range(20)]),
        (Task("classify"), []),
    ],
)
def test_every_kind_of_task(task: Task, rows: list[Example]) -> None:
    report = audit({"train": rows, "test": rows[:5]}, task, tokenizer=bytes_of, context=8)
    json.dumps(report)
    assert report["label_noise"] is None
    assert report["leakage"]["train/test"]["exact"] == len(rows[:5])
    if rows and (task.kind in ("regress", "generate") or task.many):
        assert report["conflicts"]["inputs"] == 10


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    audit({"train": clean(50)}, TASK, tokenizer=bytes_of, context=8, progress=lambda what, done, total: told.append((what, done, total)))
    assert {"duplicates", "labels", "label noise", "audit"} <= {what for what, _, _ in told}


def f1(actual: np.ndarray, guess: np.ndarray, weights: np.ndarray) -> float:
    return 2 * weights[actual & guess].sum() / max(weights[actual].sum() + weights[guess].sum(), 1)


def test_ceilings_against_every_function_of_the_input() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        inputs, labels, weights = rng.integers(0, 4, 14), rng.integers(0, 3, 14), rng.integers(1, 5, 14).astype(float)
        given = conflicts.answers([Example(str(n), "t", label="abc"[label], weight=weight) for n, (label, weight) in enumerate(zip(labels, weights))])
        found = conflicts.conflicts(inputs, given, Task("classify", ("a", "b", "c")))
        tries = [np.array(answers)[inputs] for answers in product(range(3), repeat=4)]
        accuracies = [np.average(guess == labels, weights=weights) for guess in tries]
        scores = [np.mean([f1(labels == label, guess == label, weights) for label in np.unique(labels)]) for guess in tries]
        assert found["ceiling_accuracy"] == pytest.approx(max(accuracies))
        assert found["ceiling_macro_f1"] >= max(scores) - 1e-12
        torn = [key for key in np.unique(inputs) if len(set(labels[inputs == key])) > 1]
        assert (found["inputs"], found["rows"]) == (len(torn), int(np.isin(inputs, torn).sum()))


def test_the_macro_f1_ceiling_of_two_labels_is_reached_label_by_label() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        inputs, labels = rng.integers(0, 5, 20), rng.integers(0, 2, 20)
        given = conflicts.answers([Example(str(n), "t", label=("x",) if label else ()) for n, label in enumerate(labels)])
        found = conflicts.conflicts(inputs, given, Task("classify", ("x",), many=True))["ceiling_macro_f1"]
        best = max(f1(labels == 1, np.array(answers)[inputs] == 1, np.ones(20)) for answers in product(range(2), repeat=5))
        assert found == pytest.approx(best)


def test_the_ceiling_of_numbers() -> None:
    given = conflicts.answers([Example(str(n), "t", label=value) for n, value in enumerate((0.0, 2.0, 4.0, 6.0))])
    found = conflicts.conflicts(np.array([0, 0, 1, 1]), given, Task("regress"))
    assert found["ceiling_r2"] == pytest.approx(1 - 1 / 5)
    assert found["ceiling_accuracy"] is None


def test_planted_label_noise_is_found() -> None:
    rows, rng = clean(1500), np.random.default_rng(5)
    texts, labels = [row.prompt for row in rows], np.array([row.label == "b" for row in rows]).astype(np.int64)
    wrong = rng.random(1500) < 0.1
    found = noise.label_noise(texts, np.where(wrong, 1 - labels, labels), np.arange(1500), seed=0)
    assert abs(found["share"] - wrong.mean()) < 0.02
    assert wrong[found["rows"]].mean() > 0.95
    assert (found["likely"] == labels[found["rows"]]).mean() > 0.95
    assert abs(found["accuracy"] - 0.9) < 0.02


def test_copies_do_not_vouch_for_their_own_labels() -> None:
    """Each text occurs four times with a random label: folds that parted the copies would call the labels learnable."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 200), 4)
    texts = [f"w{n} v{n} u{n}" for n in np.repeat(np.arange(200), 4)]
    apart = noise.label_noise(texts, labels, np.repeat(np.arange(200), 4), seed=0)
    mixed = noise.label_noise(texts, labels, np.arange(800), seed=0)
    assert apart["accuracy"] < 0.6 < 0.95 < mixed["accuracy"]


def test_the_confident_joint_of_a_known_case() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]])
    joint, guesses = noise.confident_joint(probs, np.array([0, 0, 0, 1, 1, 1]))
    assert guesses.tolist() == [0, 0, 1, 1, 1, -1]
    assert joint == pytest.approx(np.array([[2.0, 1.0], [0.0, 3.0]]))


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.arange(10), np.zeros(0, int)])
def test_label_noise_needs_two_labels_with_rows(labels: np.ndarray) -> None:
    assert noise.label_noise([f"t {n}" for n in range(len(labels))], labels, np.arange(len(labels)), seed=0) is None


def test_lengths_are_exact_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example(str(n), "w" * (n + 1), label="a") for n in range(400)]
    sizes = lengths.sizes({"train": rows}, TASK)
    assert sizes.tolist() == list(range(1, 401))
    monkeypatch.setattr(lengths, "SAMPLE", 50)
    report, per_word = lengths.truncation({"train": rows[:150], "test": rows[150:]}, sizes, TASK, tokenizer=bytes_of, context=390, seed=0)
    assert (report["over"], report["share"], report["longest"], report["sampled"]) == (10, 10 / 400, 400, 50)
    assert abs(report["p50"] - 200) < 60
    assert per_word == pytest.approx(200, rel=0.3)
    calls: list[int] = []
    lengths.truncation({"train": rows}, sizes, TASK, tokenizer=lambda texts: (calls.append(len(texts)), bytes_of(texts))[1], context=10_000, seed=0)
    assert sum(calls) == 50, "rows that must fit are not tokenised"


def test_trec_has_eleven_test_texts_in_train(shared_data: Path) -> None:
    task = Task("classify")
    files = {"train": ("train.txt", "latin-1"), "test": ("test.txt", "utf-8")}
    splits = {
        name: list(examples(open_source(shared_data / "tasks" / "trec" / file, encoding=code).rows(), FieldMap("text"), task, origin=file))
        for name, (file, code) in files.items()
    }
    report = audit(splits, task, tokenizer=None, context=None)
    assert report["leakage"]["train/test"]["exact"] == 11
    assert report["leakage"]["train/test"]["near"] == 1
    assert any("11 of 500 rows of test also occur in train" in said for said in report["warnings"])
    clusters = overlap.find(splits)
    taught = set(clusters["train"].exact.tolist())
    leaked = {overlap.input_text(splits["test"][row]).lower() for row, key in enumerate(clusters["test"].exact.tolist()) if key in taught}
    assert leaked == {row.prompt.lower() for row in splits["test"]} & {row.prompt.lower() for row in splits["train"]}


def test_banking77_has_a_few_copies(shared_data: Path) -> None:
    splits = {}
    for name in ("train", "test"):
        rows = list(open_source(shared_data / "tasks" / "banking77" / f"{name}.tsv").rows())
        splits[name] = list(examples(rows, recognise(rows[:50]), Task("classify"), origin=name))
    leak = overlap.leakage(splits, overlap.find(splits))["train/test"]
    taught = {" ".join(row.prompt.split()) for row in splits["train"]}
    assert leak["exact"] == sum(" ".join(row.prompt.split()) in taught for row in splits["test"])
    assert leak["near"] > leak["exact"] > 0
