"""n-grams beside a classifier: their logits are added, they travel with the folder, and a folder that does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from knowhow.errors import SafetyError
from knowhow.model import ngrams
from knowhow.model.load import load, save
from knowhow.model.ngrams import NGrams, blocks, features

LABELS = ("benign", "rat", "ransomware")
TEXTS = ["open file write file", "open key set key", "open file read file close", "set key close"]


def some(labels=LABELS) -> NGrams:
    made = blocks(TEXTS, ("word", "char_wb"))
    width = sum(len(block.grams) for block in made)
    weight_FC = np.random.default_rng(0).normal(size=(width, len(labels))).astype(np.float16)
    return NGrams(made, weight_FC, np.arange(len(labels), dtype=np.float32), tuple(labels))


def test_features_are_of_unit_length_and_strange_words_are_nothing() -> None:
    words, letters = blocks(TEXTS, ("word", "char_wb"))
    assert "open file" in words.grams
    assert "read" not in words.grams
    assert np.allclose(np.sqrt(words.features(TEXTS).multiply(words.features(TEXTS)).sum(1)), 1)
    assert features((words, letters), ["qqq"]).nnz == 0


def test_without_a_gram_that_occurs_twice_there_is_no_block() -> None:
    assert blocks(["a b", "c d"], ("word",)) == ()


def test_logits_are_linear_in_the_counts_and_follow_the_labels_order() -> None:
    made = some()
    by_hand = features(made.blocks, TEXTS).toarray() @ made.weight_FC.astype(np.float32) + made.bias_C
    assert np.allclose(made.logits(TEXTS), by_hand, atol=1e-5)
    assert np.array_equal(made.ordered(LABELS[::-1]).logits(TEXTS), made.logits(TEXTS)[:, ::-1])
    assert made.logits([""])[0].tolist() == [0.0, 1.0, 2.0]


def test_they_travel_with_the_model(classifier, tmp_path) -> None:
    save(replace(classifier(), ngrams=some()), tmp_path / "model")
    again = load(str(tmp_path / "model"), head="classifier", labels=LABELS[::-1])
    assert np.array_equal(again.ngrams.logits(TEXTS), some().logits(TEXTS)[:, ::-1])
    assert load(str(tmp_path / "model"), head="classifier", labels=("one", "two")).ngrams is None  # another head: what stood beside the old one goes
    save(classifier(), tmp_path / "model")
    assert not list((tmp_path / "model").glob("ngrams*"))


@pytest.mark.parametrize("change", ["grams", "labels", "kind"])
def test_a_folder_that_does_not_fit_is_refused(classifier, tmp_path, change) -> None:
    save(replace(classifier(), ngrams=some()), tmp_path / "model")
    path = tmp_path / "model" / ngrams.WORDS
    document = json.loads(path.read_text())
    if change == "grams":
        document["blocks"][0]["grams"].pop()
    elif change == "labels":
        document["labels"][0] = "another"
    else:
        document["blocks"][0]["analyser"] = "pickle"
    path.write_text(json.dumps(document))
    with pytest.raises(SafetyError):
        load(str(tmp_path / "model"), head="classifier", labels=LABELS)
