"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang 2021) over a cross-validated linear model.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

FOLDS = 4
CAP = 20_000
"""Rows looked at; a larger set is sampled, and shares are estimates for the whole."""
_CELLS = 400_000
"""Rows × classes looked at: many classes take longer."""


def label_noise(texts: Sequence[str], labels: np.ndarray, clusters: np.ndarray, *, seed: int) -> dict[str, Any] | None:
    """Suspected wrong labels among N rows: {suspected, share, sampled, accuracy, rows, given, likely}.

    `labels` int codes (N), `clusters` N: duplicates are never on both sides of a fold. `suspected`: rows off the diagonal of the confident joint
    among the `sampled` rows; `share`: off-diagonal mass of the calibrated joint (their eq. 3); `accuracy`: of the linear model out of fold, without
    which a share says little; `rows`, `given`, `likely`: the suspects, surest first. None when no two classes have FOLDS rows."""
    codes, sizes = np.unique(labels, return_counts=True)
    kept = codes[sizes >= FOLDS]
    if len(kept) < 2:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = np.flatnonzero(np.isin(labels, kept))
    cap = min(CAP, max(2000, _CELLS // len(kept)))
    if len(rows) > cap:
        rows = np.sort(rng.choice(rows, cap, replace=False))
    kept, given = np.unique(labels[rows], return_inverse=True)
    if len(kept) < 2:
        return None
    probs = _out_of_fold([texts[row] for row in rows], given, _folds(given, clusters[rows], rng), len(kept))
    joint, guesses = confident_joint(probs, given)
    suspects = np.flatnonzero((guesses >= 0) & (guesses != given))
    margin = probs[suspects, guesses[suspects]] - probs[suspects, given[suspects]]
    suspects = suspects[np.argsort(-margin, kind="stable")]
    return {
        "suspected": len(suspects),
        "share": float(1 - np.trace(joint) / joint.sum()),
        "sampled": len(rows),
        "accuracy": float(np.mean(probs.argmax(1) == given)),
        "rows": rows[suspects],
        "given": kept[given[suspects]],
        "likely": kept[guesses[suspects]],
    }


def confident_joint(probs_NC: np.ndarray, given_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C×C calibrated joint of given × likely true labels, N guesses; -1 where the model is confident of nothing).

    A row counts as class j when its probability of j reaches the mean probability of j among rows given j (their eq. 1–2); rows of the joint are
    then scaled to the given counts (eq. 3)."""
    classes = probs_NC.shape[1]
    counts = np.bincount(given_N, minlength=classes)
    bars = np.array([probs_NC[given_N == code, code].mean() if counts[code] else np.inf for code in range(classes)])
    confident = np.where(probs_NC >= bars, probs_NC, -1.0)
    guesses = np.where(confident.max(1) >= 0, confident.argmax(1), -1)
    sure = guesses >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (given_N[sure], guesses[sure]), 1)
    empty = joint.sum(1) == 0
    joint[empty, empty] = 1
    return joint / joint.sum(1, keepdims=True) * counts[:, None], guesses


def _folds(given: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """N fold numbers: whole clusters, dealt class by class (by the class of a cluster's first row)."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    order = np.lexsort((rng.random(len(first)), given[first]))
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[inverse.reshape(-1)]


def _out_of_fold(texts: Sequence[str], given: np.ndarray, folds: np.ndarray, classes: int) -> np.ndarray:
    """N×C probabilities of each row from models that did not see its fold."""
    table = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, token_pattern=r"(?u)\S+", dtype=np.float32)
    try:
        features = table.fit_transform(texts)
    except ValueError:  # no word occurs twice: nothing can be learned from words
        return np.full((len(texts), classes), 1 / classes)
    probs = np.zeros((len(texts), classes))
    for fold in range(FOLDS):
        inside = folds != fold
        present = np.unique(given[inside])
        if len(present) < 2:
            probs[~inside] = np.bincount(given[inside], minlength=classes) / inside.sum()
            continue
        with warnings.catch_warnings():
            # A hundred iterations rank the rows well; the last digits of the optimum do not matter here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=10.0, max_iter=100, tol=1e-4).fit(features[inside], given[inside])
        probs[np.ix_(~inside, model.classes_)] = model.predict_proba(features[~inside])
    return probs
