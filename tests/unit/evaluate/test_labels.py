from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from knowhow.evaluate.labels import best_thresholds, class_sums, correct_rows, of_class, positive, predicted
from knowhow.types import Predictions


def given(probs: list[list[float]], thresholds: list[float] | None = None) -> Predictions:
    array = np.array(probs)
    return Predictions("m", tuple(map(str, range(len(array)))), probs_NC=array, thresholds_C=None if thresholds is None else np.array(thresholds))


def test_an_answer_that_is_no_label_is_wrong_for_every_class() -> None:
    answers = given([[0, 0], [0.2, 0.8], [float("nan"), float("nan")]])
    assert predicted(answers).tolist() == [-1, 1, -1]
    gold_DC, found_DC, both_DC = class_sums(np.array([0, 1, 1]), answers)(np.ones((1, 3)))
    assert (gold_DC.tolist(), found_DC.tolist(), both_DC.tolist()) == ([[1, 2]], [[0, 1]], [[0, 1]])
    assert correct_rows(np.array([0, 1, 1]), answers).tolist() == [0, 1, 0]


def test_precision_recall_and_f1_of_a_class() -> None:
    answers = given([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    precision, recall, f1 = of_class(0, np.array([0, 1, 0, 1]), answers)(np.array([[3.0, 1, 1, 1]]))[:, 0]
    assert (precision, recall, f1) == (0.75, 0.75, 0.75)
    never = of_class(1, np.array([0, 1]), given([[0.9, 0.1], [0.9, 0.1]]))(np.ones((1, 2)))[:, 0]
    assert np.isnan(never[0])
    assert (never[1], never[2]) == (0, 0)


def test_texts_are_equal_up_to_white_space() -> None:
    answers = Predictions("m", ("1", "2"), texts=(" a  b\n", "A b"))
    assert correct_rows(["a b", "a b"], answers).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    gold, w = random.integers(0, 2, (80, 3)), random.integers(1, 4, 80).astype(float)
    probs = np.clip(random.random((80, 3)) * 0.4 + 0.2 * gold, 0, 1).round(2)
    chosen = best_thresholds(gold, probs, w)
    said = positive(Predictions("m", (), probs_NC=probs, thresholds_C=chosen))
    for c in range(3):
        tried = [f1_score(gold[:, c], probs[:, c] >= t, sample_weight=w, zero_division=0) for t in np.unique(probs[:, c])]
        assert f1_score(gold[:, c], said[:, c], sample_weight=w) == pytest.approx(max(tried))


def test_thresholds_of_labels_without_rows_and_of_constants() -> None:
    gold = np.array([[1, 0], [0, 0], [1, 0]])
    chosen = best_thresholds(gold, np.full((3, 2), 0.3), np.ones(3))
    assert chosen[1] == 0.5
    assert positive(Predictions("m", (), probs_NC=np.full((3, 2), 0.3), thresholds_C=chosen)).tolist() == [[1, 0]] * 3
