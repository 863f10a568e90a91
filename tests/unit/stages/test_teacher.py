"""Baselines as teachers: nobody is taught by a model that saw the row, or a near copy of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knowhow.adapt.rows import class_weights
from knowhow.data.batch import rows
from knowhow.recipe import PhaseSpec, TeacherSpec
from knowhow.stages import teacher


def test_rows_that_belong_together_share_a_fold_and_folds_are_alike_in_size() -> None:
    groups = [f"g{row // 3}" for row in range(3000)]
    clusters_N = np.arange(3000)
    clusters_N[2999] = clusters_N[0]  # a near copy in another group
    fold_N = teacher.folds(groups, clusters_N, 5, 0)
    assert (fold_N.reshape(-1, 3) == fold_N[::3, None]).all()
    assert fold_N[2999] == fold_N[0]
    assert np.bincount(fold_N, minlength=5).min() > 450
    assert (fold_N == teacher.folds(groups, clusters_N, 5, 0)).all()
    assert (fold_N != teacher.folds(groups, clusters_N, 5, 1)).any()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(np.array([0, 1]), [[0.75, 0.25], [0.1, 0.9]]), (np.array([[1, 1], [0, 1]], np.float32), [[0.75, 0.75], [0.1, 0.9]])],
)
def test_a_target_is_partly_the_row_s_own_label(tmp_path, monkeypatch: pytest.MonkeyPatch, labels: np.ndarray, expected: list[list[float]]) -> None:
    asked = []
    monkeypatch.setattr(teacher, "out_of_fold", lambda build, spec: asked.append(1) or np.array([[0.5, 0.5], [0.2, 0.8]], np.float32))
    made = rows([[5, 6], [7]], ["a", "b"], labels=labels, weights=np.ones(2))
    for _ in range(2):  # the second time from the file: a build that goes on asks nobody again
        soft = teacher.taught(None, TeacherSpec(share=0.5), made, tmp_path / "phase")  # type: ignore[arg-type]
        np.testing.assert_allclose(soft.labels, expected, atol=1e-6)
    assert asked == [1]
    weighed_C = class_weights(soft.labels, soft.weights, 2, "balanced") * torch.tensor(soft.weights @ soft.labels).float()  # type: ignore[operator]
    assert torch.allclose(weighed_C, weighed_C.mean(), atol=1e-5)  # every class counts the same


@pytest.mark.parametrize("key", [{"teacher": {}}, {"replication": 0.5}])
def test_a_language_model_has_no_such_teacher(key: dict) -> None:
    with pytest.raises(ValueError, match="objective classify"):
        PhaseSpec(objective="lm", **key)
