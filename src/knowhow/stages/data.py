"""Stage data: read or generate, find the labels, split by duplicate cluster, plant canaries, audit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from knowhow.data import dedupe, fields, synthesize, teacher
from knowhow.data.audit import audit
from knowhow.data.chat import prompt_text
from knowhow.data.sources import open_source
from knowhow.data.split import split
from knowhow.data.store import Examples, write
from knowhow.domains import find_domain
from knowhow.errors import UsageError
from knowhow.evaluate.baselines import fitting
from knowhow.evaluate.gold import answer_kind
from knowhow.evaluate.scorers import named, primary
from knowhow.files import write_json
from knowhow.model import infer, load
from knowhow.recipe import DataSpec, Recipe
from knowhow.stages import remember
from knowhow.stages.common import PARTS, Build, metric_of, require_rows, source, write_task
from knowhow.types import Example, Task

PEEK = 200


def work(build: Build, folder: Path) -> None:
    """Leaves train/valid/test.arrow, task.json and audit.json."""
    recipe = build.recipe
    asked = Task(recipe.task.kind, tuple(recipe.task.labels or ()), recipe.task.many, "", recipe.task.instruction)
    found: dict[str, Sequence[Example]] = {}
    for part in PARTS:
        rows = read_part(recipe.data, part, asked, build.root, recipe.seed)
        if rows is not None:
            build.progress(f"reading {part}", 0, 0)
            write(folder / f"{part}.arrow", rows)
            found[part] = Examples(folder / f"{part}.arrow")
    task = resolve_task(recipe, asked, found["train"])
    parts = _split(build, found, task, folder)
    write_task(folder / "task.json", task)
    for part, rows in parts.items():
        require_rows(rows, part)
    _check_labels(parts, task)
    _check_answers(parts, task)
    if recipe.data.audit:
        tokenizer = load.load(str(build.start_from or source(recipe, build.root)), head="body", revision=recipe.base.revision)
        report = audit(
            parts,
            task,
            tokenizer=lambda texts: infer.pieces(tokenizer.tokenizer, texts),
            context=min(tokenizer.context, recipe.base.context or tokenizer.context),
            seed=recipe.seed,
            progress=build.progress,
        )
        write_json(folder / "audit.json", report)


def read_part(spec: DataSpec, part: str, task: Task, root: Path, seed: int) -> Iterator[Example] | None:
    """Rows of one part as the recipe names them; None when it must come from a split."""
    if spec.generate is not None:
        made = spec.generate
        start = made.seed if made.seed is not None else 1_000_000 + 16 * seed
        count = {"train": made.train, "valid": made.valid, "test": made.test}[part]
        rows = find_domain(made.domain).generate(made.options, seed=start + PARTS.index(part), n=count)
        return _limited(rows, spec, part)
    where = {"train": spec.train, "valid": spec.valid, "test": spec.test}[part]
    if where is None:
        return None
    if spec.domain is not None:
        return _limited(find_domain(spec.domain).read(root / where, {**spec.options, "split": part}), spec, part)
    opened = open_source(where if _is_hub(where, root) else root / where, encoding=spec.encoding)
    peek = list(itertools.islice(opened.rows(), PEEK))
    given = fields.FieldMap(**spec.fields.model_dump())
    return _limited(fields.examples(opened.rows(), fields.recognise(peek, given), task, origin=part, need_label=True), spec, part)


def resolve_task(recipe: Recipe, asked: Task, train: Sequence[Example]) -> Task:
    """Labels from the training rows where the recipe names none; the deciding metric."""
    labels = asked.labels
    if not labels and asked.kind in ("classify", "score") and not _numbers(train):
        labels = fields.infer_labels(train)
    if asked.kind == "classify" and len(labels) < (1 if asked.many else 2):
        got, fix = f"one class only ({', '.join(labels) or 'no label'})", "check data.fields.label, or use task.kind: generate"
        raise UsageError(got, allowed="two classes or more", fix=fix, where="task.labels")
    bare = Task(asked.kind, labels, asked.many, "", asked.instruction)
    task = Task(asked.kind, labels, asked.many, metric_of(recipe, answer_kind(bare)), asked.instruction)
    primary(task)
    for name in recipe.evaluate.metrics or ():
        named(name, answer_kind(task))
    fitting(recipe.evaluate.baselines or (), answer_kind(task))
    if not task.classes and any(phase.teacher for phase in recipe.adapt):
        raise UsageError(f"a teacher where the task is to {task.kind}", allowed="tasks with labels", fix="leave `teacher` out", where="adapt")
    return task


def _numbers(rows: Sequence[Example]) -> bool:
    return all(isinstance(example.label, float | int) for example in itertools.islice(rows, PEEK))


def _split(build: Build, found: dict[str, Sequence[Example]], task: Task, folder: Path) -> dict[str, Examples]:
    """Missing parts are cut from train; then rows are added (synthesis, canaries) and everything is on disk once."""
    recipe, train = build.recipe, found["train"]
    missing = [part for part in ("valid", "test") if part not in found]
    chosen = {"train": np.arange(len(train))}
    if missing:
        build.progress("near duplicates", 0, 0)
        clusters = dedupe.clusters((prompt_text(example, task) for example in train), seed=recipe.seed)
        spec = recipe.data.split
        valid, test = (share if part in missing else 0.0 for part, share in (("valid", spec.valid), ("test", spec.test)))
        chosen = split(train, by=spec.by, valid=valid, test=test, seed=recipe.seed, clusters=clusters)
    kept = [train[int(i)] for i in chosen["train"]] if missing or recipe.data.canaries or recipe.data.synthesize else None
    for part in missing:
        write(folder / f"{part}.arrow", [train[int(i)] for i in chosen[part]])
    if kept is not None:
        others = {part: Examples(folder / f"{part}.arrow") for part in ("valid", "test")}
        kept += _synthesized(build, kept, others, task, folder)
        kept += remember.canaries(recipe, task).planted if recipe.data.canaries else ()
        write(folder / "train.arrow", kept)
    return {part: Examples(folder / f"{part}.arrow") for part in PARTS}


def _synthesized(build: Build, train: Sequence[Example], others: dict[str, Examples], task: Task, folder: Path) -> list[Example]:
    """Rows from templates and from a teacher, where the recipe asks for them; the counts stay beside the data."""
    spec, seed = build.recipe.data.synthesize, build.recipe.seed
    if spec is None:
        return []
    held_out, made, counts = [*others["valid"], *others["test"]], [], {}
    if spec.templates and spec.label not in task.labels:
        allowed = ", ".join(task.labels) or "a task with labels"
        raise UsageError(f"templates with the label {spec.label!r}", allowed=allowed, fix="name one of the task's labels", where="data.synthesize.label")
    if spec.templates:
        found = synthesize.from_templates(spec.templates, spec.slots, label=spec.label, rows=spec.rows, seed=seed, train=train, held_out=held_out)
        made, counts["templates"] = list(found.examples), found.counts
    if spec.teacher_url is not None:
        ask = teacher.Teacher(spec.teacher_url, spec.teacher_model or "", spec.teacher_key_env)
        found = synthesize.from_teacher(ask, task, rows=spec.rows, seed=seed, train=[*train, *made], held_out=held_out, progress=build.progress)
        made, counts["teacher"] = [*made, *found.examples], found.counts
    write_json(folder / "synthesis.json", counts)
    return made


def _check_answers(parts: dict[str, Examples], task: Task) -> None:
    """A text to generate needs an answer in every row, to learn from or to be held against."""
    if task.kind != "generate":
        return
    for part, rows in parts.items():
        bare = next((example for example in rows if not any(c.role in ("target", "chosen") for c in example.completions)), None)
        if bare is not None:
            allowed = "an answer in every row: a column such as completion, output, response, answer, or messages that end with the assistant's"
            raise UsageError(f"row {bare.id} has no answer", allowed=allowed, fix="name the column under data.fields.completion", where=f"data.{part}")


def _check_labels(parts: dict[str, Examples], task: Task) -> None:
    """A class that training never shows cannot be learnt: say so before anything is trained."""
    if not task.labels:
        return
    seen = {label for example in parts["train"] for label in ((example.label,) if isinstance(example.label, str) else example.label or ())}
    absent = [label for label in task.labels if label not in seen]
    if absent:
        raise UsageError(f"no training row has the label {', '.join(absent[:5])}", fix="remove it from task.labels, or add rows for it", where="task.labels")
    for part in ("valid", "test"):
        here = {label for example in parts[part] for label in ((example.label,) if isinstance(example.label, str) else example.label or ())}
        strange = sorted(here - set(task.labels))
        if strange:
            fix = "add training rows for it, or drop these rows"
            raise UsageError(f"the label {strange[0]!r} is only in {part}", allowed=", ".join(task.labels), fix=fix, where=f"data.{part}")


def _limited(rows: Iterator[Example], spec: DataSpec, part: str) -> Iterator[Example]:
    return itertools.islice(rows, spec.limit) if spec.limit and part == "train" else iter(rows)


def _is_hub(where: str, root: Path) -> bool:
    return where.count("/") == 1 and not where.startswith((".", "/", "~")) and not (root / where).exists()
