"""Classical baselines as teachers: what they say of training rows that they never saw. Shape letters: N rows, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from knowhow.data import dedupe
from knowhow.data.batch import Rows
from knowhow.data.chat import prompt_text
from knowhow.data.split import units
from knowhow.errors import UsageError
from knowhow.evaluate import baselines
from knowhow.files import writing
from knowhow.recipe import TeacherSpec
from knowhow.stages.common import Build


def taught(build: Build, spec: TeacherSpec, rows: Rows, folder: Path) -> Rows:
    """The rows with labels NC that are partly the teacher's: (1 − share) · own + share · teacher's probabilities (Hinton et al., 2015, at temperature 1)."""
    path = folder / "teacher.safetensors"
    if not path.is_file():
        answers_NC = out_of_fold(build, spec)
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"probs_NC": answers_NC}, path)
    teacher_NC = load_file(path)["probs_NC"]
    own_NC = rows.labels if rows.labels.ndim == 2 else np.eye(teacher_NC.shape[1], dtype=np.float32)[rows.labels]
    return replace(rows, labels=((1 - spec.share) * own_NC + spec.share * teacher_NC).astype(np.float32))


def out_of_fold(build: Build, spec: TeacherSpec) -> np.ndarray:
    """Mean probabilities NC of the baselines, each row by those that were fitted without its fold. Groups and near duplicates are not parted."""
    task, train, seed = build.task, build.rows("train"), build.recipe.seed
    if not task.classes:
        raise UsageError(f"a teacher where the task is to {task.kind}", allowed="tasks with labels", fix="leave `teacher` out", where="adapt")
    valid = baselines.rows_of(build.rows("valid"), task)
    clusters_N = dedupe.clusters((prompt_text(example, task) for example in train), seed=seed)
    fold_N = folds([example.group for example in train], clusters_N, spec.folds, seed)
    probs_NC = np.zeros((len(train), len(task.labels)), np.float32)
    for fold in range(spec.folds):
        build.progress("teacher, fold", fold, spec.folds)
        held = np.flatnonzero(fold_N == fold)
        known = baselines.rows_of([train[int(row)] for row in np.flatnonzero(fold_N != fold)], task)
        fitted = baselines.fit_classical(known, valid, task, seed=seed, names=spec.baselines)
        asked = [train[int(row)] for row in held]
        probs_NC[held] = np.mean([baselines.answers(name, model, asked, task).probs_NC for name, model in fitted.items()], axis=0)
    build.progress("teacher, fold", spec.folds, spec.folds)
    return probs_NC


def folds(groups: Sequence[str | None], clusters_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold N of each row, by chance; rows that must not be parted share theirs."""
    unit_N = units(groups, clusters_N, len(groups))
    random = np.random.Generator(np.random.PCG64([seed, count]))
    return random.integers(0, count, unit_N.max() + 1)[unit_N]
