"""The features look: dictionaries learned on a specialist's sites, what they keep beside neurons, which features tell labels and what taking them out does,
and which of them the base does not use.

Shape letters: N rows, C labels, R rows of a part, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from knowhow.adapt.rows import class_rows
from knowhow.data.batch import Rows
from knowhow.errors import UsageError
from knowhow.explain.features import learn as learning
from knowhow.explain.features.dictionary import Dictionary
from knowhow.explain.features.effects import Effect, ablate, compare
from knowhow.explain.features.examples import associate, examples, features_of, neurons_beside, survey
from knowhow.explain.features.fidelity import Kept, fidelity
from knowhow.explain.features.splice import label_logit
from knowhow.files import digest
from knowhow.model.load import Loaded, load
from knowhow.model.sites import body
from knowhow.stages.common import Build, encode
from knowhow.stages.evaluate import specialist

HELD, STRONGEST, CHANGED, WINDOW = 160, 3, 8, 6
"""Test rows that are measured on, the most examples of a feature, features named as gained, and tokens round an example's peak."""


def features(build: Build, folder: Path) -> dict[str, Any]:
    """Learn on training rows, measure on test rows. Goes on where it was stopped (`folder` holds the dictionaries and their checkpoints).

    Raises UsageError for tasks without labels and for a channel."""
    spec, task, loaded = build.recipe.explain, build.task, specialist(build)
    if not task.classes or loaded.head == "channel":
        raise UsageError(f"features of a {loaded.head} for a task of kind {task.kind}", allowed="a classifier")
    train, test = (_rows(build, loaded, part) for part in ("train", "test"))
    depth = body(loaded.model).depth
    sites = [site.replace("{middle}", str(depth // 2)) for site in spec.sites]
    course = learning.Course(features=spec.features, steps=spec.feature_steps, seed=build.recipe.seed)
    # other settings are other dictionaries: each has a folder of its own, so that none is lost or mixed up
    own = folder / digest([asdict(course), sites])[:8]
    learned = learning.learn(loaded, train, sites, own, course, build.progress)
    base = _as_base(build, loaded)
    told = [_told(build, loaded, one, test, base) for one in learned.dictionaries.values()]
    return {"steps": learned.steps, "tokens": learned.tokens, "features": spec.features, "dictionaries": told}


def _told(build: Build, loaded: Loaded, dictionary: Dictionary, test: Rows, base: Loaded | None) -> dict[str, Any]:
    """One dictionary: what it keeps, its features that go with labels, and those that the base does not use."""
    seed, task, name = build.recipe.seed, build.task, dictionary.form.name
    kept = fidelity(loaded, dictionary, test, seed=seed, progress=build.progress)
    basis = features_of(dictionary)
    found = survey(loaded, basis, test, k=STRONGEST, peaks=True, progress=build.progress)
    neurons = survey(loaded, neurons_beside(loaded, dictionary), test, k=1, peaks=True, progress=build.progress)
    assert found.peak_RU is not None
    assert neurons.peak_RU is not None
    labels_RC = test.labels if task.many else np.eye(len(task.labels))[test.labels]
    told = associate(found.peak_RU, neurons.peak_RU, labels_RC, task.labels, test, seed=seed)
    shown = examples(loaded, basis, test, found, sorted({one.unit for one in told}), window=WINDOW)
    strongest = []
    for one in told:
        label = task.labels.index(one.label)
        (effect,) = ablate(loaded, dictionary, test, [one.unit], label_logit(label), seed=seed, progress=build.progress)
        peak = shown[one.unit][0].tokens if shown[one.unit] else ()
        strongest.append(
            {
                "feature": one.unit, "label": one.label, "auc": one.auc.value, "neuron_auc": one.neuron_auc.value, "lead": asdict(one.lead),
                "p": one.p_value, **_taken_out(effect), "example": loaded.tokenizer.decode(list(peak)),
            }
        )  # fmt: skip
    record = {"name": name, "dead": kept.dead, "tokens": kept.tokens, "kept": [_kept(way) for way in (kept.dictionary, *kept.baselines)]}
    return record | {"strongest": strongest, "against_base": _compared(base, loaded, dictionary, test, seed)}


def _taken_out(effect: Effect) -> dict[str, Any]:
    """How strongly the label's logit hangs on the feature, beside features of like density: supported where the whole interval is above theirs."""
    beyond = effect.beyond
    said = "supported" if beyond.low > 0 else "not supported"
    return {
        "effect": effect.strength.value,
        "control": effect.strength.value - beyond.value,
        "beyond": asdict(beyond),
        "change": asdict(effect.change),
        "verdict": said,
    }


def _compared(base: Loaded | None, loaded: Loaded, dictionary: Dictionary, test: Rows, seed: int) -> dict[str, Any] | None:
    """Base and specialist through the specialist's dictionary; None where the base is of another shape or vocabulary."""
    if base is None:
        return None
    found = compare(base, loaded, dictionary, test, seed=seed)
    return {
        "changed": len(found.changed), "gained": list(found.gained[:CHANGED]), "gained_all": len(found.gained),
        "unexplained": [asdict(one) for one in found.unexplained],
    }  # fmt: skip


def _as_base(build: Build, loaded: Loaded) -> Loaded | None:
    base = load(build.base, revision=build.recipe.base.revision, seed=build.recipe.seed)
    same = [model.model.get_input_embeddings().weight.shape for model in (base, loaded)]
    return base if same[0] == same[1] else None


def _rows(build: Build, loaded: Loaded, part: str) -> Rows:
    """Rows with labels; of the test part the first HELD, twins together."""
    given = build.rows(part)
    chosen: Sequence[Any] = given if part == "train" else [given[at] for at in range(min(HELD, len(given)))]
    return class_rows(chosen, build.task, encode(loaded, chosen, build.task, build.recipe.base), weights="rows", together=True)


def _kept(way: Kept) -> dict[str, Any]:
    return {"name": way.name, "active": way.active, "unexplained": asdict(way.unexplained), "recovered": asdict(way.recovered), "cost": asdict(way.cost)}
