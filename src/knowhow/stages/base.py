"""Stage base: the guarded base, or a new parent with domain words added to its vocabulary, and what that saves."""

from __future__ import annotations

from pathlib import Path

from knowhow.data.chat import prompt_text
from knowhow.errors import UsageError
from knowhow.files import write_json
from knowhow.model import load, vocabulary
from knowhow.stages.common import Build, source


def _check_objectives(build: Build, base: load.Loaded) -> None:
    """An encoder sees both sides of every token, so it cannot learn to write, nor from the beginnings of texts."""
    for number, phase in enumerate(build.recipe.adapt):
        if base.kind == "encoder" and phase.objective != "classify":
            fix = "choose a causal base, or a task of labels with the objective classify"
            raise UsageError(f"objective {phase.objective} with an encoder", allowed="classify", fix=fix, where=f"adapt.{number}.objective")
        if base.kind == "encoder" and phase.replication:
            fix, where = "leave replication out, or take a causal base", f"adapt.{number}.replication"
            raise UsageError("replication with an encoder, which sees all of a text at every position", fix=fix, where=where)


def work(build: Build, folder: Path) -> None:
    """Leaves base.json (where it came from, its digest) and, with an extension, model/ and vocabulary.json."""
    spec = build.recipe.base
    where = str(build.start_from or source(build.recipe, build.root))
    base = load.load(where, head="body", revision=spec.revision, seed=build.recipe.seed)
    _check_objectives(build, base)
    about = {"source": spec.model if build.start_from is None else build.start_from.name, "revision": base.ref.revision, "sha256": base.ref.sha256}
    about |= {"kind": base.kind, "context": base.context, "parameters": sum(p.numel() for p in base.model.parameters())}
    if spec.vocabulary.extend and build.start_from is None:
        texts = [prompt_text(example, build.task) for example in build.rows("train")]
        asked = spec.vocabulary
        patterns = [asked.pattern] if isinstance(asked.pattern, str) else asked.pattern
        found = (vocabulary.propose(texts, base.tokenizer, pattern=p, min_count=asked.min_count, max_new=asked.max_new) for p in patterns)
        words = list(dict.fromkeys(word for some in found for word in some))
        if words:
            extended = vocabulary.extend(base, words)
            price = vocabulary.price(texts, base.tokenizer, extended.tokenizer)
            write_json(folder / "vocabulary.json", {"words": len(words), "new_words": words, **price})
            ref = load.save(extended, folder / "model")
            about |= {"parent": base.ref.sha256, "sha256": ref.sha256}
    write_json(folder / "base.json", about)
