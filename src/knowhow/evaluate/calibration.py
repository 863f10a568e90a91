"""Do the probabilities mean what they say, and when should the model keep silent? Fitted on validation rows only, then applied.

Every result is plain JSON. Shape letters: N rows, C classes, K clusters (independent units).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import optimize, special

from knowhow.evaluate.gold import Gold, answer_kind, gold_of
from knowhow.evaluate.labels import FLOOR, best_thresholds, correct_rows, positive
from knowhow.evaluate.scorers import SCORERS, hard
from knowhow.maths.statistics import clopper_pearson_upper, effective_n, ratio, risk_p_value, wilson
from knowhow.types import Example, Predictions, Task

Json = dict[str, Any]

STARTS = (0.25, 0.5, 0.75, 1.0)
STEPS = 40
GUARANTEE = (
    "With probability at least {confidence:.0%} over the draw of the validation rows, at most {risk:.1%} of the answered distinct inputs are wrong, "
    "for inputs drawn like the validation rows (each duplicate cluster counted once, clusters independent). It does not hold under shift, "
    "and it is optimistic to the extent that the same rows also chose the checkpoint, the temperature or the labels' thresholds."
)
NO_GUARANTEE = (
    "No threshold could be shown to keep the error rate at or below {risk:.1%} with {confidence:.0%} confidence on {inputs} distinct validation inputs: "
    "at this risk the model should always abstain."
)


def fit(
    predictions: Predictions,
    examples: Sequence[Example],
    task: Task,
    *,
    clusters_N: np.ndarray | None = None,
    risk: float = 0.05,
    confidence: float = 0.95,
) -> Json:
    """What validation rows teach, to be kept beside the model: {temperature: …, abstention: …, false_positives: …}, and with many labels the
    `thresholds` of best F1.

    Temperature is fitted on logits (log-probabilities where there are none). The task must have labels."""
    gold = _gold(examples, task, clusters_N)
    temperature = fit_temperature(_logits(predictions, task), gold.values, gold.weights_N)
    fitted: Json = {"temperature": temperature}
    calibrated = apply(predictions, fitted, task)
    if task.many:
        fitted["thresholds"] = best_thresholds(gold.values, calibrated.probs_NC, gold.weights_N).tolist()
        calibrated = apply(predictions, fitted, task)
    right_N = correct_rows(gold.values, calibrated)
    fitted["false_positives"] = false_positives(gold.values, calibrated, gold.weights_N, gold.clusters_N)
    return {**fitted, "abstention": abstention(confidence_of(calibrated, task), right_N, gold.clusters_N, risk=risk, confidence=confidence)}


def apply(predictions: Predictions, fitted: Mapping[str, Any], task: Task) -> Predictions:
    """The same answers with probabilities at the fitted temperature. Answers that are only yes and no come back as they are."""
    if predictions.logits_NC is None and (predictions.probs_NC is None or hard(predictions)):
        return predictions
    logits_NC = _logits(predictions, task) / fitted["temperature"]["temperature"]
    if not task.many:
        return replace(predictions, probs_NC=special.softmax(logits_NC, axis=1))
    thresholds = fitted.get("thresholds")
    return replace(predictions, probs_NC=special.expit(logits_NC), thresholds_C=None if thresholds is None else np.asarray(thresholds))


def false_positives(gold: np.ndarray, calibrated: Predictions, weights_N: np.ndarray, clusters_N: np.ndarray | None) -> list[Json]:
    """For each label, the share of rows without it that are given it all the same, with Wilson's 95% bounds at the effective n of those rows. Measured
    on the rows that thresholds were chosen on, so a little optimistic."""
    given_NC = positive(calibrated) if gold.ndim == 2 else np.eye(calibrated.probs_NC.shape[1], dtype=np.int64)[calibrated.probs_NC.argmax(1)]
    truth_NC = gold if gold.ndim == 2 else np.eye(given_NC.shape[1], dtype=np.int64)[gold]
    rows = []
    for given_N, truth_N in zip(given_NC.T, truth_NC.T, strict=True):
        without_N = truth_N == 0
        n = effective_n(weights_N[without_N], None if clusters_N is None else clusters_N[without_N]) if without_N.any() else 0.0
        share = float(np.average(given_N[without_N], weights=weights_N[without_N])) if n else 0.0
        bounds = wilson(share * n, n)
        rows.append({"rate": share, "low": bounds.low if n else 0.0, "high": bounds.high if n else 1.0, "n": n})
    return rows


def answered(predictions: Predictions, fitted: Mapping[str, Any], task: Task) -> np.ndarray:
    """bool N: sure enough to answer at the stated risk? `predictions` are calibrated ones."""
    threshold = fitted["abstention"]["threshold"]
    confidence_N = confidence_of(predictions, task)
    return np.zeros(len(confidence_N), dtype=bool) if threshold is None else confidence_N >= threshold


def report(predictions: Predictions, examples: Sequence[Example], task: Task, fitted: Mapping[str, Any], *, clusters_N: np.ndarray | None = None) -> Json:
    """What calibration did on test rows: errors before and after, reliability bins, risk–coverage, and the risk met at the threshold."""
    gold = _gold(examples, task, clusters_N)
    calibrated = apply(predictions, fitted, task)
    predictions = predictions if predictions.probs_NC is not None else apply(predictions, {"temperature": {"temperature": 1.0}}, task)
    before, after = (
        {name: SCORERS[name](gold.values, answers, gold.weights_N) for name in ("nll", "brier", "ece", "ece_debiased")} for answers in (predictions, calibrated)
    )
    right_N, confidence_N = correct_rows(gold.values, calibrated), confidence_of(calibrated, task)
    kept_N = answered(calibrated, fitted, task)
    errors, n = _distinct_errors(right_N, kept_N, gold.clusters_N)
    met = wilson(errors, n)
    return {
        "before": before,
        "after": after,
        "temperature": fitted["temperature"],
        "reliability": reliability(confidence_N, right_N, gold.weights_N, gold.clusters_N),
        "risk_coverage": risk_coverage(confidence_N, right_N, gold.weights_N),
        "abstention": {
            **fitted["abstention"],
            "test_coverage": float(ratio(gold.weights_N[kept_N].sum(), gold.weights_N.sum())),
            "test_risk": met.value,
            "test_risk_low": met.low,
            "test_risk_high": met.high,
            "test_answered": n,
        },
    }


def confidence_of(predictions: Predictions, task: Task) -> np.ndarray:
    """How sure the whole answer is, float N: the top probability; with many labels the product over labels of p (given) or 1 − p (not given)."""
    probs_NC = np.nan_to_num(predictions.probs_NC.astype(np.float64))
    return np.where(positive(predictions) == 1, probs_NC, 1 - probs_NC).prod(1) if task.many else probs_NC.max(1)


def fit_temperature(logits_NC: np.ndarray, gold: np.ndarray, weights_N: np.ndarray | None = None) -> Json:
    """The T that minimises the NLL of softmax(logits / T) (Guo et al. 2017), or of sigmoid for many labels; Brent's method on log T.

    T is held within 1/50 … 50: on separable rows the best T is 0. Returns {temperature, nll_before, nll_after, n} in nats per row (per label if many)."""
    weights_N = np.ones(len(gold)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    logits_NC = logits_NC.astype(np.float64)

    def nll(log_t: float) -> float:
        scaled_NC = logits_NC / np.exp(log_t)
        if gold.ndim == 2:
            rows_N = (np.logaddexp(0, scaled_NC) - gold * scaled_NC).mean(1)
        else:
            rows_N = special.logsumexp(scaled_NC, axis=1) - scaled_NC[np.arange(len(gold)), gold]
        return float(np.average(rows_N, weights=weights_N))

    bound = np.log(50.0)
    best = optimize.minimize_scalar(nll, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    log_t = float(best.x) if best.fun < nll(0.0) else 0.0
    return {"temperature": float(np.exp(log_t)), "nll_before": nll(0.0), "nll_after": nll(log_t), "n": len(gold)}


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray, clusters_N: np.ndarray | None = None, *, bins: int = 15) -> list[Json]:
    """Bins of equal width with rows in them: mean confidence, share right and its Wilson interval at the bin's effective n (Kish)."""
    place_N = np.minimum((np.asarray(confidence_N) * bins).astype(int), bins - 1)
    rows: list[Json] = []
    for bin_ in np.unique(place_N):
        inside_N = place_N == bin_
        weights = weights_N[inside_N]
        if weights.sum() <= 0:
            continue
        n = effective_n(weights, None if clusters_N is None else clusters_N[inside_N])
        share = float(np.average(correct_N[inside_N], weights=weights))
        interval = wilson(share * n, n)
        rows.append(
            {
                "from": float(bin_ / bins),
                "to": float((bin_ + 1) / bins),
                "confidence": float(np.average(confidence_N[inside_N], weights=weights)),
                "accuracy": share,
                "low": interval.low,
                "high": interval.high,
                "n": float(n),
                "share": float(weights.sum() / weights_N.sum()),
            }
        )
    return rows


def risk_coverage(confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray | None = None, *, points: int = 200) -> Json:
    """Error rate among the answered against the share answered, surest first; equal confidences are answered together.

    `aurc`: area under it (lower is better, Geifman & El-Yaniv 2017) · `best`: the area of an order that puts all right answers first ·
    `excess` = aurc − best: what a better sense of its own errors could still win. At most `points` points, the last one at coverage 1."""
    confidence_N, correct_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(correct_N, dtype=np.float64)
    weights_N = np.ones(len(correct_N)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    threshold_G, coverage_G, risk_G = _curve(confidence_N, correct_N, weights_N)
    area, best = _area(coverage_G, risk_G), _ideal_area(float(risk_G[-1]))
    keep = np.unique(np.linspace(0, len(coverage_G) - 1, min(points, len(coverage_G))).round().astype(int))
    return {
        "coverage": coverage_G[keep].tolist(),
        "risk": risk_G[keep].tolist(),
        "threshold": threshold_G[keep].tolist(),
        "aurc": area,
        "best": best,
        "excess": area - best,
    }


def abstention(confidence_N: np.ndarray, correct_N: np.ndarray, clusters_N: np.ndarray | None = None, *, risk: float, confidence: float = 0.95) -> Json:
    """The lowest threshold whose error rate among answered distinct inputs is at most `risk`, with probability `confidence`.

    Learn-then-Test (Angelopoulos et al. 2021) by fixed sequences: coverages are tried from 25, 50, 75 and 100% of the rows upwards, each
    sequence at a quarter of the error budget, until a test fails. A test is an exact binomial one (Hoeffding–Bentkus where the rows of a
    cluster differ). `threshold` None: nothing could be shown, so abstain always. `upper`: Clopper–Pearson bound at the chosen threshold."""
    confidence_N, correct_N = np.asarray(confidence_N, dtype=np.float64), np.asarray(correct_N, dtype=np.float64)
    clusters_N = np.arange(len(correct_N)) if clusters_N is None else np.asarray(clusters_N)
    budget = (1 - confidence) / len(STARTS)
    chosen: float | None = None
    if len(confidence_N):
        ranked = np.sort(confidence_N)[::-1]
        for start in STARTS:
            for coverage in np.arange(round(start * STEPS), STEPS + 1) / STEPS:
                threshold = float(ranked[min(len(ranked), max(1, int(np.ceil(coverage * len(ranked))))) - 1])
                if risk_p_value(_cluster_losses(correct_N, confidence_N >= threshold, clusters_N), risk) > budget:
                    break
                chosen = threshold if chosen is None else min(chosen, threshold)
    kept_N = np.zeros(len(confidence_N), dtype=bool) if chosen is None else confidence_N >= chosen
    errors, n = _distinct_errors(correct_N, kept_N, clusters_N)
    return {
        "threshold": chosen,
        "risk": risk,
        "confidence": confidence,
        "coverage": float(kept_N.mean()) if len(kept_N) else 0.0,
        "valid_risk": float(errors / n) if n else None,
        "upper": clopper_pearson_upper(errors, n, budget),
        "answered": n,
        "guarantee": (NO_GUARANTEE if chosen is None else GUARANTEE).format(confidence=confidence, risk=risk, inputs=len(np.unique(clusters_N))),
    }


def _cluster_losses(correct_N: np.ndarray, kept_N: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """Share of wrong answers in each cluster that has an answered row, float K."""
    _, inverse_N = np.unique(clusters_N[kept_N], return_inverse=True)
    return np.bincount(inverse_N, weights=1 - correct_N[kept_N]) / np.bincount(inverse_N) if kept_N.any() else np.zeros(0)


def _distinct_errors(correct_N: np.ndarray, kept_N: np.ndarray, clusters_N: np.ndarray) -> tuple[float, int]:
    losses_K = _cluster_losses(correct_N, kept_N, clusters_N)
    return float(losses_K.sum()), len(losses_K)


def _curve(confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order_N = np.argsort(-confidence_N, kind="stable")
    ends_G = np.flatnonzero(np.r_[np.diff(confidence_N[order_N]) != 0, True])
    mass_N = weights_N[order_N].cumsum()
    wrong_N = (weights_N * (1 - correct_N))[order_N].cumsum()
    return confidence_N[order_N][ends_G], mass_N[ends_G] / mass_N[-1], ratio(wrong_N[ends_G], mass_N[ends_G])


def _area(coverage_G: np.ndarray, risk_G: np.ndarray) -> float:
    """Mean risk over coverage: each group of equals adds its risk times its share."""
    return float((risk_G * np.diff(coverage_G, prepend=0.0)).sum())


def _ideal_area(error: float) -> float:
    """The area when all right answers come first: e + (1 − e) ln(1 − e), with e the error rate (Geifman et al. 2019, eq. 7)."""
    return error + (1 - error) * float(np.log1p(-error)) if error < 1 else 1.0


def _gold(examples: Sequence[Example], task: Task, clusters_N: np.ndarray | None) -> Gold:
    assert answer_kind(task) in ("one", "many"), "calibration is for tasks with labels"
    gold = gold_of(examples, task)
    return gold if clusters_N is None else replace(gold, clusters_N=np.asarray(clusters_N))


def _logits(predictions: Predictions, task: Task) -> np.ndarray:
    """Logits, or what would give the same probabilities."""
    if predictions.logits_NC is not None:
        return predictions.logits_NC.astype(np.float64)
    probs_NC = np.clip(predictions.probs_NC.astype(np.float64), FLOOR, 1 - FLOOR)
    return np.log(probs_NC) - np.log1p(-probs_NC) if task.many else np.log(probs_NC)
