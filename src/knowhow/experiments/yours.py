"""A law checked on a model and data of the user's own: a language model on windows of texts.

Shape letters: B batch, T tokens, N tokens of the whole stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from knowhow.data import fields
from knowhow.data.chat import rendered
from knowhow.data.sources import open_source
from knowhow.errors import UsageError
from knowhow.experiments.language import Language, next_token
from knowhow.experiments.run import Check, known, verdict
from knowhow.experiments.system import Drawn, System, system
from knowhow.laws.law import Experiment, Judgement, Law, summed_up
from knowhow.model.charges import ledger
from knowhow.model.load import load
from knowhow.types import Batch, Example, Task

NAME = "yours"
PEEK, TEXTS, TOKENS = 1000, 20_000, 500_000
"""Rows that columns are recognised from; rows and tokens that are read at most."""

SHORTEST = 16
OWN = ("markov-decoder", "charges", "bigram-chain", "lazy-decoder")
"""Systems that are language models on plain tokens: an experiment on one of them stands nearest to the user's own model."""

SPECIAL = {
    "modes": "a linear network whose modes are known",
    "factors": "a product of matrices without anything between them",
    "lora": "adapters on a model whose own gradient is known",
    "geometry": "a classifier with one class a row",
    "llc": "a model whose coefficient is known exactly",
    "superposition": "features that are known one by one",
}
"""Observer → what it has to look at, where a language model on texts is none."""


def yours(seed: int, *, model: str, data: str, rows: int = 8, length: int = 128) -> System:
    """`model`: what model/load.py takes, with a causal head; `data`: rows of texts in any format that a build reads, joined by the end-of-text token and
    cut at random into `rows` windows of `length` tokens a step. Dropout is off, attention is differentiable twice.

    Facts: `vocab`, `length`, `rows`, the model's `charges.KIND` and `charges.excluded`. Raises UsageError for an encoder, and for too little text."""
    loaded = load(model)
    if loaded.kind != "causal":
        raise UsageError(f"{model} is an encoder", allowed="a language model that predicts the next token: laws are about its training", where="--model")
    made: Any = loaded.model
    made.set_attn_implementation("eager")
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stream_N = _stream(data, loaded.tokenizer)
    length = min(length, loaded.context, len(stream_N) - 1)
    if length < SHORTEST:
        raise UsageError(f"{len(stream_N)} tokens of text", allowed=f"{SHORTEST + 1} and more", where=data)

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(stream_N) - length, (rows,), generator=generator)
        return next_token(torch.stack([stream_N[start : start + length + 1] for start in starts.tolist()]))

    found = ledger(made)
    facts = {f"charges.{kind}": float(count) for kind, count in found.counts().items()} | {"charges.excluded": float(len(found.excluded))}
    vocab = float(made.get_input_embeddings().weight.shape[0])
    return System(made, Language(), Drawn(draw, seed), {"vocab": vocab, "rows": rows, "length": length, **facts})


def applied(law: Law, model: str, data: str) -> tuple[Law, str]:
    """The law with its experiment moved to the user's model and data (optimizer, steps and observers stay; controls with experiments of their own are about
    other systems and go), and why it does not apply there: empty where it does. Raises UsageError when model or data cannot be used."""
    first = next((one for one in law.experiments if one.system in OWN), law.experiments[0])
    mine = replace(first, system=NAME, options={"model": model, "data": data})
    moved = replace(law, experiments=(mine,), controls=tuple(control for control in law.controls if control.experiment is None))
    diagnosis = known(mine, system(NAME, mine.options, 0))
    special = [SPECIAL[name] for name in mine.observers if name in SPECIAL]
    if special:
        return moved, f"it is measured on {' and '.join(special)}"
    return moved, "" if law.predict(diagnosis) else _unknown(first, {one.metric for one in diagnosis.measurements})


def judged(law: Law, checks: Mapping[int, Check]) -> Judgement:
    """The verdict over seeds. Controls that have nothing to say here are left out; where one that speaks does not fail, the run cannot tell the law from
    what is wrong, and confirms nothing."""
    said = [control for control in law.controls if any(one.verdict != "not applicable" for check in checks.values() for one in check.controls[control.name])]
    found = verdict(replace(law, controls=tuple(said)), dict(checks))
    if found.verdict == "violated" and {summed_up(check.scored) for check in checks.values()} == {"confirmed"}:
        return replace(found, verdict="not applicable", because=f"this run cannot tell the law from what is wrong: {found.because}")
    return found


def _unknown(first: Experiment, here: set[str]) -> str:
    """Which facts of the law's own system are not known of the user's."""
    there = known(first, system(first.system, first.options, 0))
    lacking = list(dict.fromkeys(one.metric for one in there.measurements if one.metric not in here))
    facts = ", ".join(lacking) or "other settings"
    return f"it predicts from {facts}, known before the run of the system {first.system}, and not of this model and data"


def _stream(where: str, tokenizer: Any) -> torch.Tensor:
    """Token ids N of the texts, each ended by the tokenizer's end-of-text token where it has one."""
    source = open_source(where)
    columns = fields.recognise(list(itertools.islice(source.rows(), PEEK)))
    rows = itertools.islice(source.rows(), TEXTS)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for example in fields.examples(rows, columns, Task("generate"), origin=Path(where).name):
        ids += [*tokenizer(_text(example), add_special_tokens=False)["input_ids"], *end]
        if len(ids) >= TOKENS:
            break
    return torch.tensor(ids)


def _text(example: Example) -> str:
    return "\n".join(filter(None, [rendered(example.prompt), example.pair, *(said.text for said in example.completions[:1])]))
