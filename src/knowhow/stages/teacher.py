"""Classical baselines as teachers: what they say of training rows that they never saw. Shape letters: N rows, C classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from knowhow.data import dedupe
from knowhow.data.batch import Rows
from knowhow.data.chat import prompt_text
from knowhow.data.split import units
from knowhow.evaluate import baselines
from knowhow.files import write_atomic
from knowhow.recipe import TeacherSpec
from knowhow.stages.common import Build


def taught(build: Build, spec: TeacherSpec, rows: Rows, folder: Path) -> Rows:
    """The rows with labels NC that are partly the teacher's: (1 − share) · own + share · teacher's probabilities (Hinton et al., 2015, at temperature 1)."""
    path = folder / "teacher.safetensors"
    if not path.is_file():
        write_atomic(path, save({"probs_NC": out_of_fold(build, spec)}))
    teacher_NC = load_file(path)["probs_NC"]
    own_NC = rows.labels if rows.labels.ndim == 2 else np.eye(teacher_NC.shape[1], dtype=np.float32)[rows.labels]
    return replace(rows, labels=((1 - spec.share) * own_NC + spec.share * teacher_NC).astype(np.float32))


def out_of_fold(build: Build, spec: TeacherSpec) -> np.ndarray:
    """Mean probabilities NC of the baselines, each row by those that were fitted without its fold. Groups and near duplicates are not parted."""
    task, train, seed = build.task, build.rows("train"), build.recipe.seed
    every, valid = baselines.rows_of(train, task), baselines.rows_of(build.rows("valid"), task)
    clusters_N = dedupe.clusters((prompt_text(example, task) for example in train), seed=seed)
    fold_N = folds([example.group for example in train], clusters_N, spec.folds, seed)
    probs_NC = np.zeros((len(train), len(task.labels)), np.float32)
    for fold in range(spec.folds):
        build.progress("teacher, fold", fold, spec.folds)
        known, held = _chosen(every, fold_N != fold), _chosen(every, fold_N == fold)
        fitted = baselines.fit_classical(known, valid, task, seed=seed, names=spec.baselines)
        probs_NC[fold_N == fold] = np.mean([answers(held.texts) for answers in fitted.values()], axis=0)
    build.progress("teacher, fold", spec.folds, spec.folds)
    return probs_NC


def folds(groups: Sequence[str | None], clusters_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold N of each row, by chance; rows that must not be parted share theirs."""
    unit_N = units(groups, clusters_N, len(groups))
    random = np.random.Generator(np.random.PCG64([seed, count]))
    return random.integers(0, count, unit_N.max() + 1)[unit_N]


def _chosen(rows: baselines.Rows, mask_N: np.ndarray) -> baselines.Rows:
    return baselines.Rows(tuple(itertools.compress(rows.texts, mask_N)), rows.gold[mask_N], rows.weights_N[mask_N])
