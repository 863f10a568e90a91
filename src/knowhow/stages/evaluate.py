"""Stage evaluate: the specialist against every baseline, calibrated on validation only; what it forgot, remembers and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowhow.data.chat import prompt_text
from knowhow.evaluate import calibration, cost, forgetting
from knowhow.evaluate.gold import answer_kind, gold_of, input_key, numbered, take_predictions
from knowhow.evaluate.labels import correct_rows, positive, predicted
from knowhow.evaluate.suite import Options, evaluate, standard_slices, time_slices
from knowhow.files import append_jsonl, read_json, write_json
from knowhow.model import infer, load
from knowhow.stages import remember, robustness
from knowhow.stages.common import Build, answers, context, encode, load_predictions, save_predictions, scorer
from knowhow.stages.readout import model_folder, trained_folder
from knowhow.types import DISTRACTOR, EvalResult, Example, Predictions, Task

SAMPLES = 60
TIMED_ROWS = 64


def work(build: Build, folder: Path) -> None:
    """Leaves results.json, calibration.json, confusion.json, forgetting.json, robustness.json, memorisation.json, samples.jsonl and predictions."""
    task, spec = build.task, build.recipe.base
    loaded = specialist(build)
    valid, test = build.rows("valid"), build.rows("test")
    given = {part: answers(loaded, rows, task, spec, name="specialist", progress=build.progress) for part, rows in (("valid", valid), ("test", test))}
    answer, fitted = given["test"], None
    if task.classes:
        fitted = calibration.fit(given["valid"], valid, task, risk=build.recipe.evaluate.risk)
        write_json(folder / "calibration.json", calibrated(given["test"], test, task, fitted))
        answer = calibration.apply(given["test"], fitted, task)
        write_json(folder / "confusion.json", confusion(answer, test, task))
    save_predictions(folder / "predictions" / "test", answer)
    save_predictions(folder / "predictions" / "valid", given["valid"])
    write_json(folder / "results.json", results(build, answer, test))
    write_samples(folder / "samples.jsonl", answer, test, task)
    if build.recipe.evaluate.forgetting and loaded.kind == "causal":
        write_json(folder / "forgetting.json", forgotten(build))
    if (stressed := robustness.work(build, loaded, answer, fitted)) is not None:
        write_json(folder / "robustness.json", stressed)
    if build.recipe.evaluate.memorisation:
        write_json(folder / "memorisation.json", remember.work(build, loaded))
    build.run.measure(**costs(build, loaded, test))


def specialist(build: Build) -> load.Loaded:
    """The model that validation picked."""
    return _answering(build, str(model_folder(build)))


def trained(build: Build) -> load.Loaded:
    """The model that the last phase left, whatever validation picked."""
    return _answering(build, str(trained_folder(build)))


def _answering(build: Build, folder: str) -> load.Loaded:
    task = build.task
    objective = build.recipe.adapt[-1].objective
    if not task.classes:
        return load.load(folder, head="regressor" if objective == "classify" else "lm")
    return load.load(folder, head="channel" if objective == "channel" else "classifier", labels=task.labels, many=task.many)


def results(build: Build, answer: Predictions, test: Sequence[Example]) -> list[EvalResult]:
    """Every metric × slice of the specialist (paired with the baselines) and of each baseline."""
    recipe, task = build.recipe, build.task
    folder = build.run.path("baseline", "test")
    others = [load_predictions(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    baselines = {predictions.model: predictions for predictions in others}
    keys = [input_key(example) for example in test]
    clusters_N = numbered(keys) if not any(example.group for example in test) else gold_of(test, task).clusters_N
    known = {input_key(example) for example in build.rows("train")}
    novel_N = standard_slices(test, clusters_N, None)["deduplicated"] * np.array([key not in known for key in keys], float)
    metrics = tuple(recipe.evaluate.metrics) if recipe.evaluate.metrics else None
    options = Options(recipe.evaluate.draws, recipe.seed, recipe.evaluate.confidence, metrics, recipe.name)
    slices = {"novel": novel_N, **time_slices(test)}
    scored = evaluate(answer, test, task, baselines=baselines, slices=slices, clusters_N=clusters_N, options=options)
    for predictions in baselines.values():
        scored += [r for r in evaluate(predictions, test, task, slices=slices, clusters_N=clusters_N, options=options) if not r.slice.startswith("class:")]
    return scored


def calibrated(given: Predictions, test: Sequence[Example], task: Task, fitted: dict[str, Any]) -> dict[str, Any]:
    """What was fitted on validation, and what it did on test: errors and reliability bins before and after, risk–coverage, abstention."""
    found = calibration.report(given, test, task, fitted)
    gold = gold_of(test, task)
    raw = calibration.apply(given, {"temperature": {"temperature": 1.0}, "thresholds": fitted.get("thresholds")}, task)
    bins = calibration.reliability(calibration.confidence_of(raw, task), correct_rows(gold.values, raw), gold.weights_N, gold.clusters_N)
    curve = found["risk_coverage"]
    return {
        "fitted": fitted,
        "temperature": fitted["temperature"]["temperature"],
        "before": {**found["before"], "bins": bins},
        "after": {**found["after"], "bins": found["reliability"]},
        "risk_coverage": [{"coverage": c, "risk": r, "threshold": t} for c, r, t in zip(curve["coverage"], curve["risk"], curve["threshold"])],
        "aurc": curve["aurc"],
        "abstention": found["abstention"],
    }


def confusion(answer: Predictions, test: Sequence[Example], task: Task) -> dict[str, Any]:
    """Weighted counts, rows = right label, columns = answered; for many labels one 2×2 table per label."""
    gold = gold_of(test, task)
    if answer_kind(task) == "many":
        said_NC, true_NC = positive(answer) == 1, gold.values == 1
        cells = [[float(gold.weights_N[(true_NC[:, c] == t) & (said_NC[:, c] == s)].sum()) for t in (1, 0) for s in (1, 0)] for c in range(len(task.labels))]
        return {"labels": list(task.labels), "many": [dict(zip(("hit", "missed", "false_alarm", "silent"), row)) for row in cells]}
    matrix = np.zeros((len(task.labels), len(task.labels)))
    np.add.at(matrix, (gold.values, predicted(answer)), gold.weights_N)
    return {"labels": list(task.labels), "matrix": matrix.tolist()}


def write_samples(path: Path, answer: Predictions, test: Sequence[Example], task: Task) -> None:
    """Worked examples: confident mistakes first, then unsure ones, then right answers; evidence where the data knows it."""
    path.unlink(missing_ok=True)
    gold = gold_of(test, task)
    right_N = correct_rows(gold.values, answer).astype(bool) if task.classes or answer.texts is not None else np.ones(len(test), bool)
    sure_N = calibration.confidence_of(answer, task) if task.classes else np.zeros(len(test))
    wrong = [int(i) for i in np.argsort(-sure_N, kind="stable") if not right_N[i]][: SAMPLES // 2]
    fine = [int(i) for i in np.argsort(-sure_N, kind="stable") if right_N[i]]
    for at in wrong + fine[:: max(1, len(fine) // (SAMPLES // 2))][: SAMPLES // 2]:
        example = test[at]
        append_jsonl(path, {
            "id": example.id, "text": prompt_text(example, task), "gold": shown(example, task), "predicted": said(answer, at, task),
            "confidence": round(float(sure_N[at]), 4), "correct": bool(right_N[at]),
            "evidence": [{"start": span.start, "end": span.end, "kind": span.kind} for span in example.evidence if span.kind != DISTRACTOR],
        })  # fmt: skip


def shown(example: Example, task: Task) -> Any:
    """The right answer as a person would write it."""
    if task.kind == "generate":
        return next((c.text for c in example.completions if c.role in ("target", "chosen")), "")
    return list(example.label) if isinstance(example.label, tuple) else example.label


def said(answer: Predictions, at: int, task: Task) -> Any:
    """The given answer as a person would write it."""
    if answer.texts is not None:
        return answer.texts[at]
    if not task.classes:
        return round(float(answer.values_N[at]), 6)
    if task.many:
        return [label for label, given in zip(task.labels, positive(take_predictions(answer, np.array([at])))[0]) if given]
    return task.labels[int(answer.probs_NC[at].argmax())]


def forgotten(build: Build) -> dict[str, Any]:
    """NLL rise on general text: the specialist's body under a language-model head against the base."""
    texts = forgetting.general_text()
    nll = {}
    for name, folder in (("before", build.base), ("after", str(model_folder(build)))):
        loaded = load.load(folder, head="lm", seed=build.recipe.seed)
        if name == "after" and not loaded.model.config.tie_word_embeddings and build.recipe.adapt[-1].objective == "classify":
            base = load.load(build.base, head="lm", seed=build.recipe.seed)
            loaded.model.get_output_embeddings().load_state_dict(base.model.get_output_embeddings().state_dict())
        rows = infer.encode(loaded.tokenizer, texts, context=min(512, context(loaded, build.recipe.base)))
        nll[name], counts = infer.lm_nll(loaded, rows)
    rise = forgetting.forgetting(nll["before"], nll["after"], counts)
    return {
        "value": rise.value, "low": rise.low, "high": rise.high, "n": rise.n, "unit": "nats per token",
        "before": float(nll["before"].sum() / counts.sum()), "after": float(nll["after"].sum() / counts.sum()),
    }  # fmt: skip


def costs(build: Build, loaded: load.Loaded, test: Sequence[Example]) -> dict[str, Any]:
    """Parameters, bytes, speed and latency on this machine: measured, so kept outside every digest."""
    size = sum(path.stat().st_size for path in model_folder(build).glob("*.safetensors"))
    about = {**cost.size(loaded.model), "bytes": size, "peak_memory": cost.peak_memory()}
    if loaded.head == "lm":
        return about
    tokens = encode(loaded, [test[at] for at in range(min(TIMED_ROWS, len(test)))], build.task, build.recipe.base)
    score = scorer(loaded)
    speed = cost.throughput(score, [tokens, tokens], [sum(map(len, tokens))] * 2)
    about |= {"tokens_per_second": speed["tokens_per_second"], "threads": torch.get_num_threads()}
    return about | {"latency_ms": cost.latency(score, tokens)}


def gate(build: Build) -> list[str]:
    """The gates of the recipe's budget that were not met, as sentences."""
    budget, failed = build.recipe.budget, []
    rows = read_json(build.run.path("evaluate", "results.json"))
    main = next((row for row in rows if row["model"] == "specialist" and row["slice"] == "all" and row["metric"] == build.task.metric), None)
    if budget.beat_baselines and main is not None:
        lost = {name: d for name, d in main["paired"].items() if d["low"] <= 0}
        failed += [f"{build.task.metric} does not beat {name} ({d['value']:+.3f}, interval {d['low']:+.3f} to {d['high']:+.3f})" for name, d in lost.items()]
    path = build.run.path("evaluate", "forgetting.json")
    if budget.forgetting is not None and path.is_file() and (rise := read_json(path)["value"]) > budget.forgetting:
        failed.append(f"it forgot {rise:.3f} nats per token of general text; the budget is {budget.forgetting:g}")
    return failed
