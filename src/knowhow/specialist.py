"""A finished specialist at work: answers for one text, a file, or an evaluation on other data, with the calibration that it was packaged with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from knowhow import package
from knowhow.data import fields
from knowhow.data.sources import open_source
from knowhow.errors import UsageError
from knowhow.evaluate import calibration
from knowhow.evaluate.gold import take_predictions
from knowhow.evaluate.labels import positive
from knowhow.evaluate.suite import Options, evaluate
from knowhow.files import append_jsonl, digest_file, read_json, read_jsonl, write_json
from knowhow.model import adapters, load
from knowhow.protocols import Progress
from knowhow.recipe import BaseSpec, FieldsSpec
from knowhow.stages import explain as evidence
from knowhow.stages.cases import writing
from knowhow.stages.common import answers
from knowhow.types import EvalResult, Example, Predictions, Task
from knowhow.workspace import find_run

CHUNK = 256
PEEK = 200


@dataclass(frozen=True, slots=True)
class Opened:
    """`fitted`: temperature, thresholds and abstention from validation; None for a model that knowhow did not package."""

    name: str
    folder: Path
    sha256: str
    loaded: load.Loaded
    task: Task
    spec: BaseSpec
    fitted: Mapping[str, Any] | None

    def answer(self, examples: Sequence[Example], progress: Progress | None = None) -> Predictions:
        """Calibrated answers."""
        given = answers(self.loaded, examples, self.task, self.spec, name=self.name, progress=progress)
        return calibration.apply(given, self.fitted, self.task) if self.fitted is not None and self.task.classes else given


def open_specialist(where: str, runs: Path) -> Opened:
    """A specialist by folder, by run, or any classifier's folder. Every packaged file is hashed again before it is opened."""
    folder = Path(where)
    if not folder.is_dir():
        folder = find_run(where, runs).path("package", "specialist")
    elif (folder / "run.json").is_file():
        folder = folder / "package" / "specialist"
    if not folder.is_dir():
        raise UsageError(f"the run {where} has no specialist yet", fix="finish it: knowhow build RECIPE --resume", where=str(folder))
    if not (folder / "knowhow.json").is_file():
        return _foreign(folder)
    manifest = package.read(folder)
    task = Task(manifest.task.kind, tuple(manifest.task.labels), manifest.task.many, manifest.task.metric, manifest.task.instruction)
    form = manifest.input.form
    head: Any = form if form == "channel" else "classifier" if task.classes else "lm" if task.kind == "generate" else "regressor"
    loaded = _adapter(folder, head, task) if (folder / "adapter_config.json").is_file() else _whole(folder, head, task)
    spec = BaseSpec(context=manifest.input.context, truncate=manifest.input.truncate)
    said = manifest.calibration
    kept = {"thresholds": said.thresholds, "abstention": said.abstention, "false_positives": said.false_positives}
    fitted = {"temperature": {"temperature": said.temperature}, **kept} if said.temperature else None
    return Opened(manifest.name, folder, manifest.digest, loaded, task, spec, fitted)


def _whole(folder: Path, head: Any, task: Task) -> load.Loaded:
    return load.load(str(folder), head=head, labels=task.labels if task.classes else (), many=task.many)


def _adapter(folder: Path, head: Any, task: Task) -> load.Loaded:
    """An adapter on the base that it names; load_adapter refuses any other weights."""
    named = read_json(folder / adapters.BASE_FILE)["source"]
    base = load.load(named, head=head, labels=task.labels if task.classes else (), many=task.many)
    return adapters.load_adapter(base, folder)


def _foreign(folder: Path) -> Opened:
    """A classifier that knowhow did not package: its own labels, no calibration."""
    loaded = load.load(str(folder), head="classifier")
    many = loaded.model.config.problem_type == "multi_label_classification"
    return Opened(folder.name, folder, loaded.ref.sha256, loaded, Task("classify", loaded.labels, many), BaseSpec(), None)


def ask(opened: Opened, text: str, pair: str | None = None) -> dict[str, Any]:
    """One answer: {answer, confidence, answered, probabilities} or {answer} for a text or number. Raises UsageError for a text without words."""
    if not text.strip():
        raise UsageError("an empty text", allowed="a text with at least one word")
    example = Example("0", text, pair=pair)
    return describe(opened, opened.answer([example]))[0]


def explain(opened: Opened, examples: Iterable[Example], progress: Progress) -> Iterator[dict[str, Any]]:
    """The lines that each answer rests on, one row per text and label given (or text written), tested by taking them away.

    Raises UsageError for tasks of numbers and of pairs."""
    kind = opened.task.kind
    if kind not in ("classify", "generate"):
        raise UsageError(f"evidence for a task of kind {kind}", allowed="classify, generate")
    asked = evidence.asked_of(opened.loaded, opened.task, opened.spec, opened.fitted) if kind == "classify" else None
    for done, example in enumerate(examples):
        progress("explain", done, 0)
        if not isinstance(example.prompt, str) or not example.prompt.strip():
            raise UsageError(f"the row {example.id} holds no plain text", allowed="a text with at least two words")
        if asked is not None:
            yield from evidence.explained(asked, example.prompt, opened.task.labels, identity=example.id)
        elif said := (opened.answer([example]).texts or ("",))[0]:
            told = writing(opened.loaded, opened.task, opened.spec, [said])
            if told.scorer()([example.prompt], 0)[0] <= 0:
                raise UsageError(f"the answer to row {example.id} is not what its own tokens give again", allowed="answers by greedy decoding")
            yield from evidence.explained_writing(told, example.prompt, identity=example.id)


def describe(opened: Opened, given: Predictions) -> list[dict[str, Any]]:
    """Answers as JSON. `answered`: sure enough at the risk that was asked for; below it the label is a guess."""
    task = opened.task
    if given.texts is not None:
        return [{"answer": text} for text in given.texts]
    if not task.classes:
        return [{"answer": round(float(value), 6)} for value in given.values_N]
    sure_N = calibration.confidence_of(given, task)
    kept_N = calibration.answered(given, opened.fitted, task) if opened.fitted is not None else np.ones(len(sure_N), bool)
    rows = []
    for at, probs_C in enumerate(given.probs_NC):
        chosen = positive(take_predictions(given, np.array([at])))[0] if task.many else None
        answer = [label for label, yes in zip(task.labels, chosen) if yes] if task.many else task.labels[int(probs_C.argmax())]
        probabilities = {label: round(float(p), 6) for label, p in zip(task.labels, probs_C)}
        rows.append({"answer": answer, "confidence": round(float(sure_N[at]), 6), "answered": bool(kept_N[at]), "probabilities": probabilities})
    return rows


def read_examples(where: str, task: Task, columns: FieldsSpec, *, labelled: bool) -> Iterator[Example]:
    """Rows of a file as examples of this task; rows without a label where none is needed."""
    opened = open_source(where)
    peek = list(itertools.islice(opened.rows(), PEEK))
    found = fields.recognise(peek, fields.FieldMap(**columns.model_dump()))
    return fields.examples(opened.rows(), found, task, origin=Path(where).name, need_label=labelled)


def predict_file(opened: Opened, where: str, out: Path, *, columns: FieldsSpec, progress: Progress) -> int:
    """Answers for every row of a file, as JSONL in `out`; a call that was stopped goes on at the last whole chunk. Returns the number of rows.

    Raises UsageError when `out` holds answers of another model or file."""
    state = out.with_name(out.name + ".state.json")
    about = {"model": opened.sha256, "file": digest_file(Path(where)) if Path(where).is_file() else where}
    done = 0
    if state.is_file():
        if read_json(state) != about:
            raise UsageError(f"{out.name} holds the answers of another model or file", fix="give another --out, or remove it", where=str(out))
        done = sum(1 for _ in read_jsonl(out))
    elif out.exists():
        raise UsageError(f"{out.name} is there already", fix="give another --out, or remove it", where=str(out))
    # Every row is read once before anything is written: a bad one at the end costs no answers.
    total = sum(1 for _ in read_examples(where, opened.task, columns, labelled=False)) if Path(where).is_file() else 0
    write_json(state, about)
    rows = enumerate(itertools.islice(read_examples(where, opened.task, columns, labelled=False), done, None), start=done)
    while chunk := list(itertools.islice(rows, CHUNK)):
        for (number, example), answer in zip(chunk, describe(opened, opened.answer([example for _, example in chunk]))):
            append_jsonl(out, {"row": number, "id": example.id, **answer})
        done += len(chunk)
        progress("predict", done, total)
    state.unlink()
    return done


def evaluate_file(opened: Opened, where: str, *, columns: FieldsSpec, draws: int, progress: Progress) -> list[EvalResult]:
    """Every metric that fits, with intervals, on labelled rows that the specialist was not built from."""
    examples = list(read_examples(where, opened.task, columns, labelled=True))
    if not examples:
        raise UsageError("no rows", where=where)
    return evaluate(opened.answer(examples, progress), examples, opened.task, options=Options(draws=draws, task=opened.name))
