"""Looks that take longer than a build should without being asked: the circuit of the answers, features of sites, training rows behind an answer.

Asked of a finished run by `knowhow look RUN WHAT`. Each gives one record that JSON can hold.
Shape letters: N answers or training rows, B pairs, C labels, M answers asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from knowhow.data.batch import Rows, collate
from knowhow.errors import UsageError
from knowhow.explain.asking import Asked
from knowhow.explain.circuits.curves import minimality
from knowhow.explain.circuits.find import Pairs, Search, find_circuit
from knowhow.explain.circuits.run import prepare
from knowhow.explain.influence.datamodel import drivers
from knowhow.explain.influence.row_losses import of_labels
from knowhow.explain.influence.scores import Influence, Sides, tfidf, tracin
from knowhow.files import read_json
from knowhow.loop.optim import schedule
from knowhow.stages.cases import Case, cases
from knowhow.stages.common import Build
from knowhow.stages.dictionaries import features
from knowhow.stages.explain import asked_by
from knowhow.stages.methods import groups_of
from knowhow.stages.phase import Phase, phases
from knowhow.types import Batch

SEARCH = Search(steps=3, draws=10, curves=2)
SHOWN, SNIPPET, EDGES = 5, 400, 40


def circuit(build: Build, folder: Path) -> dict[str, Any]:
    """The smallest circuit that keeps right answers: between texts and their twins where there are such of equal length, else against means.

    Edges are scored on one half of the pairs and the circuit is chosen and measured on the other. Raises UsageError for fewer than 4 answers."""
    asked = _one_pass(build)
    found = list(cases(asked, build, "test", 4 * build.recipe.explain.pairs))
    paired = [(case, row, twin) for case in found for row, twin in [_paired(asked, case)] if twin is not None]
    twins = len(paired) >= 4
    chosen = (paired if twins else [(case, asked.rows([case.parts.text])[0], None) for case in found])[: build.recipe.explain.pairs]
    if len(chosen) < 4:
        raise UsageError(f"{len(chosen)} right answers", allowed="at least 4 to seek a circuit on")
    halves = []
    groups = groups_of([case for case, _, _ in chosen])
    if len(set(groups.tolist())) < 2:
        raise UsageError("right answers of one group alone", allowed="at least two groups: edges are scored on some and measured on others")
    for first in (0, 1):
        half = [one for one, group in zip(chosen, groups.tolist(), strict=True) if group % 2 == first]
        base = asked.inputs([row for _, row, _ in half])
        source = asked.inputs([twin for _, _, twin in half if twin is not None]) if twins else base
        halves.append(Pairs(base, source, asked.metric([case.label for case, _, _ in half]), groups_of([case for case, _, _ in half]).tolist()))
    search = replace(SEARCH, instead="source" if twins else "mean", seed=build.recipe.seed)
    one, other = halves
    sought = find_circuit(asked.loaded.model, one.base, one.source, one.metric, search=search, held=other, progress=build.progress)
    needed = minimality(
        prepare(asked.loaded.model, other.base, other.source, instead=search.instead), other.metric, sought.circuit,
        most=EDGES, draws=EDGES, seed=search.seed, progress=build.progress,
    )  # fmt: skip
    told = {"pairs": [len(half.base["input_ids"]) for half in halves], "against": "their twins" if twins else "means", "level": search.level}
    return told | sought.row() | {"minimality": needed.row()}


def influence(build: Build, folder: Path) -> dict[str, Any]:
    """The training rows that drove the first right answers: TracIn over the kept weights of the last phase, or at its last weights where none were kept.

    What retraining would show is not asked here (bench/data_attribution.py asks it of a tiny twin). Raises UsageError for language-model objectives."""
    spec, task = build.recipe.explain, build.task
    last = phases(build)[-1]
    phase = replace(last, spec=last.spec.model_copy(update={"teacher": None}))  # a row's own label, not what a teacher made of it
    if phase.spec.objective != "classify" or not task.classes:
        raise UsageError(f"training rows behind answers of the objective {phase.spec.objective}", allowed="classify")
    loaded = phase.fresh()
    loaded.model.eval()
    train, test = phase.rows("train"), phase.rows("test")
    asked = asked_by(build)
    wanted = list(cases(asked, build, "test", spec.answers))
    if not wanted:
        raise UsageError("no right answers among the test rows", allowed="at least one to ask about")
    ids = {identity: at for at, identity in enumerate(test.ids)}
    at_M = np.array([ids[case.example.id] for case in wanted])
    drawn_N = np.sort(np.random.default_rng(build.recipe.seed).permutation(len(train))[: spec.rows])
    asking = [{**rows, "answer": case.label} for rows, case in zip(_batches(test, at_M, loaded.tokenizer.pad_token_id, 1), wanted, strict=True)]
    sides = Sides(_batches(train, drawn_N, loaded.tokenizer.pad_token_id), asking, of_labels, _of_answer)
    kept = _kept(phase)
    if not kept and phase.spec.method == "lora":
        fix = "build it with adapt.N.keep, so that its weights are kept on the way"
        raise UsageError("weights that are not those that were trained (an adapter merged into its base)", fix=fix)
    weights = kept or [(phase.folder / "model" / "model.safetensors", 1.0)]
    found = tracin(loaded.model, sides, [(load_file(path), lr) for path, lr in weights], progress=build.progress)
    texts = {example.id: example for example in build.rows("train")}
    names = [str(train.ids[at]) for at in drawn_N]
    likeness_NM = tfidf([str(texts[name].prompt) for name in names], [case.parts.text for case in wanted])
    answers = [_driven(case, task.labels, found, likeness_NM, at, names, texts) for at, case in enumerate(wanted)]
    return {
        "method": f"TracIn over {len(kept)} checkpoints" if kept else "Gradients at the last weights",
        "rows": len(drawn_N), "of": len(train), "answers": answers, "self": _strange(found, names, texts),
    }  # fmt: skip


def _of_answer(model: torch.nn.Module, rows: Mapping[str, Any]) -> torch.Tensor:
    """The loss of one row's one answer, in nats: of many labels that label's alone."""
    logits_BC = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits.float()
    if rows["labels"].ndim == 2:
        return torch.nn.functional.softplus(-logits_BC[:, rows["answer"]])
    return torch.nn.functional.cross_entropy(logits_BC, rows["labels"], reduction="none")


def _driven(
    case: Case, labels: Sequence[str], found: Influence, likeness_NM: np.ndarray, at: int, names: Sequence[str], texts: Mapping[str, Any]
) -> dict[str, Any]:
    """One answer with the rows that helped and hurt it most, and how many of them plain likeness of words would have named too."""
    driven = drivers(found.scores[:, at], k=SHOWN)
    alike = set(np.argsort(-likeness_NM[:, at])[:SHOWN].tolist())

    told = [[_row(names[one.row], one.score, texts) for one in side] for side in (driven.helpful, driven.harmful)]
    return {
        "id": case.example.id, "label": labels[case.label], "text": case.parts.text, "helped": told[0], "hurt": told[1],
        "also_alike": sum(one.row in alike for one in driven.helpful),
    }  # fmt: skip


def _strange(found: Influence, names: Sequence[str], texts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with the largest gradients of their own: hard and rare ones, and wrong labels."""
    order = np.argsort(-found.own)[: 2 * SHOWN]
    return [_row(names[at], float(found.own[at]), texts) for at in order]


def _row(name: str, score: float, texts: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "score": score, "label": _label(texts[name]), "text": str(texts[name].prompt)[:SNIPPET]}


def _label(example: Any) -> str:
    return ", ".join(map(str, example.label)) if isinstance(example.label, tuple) else str(example.label)


def _batches(rows: Rows, chosen: np.ndarray, pad: int, size: int = 8) -> list[dict[str, Any]]:
    return [_as_rows(collate(rows, part, pad=pad, language_model=False)) for part in np.split(chosen, range(size, len(chosen), size))]


def _as_rows(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT.long(), "labels": batch.labels}


def _kept(phase: Phase) -> list[tuple[Path, float]]:
    """Weights kept on the way, each with the sum of the learning rates of the steps that it stands for: those since the one before."""
    done = read_json(phase.folder / "done.json")
    factor = schedule(phase.spec.schedule, done["steps"], warmup=phase.spec.warmup)
    steps = sorted(int(path.stem) for path in (phase.folder / "kept").glob("*.safetensors"))
    sums = [done["lr"] * sum(factor(step) for step in range(before + 1, upto + 1)) for before, upto in zip([0, *steps], steps)]
    return [(phase.folder / "kept" / f"{step}.safetensors", rate) for step, rate in zip(steps, sums, strict=True)]


def _one_pass(build: Build) -> Asked:
    if not build.task.classes:
        raise UsageError(f"a circuit of a task of kind {build.task.kind}", allowed="classify")
    asked = asked_by(build)
    if asked.loaded.head == "channel":
        raise UsageError("a circuit of a channel, whose answer compares several passes", allowed="a classifier")
    return asked


def _paired(asked: Asked, case: Case) -> tuple[list[int], list[int] | None]:
    """Tokens of a text and of its twin, where both have as many."""
    texts = [case.parts.text, *([case.twin] if case.twin is not None else [])]
    rows = asked.rows(texts)
    return rows[0], rows[1] if len(rows) == 2 and len(rows[0]) == len(rows[1]) else None


LOOKS: Mapping[str, Callable[[Build, Path], dict[str, Any]]] = {"circuit": circuit, "features": features, "influence": influence}
