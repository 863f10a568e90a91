"""What a model could use instead of following the flow of values: bags, n-grams, ordered pairs, counts, positions. Used by the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.feature_selection import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from knowhow.domains.malware.generate import example, stream
from knowhow.domains.malware.options import settings


@dataclass(frozen=True)
class Sample:
    """Traces as texts; per behaviour (columns) what is completed and what is present, completed or not."""

    texts: list[str]
    real_NB: np.ndarray
    present_NB: np.ndarray
    names: tuple[str, ...]


def sample(options: Mapping[str, object], seed: int, n: int) -> Sample:
    chosen = settings(options)
    traces = list(stream(chosen, seed, n))
    real = np.array([[name in trace.behaviours for name in chosen.behaviours] for trace in traces])
    present = np.array([[any(each.behaviour == name for each in trace.instances) for name in chosen.behaviours] for trace in traces])
    return Sample([example(trace, chosen, seed).prompt for trace in traces], real, present, chosen.behaviours)


def lines(text: str) -> list[list[str]]:
    return [line.replace(" = ", " ").split() for line in text.splitlines()]


def is_variable(word: str) -> bool:
    return word[0] == "x" and word.islower()


def bag(text: str) -> list[str]:
    return text.split()


def grams(text: str) -> list[str]:
    words = [word for line in lines(text) for word in line]
    return [" ".join(words[i : i + k]) for k in (1, 2, 3) for i in range(len(words) - k + 1)]


def api_grams(text: str) -> list[str]:
    words = [line[0] for line in lines(text)]
    return [" ".join(words[i : i + k]) for k in (1, 2, 3) for i in range(len(words) - k + 1)]


def positions(text: str) -> list[str]:
    """Where in the trace each call stands, in tenths, and how many words its line has."""
    rows = lines(text)
    return [f"{row[0]}@{10 * i // len(rows)}" for i, row in enumerate(rows)] + [f"{row[0]}#{len(row)}" for row in rows]


def repeats(text: str) -> list[str]:
    """How often variables occur: the multiset of counts, and per call and argument whether its variable is new, and how often it was and will be seen."""
    rows = lines(text)
    total = Counter(word for row in rows for word in row[1:] if is_variable(word))
    out = [f"count{n}" for n in total.values()] + [f"variables{len(total)}", f"words{sum(map(len, rows))}", f"letters{len(text)}"]
    before: Counter[str] = Counter()
    for row in rows:
        for k, word in enumerate(row[1:]):
            if is_variable(word):
                out += [f"{row[0]}/{k}/total{total[word]}", f"{row[0]}/{k}/before{before[word]}"]
                before[word] += 1
    return out


def edges(text: str) -> list[str]:
    """Which argument of which call shares its variable with which argument of an earlier call: what a reader of the flow would look at first."""
    seen: dict[str, set[str]] = {}
    out = set()
    for row in lines(text):
        for k, word in enumerate(row[1:]):
            if is_variable(word):
                out |= {f"{other}={row[0]}.{k}" for other in seen.get(word, ())}
                seen.setdefault(word, set()).add(f"{row[0]}.{k}")
    return sorted(out)


FEATURES: dict[str, Callable[[str], list[str]]] = {
    "bag": bag, "1-3-grams": grams, "api 1-3-grams": api_grams, "positions": positions, "repeats": repeats, "edges": edges,
}  # fmt: skip


def skip_bigrams(texts: Sequence[str]) -> sp.csr_matrix:
    """Ordered pairs at any distance, present or not: call before call, and call before (or on the same line as) argument word."""
    rows, columns = [], []
    for n, text in enumerate(texts):
        parsed = lines(text)
        calls = np.array([_number(row[0]) for row in parsed])
        words = np.array([_number(word) for row in parsed for word in row[1:]])
        place = np.array([i for i, row in enumerate(parsed) for _ in row[1:]])
        i, j = np.triu_indices(len(calls), 1)
        pairs = calls[i] * 2048 + calls[j]
        left, right = np.nonzero(np.arange(len(calls))[:, None] <= place[None, :])
        found = np.unique(np.concatenate([pairs, 4_194_304 + calls[left] * 2048 + words[right]]))
        rows.append(np.full(len(found), n))
        columns.append(found)
    matrix = sp.csr_matrix((np.ones(sum(map(len, rows))), (np.concatenate(rows), np.concatenate(columns))), shape=(len(texts), 2 * 4_194_304))
    return matrix


_NUMBERS: dict[str, int] = {}
_STRENGTH = {"skip-bigrams": 0.3, "edges": 5.0}


def _number(word: str) -> int:
    return _NUMBERS.setdefault(word, len(_NUMBERS))


@cache
def _hasher(name: str) -> HashingVectorizer:
    return HashingVectorizer(analyzer=FEATURES[name], n_features=2**17, alternate_sign=False)


def matrices(name: str, train: Sample, test: Sample) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Features of both samples; those in fewer than ten training traces are left out."""
    if name == "skip-bigrams":
        one, two = skip_bigrams(train.texts), skip_bigrams(test.texts)
    else:
        one, two = _hasher(name).transform(train.texts), _hasher(name).transform(test.texts)
    kept = np.asarray((one != 0).sum(axis=0)).ravel() >= 10
    one, two = one[:, kept], two[:, kept]
    return sp.csr_matrix(one), sp.csr_matrix(two)


def average_precision(name: str, train: Sample, test: Sample) -> tuple[float, float]:
    """Macro average precision over behaviours of logistic regression on a feature family (the 2,000 features that tell most in training), and
    that of knowing only which behaviours are present."""
    one, two = matrices(name, train, test)
    got, base = [], []
    for b in range(len(train.names)):
        score, _ = chi2(one, train.real_NB[:, b])
        best = np.argsort(-np.nan_to_num(score))[:2000]
        model = LogisticRegression(C=_STRENGTH.get(name, 20.0), solver="liblinear", tol=1e-2).fit(one[:, best], train.real_NB[:, b])
        got.append(average_precision_score(test.real_NB[:, b], model.decision_function(two[:, best])))
        base.append(average_precision_score(test.real_NB[:, b], test.present_NB[:, b]))
    return float(np.mean(got)), float(np.mean(base))
