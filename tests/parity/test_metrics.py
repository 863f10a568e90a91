"""The metrics against scikit-learn, scipy, sacrebleu and rouge-score, weights included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import CHRF
from scipy import stats
from sklearn import metrics

from knowhow.evaluate.scorers import SCORERS
from knowhow.types import Predictions

N = 400


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def labelled(classes: int, seed: int = 0, decimals: int = 2) -> tuple[np.ndarray, Predictions, np.ndarray]:
    """Rounded probabilities, so that scores tie."""
    random = generator(seed)
    gold = random.integers(0, classes, N)
    logits = random.normal(size=(N, classes)) + np.eye(classes)[gold]
    probs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).round(decimals) + 1e-4
    return gold, Predictions("m", tuple(map(str, range(N))), probs_NC=probs / probs.sum(1, keepdims=True)), random.integers(1, 6, N).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_one_label(seed: int) -> None:
    gold, given, w = labelled(5, seed)
    said = given.probs_NC.argmax(1)
    assert SCORERS["accuracy"](gold, given, w) == pytest.approx(metrics.accuracy_score(gold, said, sample_weight=w))
    assert SCORERS["macro_f1"](gold, given, w) == pytest.approx(metrics.f1_score(gold, said, average="macro", sample_weight=w))
    assert SCORERS["micro_f1"](gold, given, w) == pytest.approx(metrics.f1_score(gold, said, average="micro", sample_weight=w))
    assert SCORERS["nll"](gold, given, w) == pytest.approx(metrics.log_loss(gold, given.probs_NC, sample_weight=w))
    assert SCORERS["brier"](gold, given, w) == pytest.approx(metrics.brier_score_loss(gold, given.probs_NC, sample_weight=w))
    rest = np.mean([metrics.roc_auc_score(gold == c, given.probs_NC[:, c], sample_weight=w) for c in range(5)])
    assert SCORERS["auc"](gold, given, w) == pytest.approx(rest)
    precision = np.mean([metrics.average_precision_score(gold == c, given.probs_NC[:, c], sample_weight=w) for c in range(5)])
    assert SCORERS["average_precision"](gold, given, w) == pytest.approx(precision)


def test_macro_f1_leaves_out_classes_without_rows() -> None:
    gold, given, w = labelled(5)
    w[gold == 2] = 0
    kept = w > 0
    expected = metrics.f1_score(gold[kept], given.probs_NC[kept].argmax(1), labels=[0, 1, 3, 4], average="macro", sample_weight=w[kept])
    assert SCORERS["macro_f1"](gold, given, w) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes(seed: int) -> None:
    gold, given, w = labelled(2, seed)
    score = given.probs_NC[:, 1]
    assert SCORERS["auc"](gold, given, w) == pytest.approx(metrics.roc_auc_score(gold, score, sample_weight=w))
    assert SCORERS["average_precision"](gold, given, w) == pytest.approx(metrics.average_precision_score(gold, score, sample_weight=w))
    assert SCORERS["brier"](gold, given, w) == pytest.approx(metrics.brier_score_loss(gold, score, sample_weight=w))
    fpr, tpr, _ = metrics.roc_curve(gold, score, sample_weight=w, drop_intermediate=False)
    for name, limit in (("tpr@1e-2", 1e-2), ("tpr@1e-3", 1e-3)):
        assert SCORERS[name](gold, given, w) == pytest.approx(tpr[fpr <= limit].max())


def test_many_labels() -> None:
    random = generator(1)
    gold = random.integers(0, 2, (N, 4))
    probs = (1 / (1 + np.exp(-random.normal(size=(N, 4)) - gold))).round(2) * 0.98 + 0.01
    given, w = Predictions("m", tuple(map(str, range(N))), probs_NC=probs), random.random(N)
    said = (probs >= 0.5).astype(int)
    assert SCORERS["macro_f1"](gold, given, w) == pytest.approx(metrics.f1_score(gold, said, average="macro", sample_weight=w))
    assert SCORERS["micro_f1"](gold, given, w) == pytest.approx(metrics.f1_score(gold, said, average="micro", sample_weight=w))
    assert SCORERS["exact_match"](gold, given, w) == pytest.approx(metrics.accuracy_score(gold, said, sample_weight=w))
    assert SCORERS["auc"](gold, given, w) == pytest.approx(metrics.roc_auc_score(gold, probs, average="macro", sample_weight=w))
    assert SCORERS["average_precision"](gold, given, w) == pytest.approx(metrics.average_precision_score(gold, probs, average="macro", sample_weight=w))
    bce = np.mean([metrics.log_loss(gold[:, c], probs[:, c], sample_weight=w) for c in range(4)])
    assert SCORERS["nll"](gold, given, w) == pytest.approx(bce)


def test_numbers() -> None:
    random = generator(2)
    gold = random.normal(size=N).round(1)
    given = Predictions("m", tuple(map(str, range(N))), values_N=(gold + random.normal(size=N)).round(1))
    w = random.integers(1, 5, N)
    assert SCORERS["mae"](gold, given, w) == pytest.approx(metrics.mean_absolute_error(gold, given.values_N, sample_weight=w))
    assert SCORERS["rmse"](gold, given, w) == pytest.approx(metrics.root_mean_squared_error(gold, given.values_N, sample_weight=w))
    assert SCORERS["r2"](gold, given, w) == pytest.approx(metrics.r2_score(gold, given.values_N, sample_weight=w))
    copies = np.repeat(np.arange(N), w)
    assert SCORERS["spearman"](gold, given, w) == pytest.approx(stats.spearmanr(gold[copies], given.values_N[copies]).statistic)


def test_ece_against_its_definition() -> None:
    gold, given, w = labelled(3, decimals=6)
    top, right = given.probs_NC.max(1), given.probs_NC.argmax(1) == gold
    expected = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:]):
        inside = (top > low) & (top <= high)
        if inside.any():
            expected += w[inside].sum() / w.sum() * abs(np.average(right[inside], weights=w[inside]) - np.average(top[inside], weights=w[inside]))
    assert SCORERS["ece"](gold, given, w) == pytest.approx(expected)


def test_debiased_error_of_a_perfect_model_is_near_zero_where_the_plain_one_is_not() -> None:
    plain, debiased = [], []
    for seed in range(60):
        random = generator(seed)
        p = random.uniform(0.5, 1, 300)
        given = Predictions("m", tuple(map(str, range(300))), probs_NC=np.stack([1 - p, p], 1))
        gold = (random.random(300) < p).astype(int)
        plain.append(SCORERS["ece"](gold, given, np.ones(300)))
        debiased.append(SCORERS["ece_debiased"](gold, given, np.ones(300)))
    assert np.mean(plain) > 0.05
    assert np.mean(debiased) < 0.03


TEXTS = [
    ("The cat sat on the mat.", "the cat was on a mat"),
    ("Write 3 files, then stop!", "write three files and then stop"),
    ("", "empty answer"),
    ("naïve café über", "naive café uber"),
    ("same same same", "same same same"),
    ("a", "b"),
    ("short", "a much longer answer than the target, in fact"),
]


def test_rouge_l() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    gold, said = zip(*TEXTS)
    given = Predictions("m", tuple(map(str, range(len(gold)))), texts=said)
    w = np.arange(1.0, len(gold) + 1)
    expected = np.average([scorer.score(target, answer)["rougeL"].fmeasure for target, answer in TEXTS], weights=w)
    assert SCORERS["rouge_l"](list(gold), given, w) == pytest.approx(expected)


def test_rouge_l_of_long_texts() -> None:
    random = generator(5)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(20):
        a, b = (" ".join(map(str, random.integers(0, 12, random.integers(1, 150)))) for _ in range(2))
        given = Predictions("m", ("0",), texts=(b,))
        assert SCORERS["rouge_l"]([a], given, np.ones(1)) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure)


@pytest.mark.parametrize("rows", [TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[4:5], TEXTS[6:]])
def test_chrf(rows: list[tuple[str, str]]) -> None:
    gold, said = (list(side) for side in zip(*rows))
    expected = CHRF().corpus_score(said, [gold]).score / 100
    given = Predictions("m", tuple(map(str, range(len(gold)))), texts=tuple(said))
    assert SCORERS["chrf"](gold, given, np.ones(len(gold))) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(SCORERS["chrf"](gold, given, np.zeros(len(gold))))
