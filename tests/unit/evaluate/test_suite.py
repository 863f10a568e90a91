from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from knowhow.errors import UsageError
from knowhow.evaluate.gold import gold_of
from knowhow.evaluate.scorers import SCORERS
from knowhow.evaluate.suite import Options, as_probabilities, evaluate, standard_slices, time_slices
from knowhow.types import Completion, EvalResult, Example, Predictions, Task

Model = Callable[..., Predictions]
QUICK = Options(draws=200, task="triage")


def one(results: list[EvalResult], metric: str, slice_: str) -> EvalResult:
    found = [result for result in results if (result.metric, result.slice) == (metric, slice_)]
    assert len(found) == 1, f"{metric} on {slice_}: {len(found)} results"
    return found[0]


def test_values_are_the_scorers_and_every_slice_is_there(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 1.0)
    gold = gold_of(examples, task)
    results = evaluate(given, examples, task, slices=standard_slices(examples, gold.clusters_N, range(20)), options=QUICK)
    assert {result.slice for result in results} == {"all", "deduplicated", "novel", "short", "long", "class:clean", "class:dropper", "class:rat"}
    for name in ("accuracy", "macro_f1", "auc", "nll", "ece"):
        result = one(results, name, "all")
        assert result.value == pytest.approx(SCORERS[name](gold.values, given, gold.weights_N))
        assert result.low <= result.value <= result.high or name == "ece"
        assert (result.n, result.task, result.model) == (40, "triage", "m")
    once = np.arange(120) < 40
    assert one(results, "accuracy", "deduplicated").value == pytest.approx(SCORERS["accuracy"](gold.values, given, once))
    assert one(results, "accuracy", "novel").value == pytest.approx(SCORERS["accuracy"](gold.values, given, once & (gold.clusters_N >= 20)))
    assert one(results, "accuracy", "novel").n == 20
    assert one(results, "accuracy", "all").cost["rows"] == 180


def test_intervals_are_of_clusters_not_rows(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 1.0)
    by_input, by_row = (one(evaluate(given, examples, task, clusters_N=clusters, options=QUICK), "accuracy", "all") for clusters in (None, np.arange(120)))
    assert by_input.high - by_input.low > 1.4 * (by_row.high - by_row.low)


def test_differences_are_paired(examples: list[Example], task: Task, model: Model) -> None:
    good, weak = model(examples, 2.0, 1), model(examples, 0.0, 2, "weak")
    results = evaluate(good, examples, task, baselines={"weak": weak, "self": good}, options=QUICK)
    result = one(results, "macro_f1", "all")
    alone = one(evaluate(weak, examples, task, options=QUICK), "macro_f1", "all")
    assert result.paired["weak"].value == pytest.approx(result.value - alone.value)
    assert result.paired["weak"].low > 0
    assert (result.paired["self"].value, result.paired["self"].low, result.paired["self"].high) == (0, 0, 0)
    accuracy = one(results, "accuracy", "all")
    assert accuracy.cost["mcnemar_p:weak"] < 0.01
    assert accuracy.cost["mcnemar_p:self"] == 1
    assert one(results, "f1", "class:rat").paired["weak"].n == 40


def test_answers_in_another_order_are_aligned(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 1.0)
    order = np.random.Generator(np.random.PCG64(0)).permutation(120)
    shuffled = replace(given, ids=tuple(given.ids[i] for i in order), probs_NC=given.probs_NC[order], logits_NC=given.logits_NC[order])
    assert evaluate(given, examples, task, options=QUICK) == evaluate(shuffled, examples, task, options=QUICK)
    with pytest.raises(AssertionError, match="no answer for 1 of 121"):
        evaluate(given, [*examples, Example("new", "x", label="rat")], task, options=QUICK)


def test_slices_may_bring_their_own_weights(examples: list[Example], task: Task, model: Model) -> None:
    given, weights = model(examples, 1.0), np.arange(120.0)
    results = evaluate(given, examples, task, slices={"mine": weights, "none": np.zeros(120, bool)}, options=QUICK)
    assert one(results, "nll", "mine").value == pytest.approx(SCORERS["nll"](gold_of(examples, task).values, given, weights))
    assert not [result for result in results if result.slice == "none"]


def test_undefined_metrics_have_no_result(examples: list[Example], task: Task, model: Model) -> None:
    only = [replace(example, label="rat") for example in examples]
    results = evaluate(model(examples, 1.0), only, task, options=QUICK)
    assert {result.slice for result in results if result.slice.startswith("class:")} == {"class:rat"}
    assert "auc" not in {result.metric for result in results}
    assert "accuracy" in {result.metric for result in results}


def test_only_the_metrics_asked_for(examples: list[Example], task: Task, model: Model) -> None:
    results = evaluate(model(examples, 1.0), examples, task, options=replace(QUICK, metrics=("auc", "micro_f1")))
    assert {result.metric for result in results if not result.slice.startswith("class:")} == {"auc", "micro_f1"}
    with pytest.raises(UsageError, match="metric 'f1'"):
        evaluate(model(examples, 1.0), examples, task, options=replace(QUICK, metrics=("f1",)))


def test_answers_read_from_text(examples: list[Example], task: Task) -> None:
    texts = tuple(f" {example.label.upper()}\n" if row % 2 else "no idea" for row, example in enumerate(examples))
    given = Predictions("llm", tuple(example.id for example in examples), texts=texts)
    assert as_probabilities(given, task).probs_NC.sum() == 60
    results = evaluate(given, examples, task, options=QUICK)
    assert one(results, "accuracy", "all").value == pytest.approx(120 / 180)
    assert {"nll", "ece"}.isdisjoint(result.metric for result in results)
    many = as_probabilities(Predictions("llm", ("1",), texts=("rat; Clean",)), Task("classify", task.labels, many=True))
    assert many.probs_NC.tolist() == [[1, 0, 1]]


def test_other_kinds_of_answer() -> None:
    ids = tuple("0123456789")
    rows = [Example(i, f"q{i}", (Completion(f"answer {i}"),), label=float(i)) for i in ids]
    texts = evaluate(Predictions("m", ids, texts=tuple(f"answer {i}" for i in ids), nll_N=np.ones(10)), rows, Task("generate"), options=QUICK)
    assert {result.metric: result.value for result in texts if result.slice == "all"} == {"exact_match": 1, "rouge_l": 1, "chrf": 1, "nll": 1}
    numbers = evaluate(Predictions("m", ids, values_N=np.arange(10.0) + 1), rows, Task("regress"), options=QUICK)
    expected = {"mae": 1, "rmse": 1, "r2": pytest.approx(1 - 10 / 82.5), "spearman": 1}
    assert {result.metric: result.value for result in numbers if result.slice == "all"} == expected


def test_many_labels() -> None:
    task = Task("classify", ("a", "b"), many=True)
    rows = [Example(str(i), f"t{i}", label=(("a",), ("b",), ("a", "b"), ())[i % 4]) for i in range(40)]
    gold = gold_of(rows, task).values
    given = Predictions("m", tuple(str(i) for i in range(40)), probs_NC=np.clip(gold * 0.9, 0.05, 0.95))
    everything = Predictions("all-positive", given.ids, probs_NC=np.ones((40, 2)))
    results = evaluate(given, rows, task, baselines={"all-positive": everything}, options=QUICK)
    assert one(results, "exact_match", "all").value == 1
    assert one(results, "average_precision", "all").paired["all-positive"].value == pytest.approx(0.5)
    assert one(results, "precision", "class:a").paired["all-positive"].value == pytest.approx(0.5)
    assert "all-positive" not in one(results, "nll", "all").paired


def test_same_seed_same_numbers(examples: list[Example], task: Task, model: Model) -> None:
    given = model(examples, 1.0)
    assert evaluate(given, examples, task, options=QUICK) == evaluate(given, examples, task, options=QUICK)
    other = evaluate(given, examples, task, options=replace(QUICK, seed=1))
    assert one(other, "accuracy", "all").low != one(evaluate(given, examples, task, options=QUICK), "accuracy", "all").low


def test_slices_count_each_input_and_label_once() -> None:
    rows = [Example("0", "x", label="a"), Example("1", "x ", label="a"), Example("2", "x", label="b"), Example("3", "y", label="a", slice="all")]
    slices = standard_slices(rows, np.array([0, 0, 0, 1]), [0])
    assert slices["deduplicated"].tolist() == [1, 0, 1, 1]
    assert slices["novel"].tolist() == [0, 0, 0, 1]
    assert slices["slice:all"].tolist() == [False, False, False, True]
    assert slices["all"].all()
    assert "novel" not in standard_slices(rows, np.arange(4), None)


def test_drift_is_seen_in_quarters_of_the_rows_that_carry_a_time() -> None:
    days = [1_650_000_000.0 + 86_400 * (at % 8) for at in range(40)]
    rows = [Example(str(at), "x", label="a", time=time) for at, time in enumerate(days)]
    found = time_slices(rows)
    assert list(found) == ["from 2022-04-15", "from 2022-04-17", "from 2022-04-19", "from 2022-04-21"]
    assert np.stack(list(found.values())).sum(0).tolist() == [1] * 40  # each row in one
    assert {days[at] for at in np.flatnonzero(found["from 2022-04-15"])} == {days[0], days[1]}
    assert list(time_slices([replace(row, time=at % 2) for at, row in enumerate(rows)])) == ["from 0", "from 1"]


def test_without_times_there_is_no_drift_to_see() -> None:
    rows = [Example(str(at), "x", label="a", time=None if at % 3 else float(at)) for at in range(30)]
    assert time_slices(rows) == {}
    assert time_slices([replace(row, time=5.0) for row in rows]) == {}
