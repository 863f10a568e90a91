from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from knowhow.errors import UsageError
from knowhow.evaluate import baselines, ngrams
from knowhow.evaluate.baselines import Limits, Rows, answers, fit_classical, rows_of
from knowhow.evaluate.scorers import SCORERS
from knowhow.types import Completion, Example, Predictions, Task

TINY = Limits(tfidf_features=2000, boosted_features=500, rounds=20, learning_rate=0.3, strengths=(1.0, 30.0))
APIS = [f"kernel32.call{i}" for i in range(12)]
ONE = Task("classify", ("read", "write", "send"))


def traces(n: int, seed: int, *, order: bool = False) -> list[Example]:
    """Random traces whose label is a word (or, with `order`, which of two words stands before the other)."""
    random = np.random.Generator(np.random.PCG64(seed))
    rows = []
    for row in range(n):
        words = list(random.choice(APIS, 15))
        which = int(random.integers(3 if not order else 2))
        if order:
            words[5:7] = ("open", "close") if which else ("close", "open")
        else:
            words[int(random.integers(15))] = f"{ONE.labels[which]}file"
        rows.append(Example(f"{seed}-{row}", " ".join(words), label=ONE.labels[which]))
    return rows


def fitted(task: Task, train: Sequence[Example], valid: Sequence[Example], **options: object) -> dict[str, baselines.Fitted]:
    return fit_classical(rows_of(train, task), rows_of(valid, task), task, limits=TINY, **options)  # type: ignore[arg-type]


def score(metric: str, name: str, model: baselines.Fitted, rows: Sequence[Example], task: Task) -> float:
    side = rows_of(rows, task)
    return SCORERS[metric](side.gold, answers(name, model, rows, task), side.weights_N)


def test_they_learn_what_n_grams_show() -> None:
    train, valid, test = traces(300, 0), traces(60, 1), traces(100, 2)
    models = fitted(ONE, train, valid)
    assert list(models) == ["majority", "retrieval", "tfidf-lr", "lightgbm"]
    for name in ("tfidf-lr", "lightgbm"):
        probs_NC = models[name]([row.prompt for row in test])
        assert probs_NC.shape == (100, 3)
        np.testing.assert_allclose(probs_NC.sum(1), 1, atol=1e-6)
        assert score("macro_f1", name, models[name], test, ONE) > 0.9
    assert score("macro_f1", "majority", models["majority"], test, ONE) < 0.3


def test_order_needs_more_than_single_words() -> None:
    train, valid, test = traces(400, 0, order=True), traces(80, 1, order=True), traces(200, 2, order=True)
    models = fitted(ONE, train, valid)
    assert score("accuracy", "tfidf-lr", models["tfidf-lr"], test, ONE) > 0.95
    many = Task("classify", ONE.labels, many=True)
    both = [replace(row, label=(row.label,)) for row in train]
    presence = fitted(many, both, [], names=["presence-only"])["presence-only"]
    said = answers("presence-only", presence, [replace(row, label=(row.label,)) for row in test], many)
    wanted = np.array([[row.label == label for label in ONE.labels] for row in test]).astype(int)
    assert abs(SCORERS["auc"](wanted, said, np.ones(200)) - 0.5) < 0.12, "presence must not see order"


def test_same_seed_same_answers() -> None:
    train, valid = traces(120, 0), traces(40, 1)
    texts = [row.prompt for row in traces(30, 2)]
    for name, model in fitted(ONE, train, valid, seed=3).items():
        np.testing.assert_array_equal(model(texts), fitted(ONE, train, valid, seed=3)[name](texts))


def test_weights_matter_by_their_root() -> None:
    rows = Rows(("x a", "x a", "x b", "x b"), np.array([0, 1, 0, 1]), np.array([900.0, 100.0, 1.0, 1.0]))
    model = fit_classical(rows, Rows((), np.zeros(0, int), np.zeros(0)), Task("classify", ("n", "y")), names=["majority", "tfidf-lr"])
    assert model["majority"](["?"])[0, 0] == pytest.approx(901 / 1002)
    assert 0.5 < model["tfidf-lr"](["x a"])[0, 0] < 0.8, "30 to 10, not 900 to 100"


def test_many_labels_have_their_floors() -> None:
    task = Task("classify", ("a", "b", "never"), many=True)
    rows = [Example(str(i), f"word{i % 5} {'alpha' * (i % 2)} {'beta' * (i % 3 == 0)}", label=("a",) * (i % 2) + ("b",) * (i % 3 == 0)) for i in range(120)]
    models = fitted(task, rows, rows[:30])
    assert set(models) == {"majority", "all-positive", "presence-only", "retrieval", "tfidf-lr", "lightgbm"}
    assert (models["all-positive"](["x"]) == 1).all()
    np.testing.assert_allclose(models["majority"](["x"])[0], [0.5, 1 / 3, 0])
    for name in ("presence-only", "tfidf-lr", "lightgbm"):
        assert models[name]([""]).shape == (1, 3)
        assert score("exact_match", name, models[name], rows, task) > 0.95


def test_numbers() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    rows = []
    for i in range(200):
        words = random.choice(["good", "bad", "film", "plot", "end"], 8)
        rows.append(Example(str(i), " ".join(words), label=float((words == "good").sum() - (words == "bad").sum())))
    task = Task("regress", metric="spearman")
    models = fitted(task, rows[:150], rows[150:175])
    assert list(models) == ["mean", "retrieval", "tfidf-ridge", "lightgbm"]
    assert score("r2", "mean", models["mean"], rows[:150], task) == pytest.approx(0, abs=1e-9)
    assert score("spearman", "tfidf-ridge", models["tfidf-ridge"], rows[175:], task) > 0.8
    assert score("spearman", "lightgbm", models["lightgbm"], rows[175:], task) > 0.5


def test_texts() -> None:
    cities = [("france", "Paris"), ("spain", "Madrid"), ("gaul", "Paris")]
    rows = [Example(str(i), f"capital of {land}", (Completion(city),)) for i, (land, city) in enumerate(cities)]
    task = Task("generate", metric="exact_match")
    models = fitted(task, rows, [])
    assert models["constant"](["x", "y"]) == ["Paris", "Paris"]
    assert models["copy-nearest"](["the capital of spain", "capital of gaul"]) == ["Madrid", "Paris"]
    assert answers("constant", models["constant"], rows, task).texts == ("Paris",) * 3


def test_a_recipes_names() -> None:
    rows = traces(30, 0)
    assert list(fitted(ONE, rows, rows, names=["lightgbm", "majority", "base", "all-positive"])) == ["lightgbm", "majority"]
    numbers = [replace(row, label=1.0 * i) for i, row in enumerate(rows)]
    assert list(fitted(Task("regress", metric="mae"), numbers, numbers, names=["majority", "tfidf-lr"])) == ["mean", "tfidf-ridge"]


@pytest.mark.parametrize("texts", [["", "", ""], ["a", "b", "c"], ["same", "same", "same"]])
def test_poor_text_is_no_error(texts: list[str]) -> None:
    rows = [Example(str(i), text, label=label) for i, (text, label) in enumerate(zip(texts, ("read", "write", "read")))]
    for name, model in fitted(ONE, rows, rows[:1]).items():
        probs_NC = model(["never seen", ""])
        assert probs_NC.shape == (2, 3), name
        assert np.isfinite(probs_NC).all(), name
        np.testing.assert_allclose(probs_NC[:, 2], 0, atol=1e-12)


def test_one_class_and_labels_only_in_validation() -> None:
    rows = [replace(row, label="read") for row in traces(20, 0)]
    valid = [replace(rows[0], label="send")]
    for model in fitted(ONE, rows, valid).values():
        np.testing.assert_allclose(model(["x"]), [[1, 0, 0]], atol=1e-9)


def test_no_rows_at_all() -> None:
    with pytest.raises(UsageError, match="no training rows"):
        fitted(ONE, [], [])


def test_progress_ends_where_it_said() -> None:
    seen: list[tuple[str, int, int]] = []
    fitted(ONE, traces(40, 0), traces(10, 1), progress=lambda *event: seen.append(event))
    assert seen[-1] == ("baselines", 4, 4)
    assert ("lightgbm rounds", 20, 20) in seen


def test_words() -> None:
    grams, _ = ngrams.fit_grams(["Kernel32.CreateFileA <ret_val> 0x4012ac C:\\temp\\x.exe, (a@b.org)!"], longest=1)
    words = set(grams.vectoriser.get_feature_names_out())
    assert {"kernel32.createfilea", "<ret_val>", "0x4012ac", "c:\\temp\\x.exe", ",", "a@b.org", "!"} <= words
    assert ngrams.commonest(grams.counts(["! ! ,", "! x"]), 1).tolist() == [grams.vectoriser.vocabulary_["!"]]


def test_answers_are_predictions() -> None:
    rows = traces(5, 0)
    given = answers("m", lambda texts: np.full((len(texts), 3), 1 / 3), rows, ONE)
    assert isinstance(given, Predictions)
    assert given.ids == tuple(row.id for row in rows)


def test_boosting_learns_many_classes_too() -> None:
    """Leaves of rare classes step by 1/p logits: not held back, 60 classes with some wrong labels end at chance."""
    task = Task("classify", tuple(f"c{at:02}" for at in range(60)))
    random = np.random.Generator(np.random.PCG64(0))
    label = [at % 60 if random.random() > 0.2 else int(random.integers(60)) for at in range(1200)]
    rows = [Example(str(at), f"{' '.join(random.choice(APIS, 6))} word{at % 60}", label=task.labels[label[at]]) for at in range(1200)]
    random.shuffle(rows)  # type: ignore[arg-type]
    limits = replace(TINY, rounds=40)
    model = fit_classical(rows_of(rows[:900], task), rows_of(rows[900:1050], task), task, names=["lightgbm"], limits=limits)["lightgbm"]
    assert score("accuracy", "lightgbm", model, rows[1050:], task) > 0.6
