"""Who watches a run that is studied, and what is written down: rows of all observers at log-spaced steps, and weights at some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from knowhow.data.batch import Rows, by_length, collate
from knowhow.files import append_jsonl, read_jsonl
from knowhow.loop import checkpoint
from knowhow.model.load import Loaded
from knowhow.model.loaded import without_adapter
from knowhow.model.sites import has_sites
from knowhow.observe import log_spaced, observer
from knowhow.observe.ngrams import tables
from knowhow.pretrain.flow import Scene
from knowhow.pretrain.measure import looks
from knowhow.protocols import Observer
from knowhow.stages.phase import Phase
from knowhow.stages.training import rounded
from knowhow.study.roles import Roles
from knowhow.types import Batch, StepInfo

LOOKS, KEPT, FORESEEN = 30, 12, 10
WINDOWS, ROWS = 8, 256
MOST_TOKENS = 2_000_000
"""Tokens of a corpus that its n-gram tables are counted from."""


class Recorder:
    """Satisfies Observer; stands last. At each look it appends what the others have just kept to `path`: a row {step (over all phases), phase, loss, …}.
    A step that is there already (a resumed run passes it again, to the same numbers) is left as it is."""

    name = "study"

    def __init__(self, path: Path, observers: Sequence[Observer], due: Callable[[int], bool], *, phase: int = 0, offset: int = 0) -> None:
        self.due = due
        self._path, self._observers, self._phase, self._offset = path, observers, phase, offset
        self._known = {row["step"] for row in read_jsonl(path)} if path.is_file() else set()

    def before(self, info: StepInfo) -> None:
        """Nothing to see before the update."""

    def after(self, info: StepInfo) -> None:
        step = self._offset + info.step
        if step in self._known:
            return
        row: dict[str, float] = {"loss": info.loss, "lr": info.lr, "grad_norm": info.grad_norm, "tokens": info.tokens_seen, **info.metrics}
        for one in self._observers:
            row |= {name: value for kept in one.rows()[-1:] if kept["step"] == info.step for name, value in kept.items()}
        append_jsonl(self._path, {**{name: rounded(float(value)) for name, value in row.items()}, "step": step, "phase": self._phase})

    def rows(self) -> Sequence[Mapping[str, float]]:
        return []


class Keeper:
    """Satisfies Observer: the trained weights behind log-spaced steps, as `folder`/STEP.safetensors (STEP over all phases)."""

    name = "kept"

    def __init__(self, folder: Path, steps: int, offset: int = 0) -> None:
        self._folder, self._steps, self._offset = folder, checkpoint.kept_steps(KEPT, steps), offset

    def due(self, step: int) -> bool:
        return step in self._steps

    def before(self, info: StepInfo) -> None:
        """Nothing to keep before the update."""

    def after(self, info: StepInfo) -> None:
        path = self._folder / f"{self._offset + info.step}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_weights(path, info.model)

    def rows(self) -> Sequence[Mapping[str, float]]:
        return []


@dataclass(frozen=True)
class Inside:
    """Satisfies Observer: shows another one the model that a PEFT wrapper holds, its adapters in place."""

    seen: Observer

    @property
    def name(self) -> str:
        return self.seen.name

    def due(self, step: int) -> bool:
        return self.seen.due(step)

    def before(self, info: StepInfo) -> None:
        self.seen.before(replace(info, model=without_adapter(info.model)))

    def after(self, info: StepInfo) -> None:
        self.seen.after(replace(info, model=without_adapter(info.model)))

    def rows(self) -> Sequence[Mapping[str, float]]:
        return self.seen.rows()


def of_base(scene: Scene, folder: Path) -> list[Observer]:
    """The observers of a base that is made from text."""
    recipe, steps, end = scene.recipe, scene.steps, scene.model.config.eos_token_id
    held_out = {name: looks(recipe, name, stream, end, WINDOWS) for name, stream in scene.valid.items()}
    total = sum(spec.share for spec in recipe.corpora.values())
    seen = {name: stream[: min(MOST_TOKENS, int(recipe.tokens * recipe.corpora[name].share / total))] for name, stream in scene.streams.items()}
    grams = {name: tables(seen[name], recipe.vocabulary, batches) for name, batches in held_out.items() if name in seen}
    counts = sum(np.bincount(np.asarray(stream), minlength=recipe.vocabulary) for stream in seen.values())
    strings = [scene.tokenizer.decode([token], skip_special_tokens=False) for token in range(recipe.vocabulary)]
    all_rows = [batch for batches in held_out.values() for batch in batches]
    few = [batch for batches in held_out.values() for batch in batches[:1]]
    chosen = [
        observer("ngrams", {"looks": LOOKS, "corpora": grams}, steps),
        observer("tokens", {"looks": LOOKS, "batches": all_rows, "strings": strings, "counts": counts}, steps),
        observer("circuits", {"looks": LOOKS, "vocab": recipe.vocabulary, "length": min(32, recipe.context)}, steps),
        *_always(steps, few),
    ]
    return recorded(chosen, folder, steps)


def of_phase(phase: Phase, loaded: Loaded, rows: Rows, steps: int, folder: Path, offset: int) -> list[Observer]:
    """The observers of one phase of a specialist."""
    held_out = some(phase, loaded)
    chosen: list[Observer] = []
    if phase.language_model:
        vocabulary = without_adapter(loaded.model).config.get_text_config().vocab_size
        grams = {"train": tables(np.asarray(rows.tokens[:MOST_TOKENS]), vocabulary, held_out)}
        chosen += [observer("ngrams", {"looks": LOOKS, "corpora": grams}, steps)]
        strings = [loaded.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in range(vocabulary)]
        counts = np.bincount(np.asarray(rows.tokens), minlength=vocabulary)
        chosen += [observer("tokens", {"looks": LOOKS, "batches": held_out, "strings": strings, "counts": counts}, steps)]
        chosen += [Inside(observer("circuits", {"looks": LOOKS, "vocab": vocabulary, "length": min(32, loaded.context)}, steps))]
    else:
        chosen += [observer("geometry", {"looks": LOOKS, "batches": held_out}, steps)]
        if has_sites(loaded.model):
            chosen += [observer("probes", {"looks": LOOKS, "batches": held_out, "encoder": loaded.kind == "encoder"}, steps)]
            chosen += [Roles(log_spaced(steps, LOOKS), length=min(32, loaded.context))] if loaded.kind == "causal" else []
    chosen += _always(steps, held_out[:4], sites=has_sites(loaded.model))
    return recorded(chosen, folder, steps, phase=phase.number, offset=offset)


def _always(steps: int, batches: Sequence[Batch], *, sites: bool = True) -> list[Observer]:
    """What is looked at in every run; what needs to know a family's parts only where they are known."""
    found = [observer(name, {"looks": LOOKS}, steps) for name in ("spectra", "rotation")]
    found.append(observer("one_step", {"looks": FORESEEN, "rows": 4}, steps))
    if sites:
        found += [observer(name, {"looks": LOOKS, "batches": batches}, steps) for name in ("sparsity", "outliers")]
    return found


def recorded(observers: Sequence[Observer], folder: Path, steps: int, *, phase: int = 0, offset: int = 0) -> list[Observer]:
    """The observers, the recorder behind them, and the keeper of weights."""
    recorder = Recorder(folder / "rows.jsonl", observers, log_spaced(steps, LOOKS), phase=phase, offset=offset)
    return [*observers, recorder, Keeper(folder / "kept", steps, offset)]


def some(phase: Phase, loaded: Loaded, part: str = "valid") -> list[Batch]:
    """The first ROWS rows of a part as the phase's objective wants them, those of like length together."""
    rows = phase.rows(part)
    pad, micro = loaded.tokenizer.pad_token_id, min(phase.spec.microbatch_tokens, phase.spec.batch_tokens)
    chosen = by_length(np.arange(min(ROWS, len(rows))), rows.lengths, micro)
    return [collate(rows, each, pad=pad, language_model=phase.language_model) for each in chosen]
