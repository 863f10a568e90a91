"""What a build will work on, looked at before anything starts: the base's shape from its headers, the rows from a few seconds of reading."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from knowhow import estimate
from knowhow.commands.machine import machine
from knowhow.data.sources import open_source
from knowhow.domains import find_domain
from knowhow.errors import UsageError
from knowhow.estimate import Load, Machine, Shape
from knowhow.model.source import resolve
from knowhow.recipe import PLAIN_RANK, PhaseSpec, Recipe

SECONDS = 2.0
"""How long the rows of one file are counted; what is not reached is extrapolated from the file's size."""
SAMPLE = 200
LABELS = 8
"""What an estimate takes for the number of labels where rows would have to be read to know it."""
CHARS_PER_TOKEN = 3.0
COMPRESSED = 5.0
HEADER_LIMIT = 32 << 20
WIDTHS, DEPTHS = ("hidden_size", "n_embd", "d_model", "dim"), ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
SEEDLING_LICENCE = "Apache-2.0"


def foresee(recipe: Recipe, runs: Path) -> tuple[estimate.Estimate, Machine, dict[str, Any]]:
    """The estimate, the machine it is for, and the record that goes into the run. `recipe`: with absolute paths.

    The guard looks at the base first of all: a folder that is refused is refused before any row is read."""
    folder = resolve(recipe.base.model, recipe.base.revision)
    load = rows(recipe, folder)
    size = shape(folder, recipe.adapt)
    here = machine(runs)
    found = estimate.estimate(recipe.adapt, size, load, here)
    both = estimate.licences(base_licence(recipe.base.model, folder), recipe.data.licence or _generated(recipe))
    record = {
        "minutes": round(found.total_minutes, 1),
        "by_stage": {name: round(value, 2) for name, value in found.minutes.items()},
        "memory_gb": round(found.memory_gb, 2),
        "disk_gb": round(found.disk_gb, 3),
        "rows": load.rows,
        "held_out": load.held_out,
        "tokens_per_row": round(load.tokens, 1),
        "parameters": size.parameters,
        "trained": size.trained,
        "licences": {
            "base": both["base"]["licence"],
            "data": both["data"]["licence"],
            "use": both["use"],
            "licence": None if both["licence"] == "none" else both["licence"],
            "note": "; ".join([f"use: {both['use']}", *both["notes"]]),
        },
    }
    return found, here, record


def shape(folder: Path, phases: Iterable[PhaseSpec]) -> Shape:
    """A model folder's size, read from config.json and the headers of its safetensors; nothing is loaded."""
    config = _json(folder / "config.json")
    width, depth = (_first(config, names) for names in (WIDTHS, DEPTHS))
    parameters = sum(_elements(path) for path in sorted(folder.glob("*.safetensors")))
    lora = [PLAIN_RANK if phase.lora.rank == "auto" else phase.lora.rank for phase in phases if phase.method == "lora"]
    trained = min(parameters, 14 * max(lora) * width * depth) if lora and all(phase.method == "lora" for phase in phases) else parameters
    return Shape(parameters, trained, depth, width, _first(config, ("vocab_size",)))


def rows(recipe: Recipe, base: Path) -> Load:
    """Rows of the recipe and the length of one, from what can be read in a few seconds."""
    data = recipe.data
    if data.generate is not None:
        made = list(itertools.islice(find_domain(data.generate.domain).generate(data.generate.options, seed=2**30, n=SAMPLE), SAMPLE))
        load = _load(recipe, base, [str(example.prompt) for example in made], data.generate.train, data.generate.valid + data.generate.test)
        return replace(load, passes=_passes(recipe, len({label for each in made for label in _labels(each.label)})), explained=recipe.explain.examples)
    count, texts = _counted(recipe, str(data.train))
    cut = {part: share for part, share in (("valid", data.split.valid), ("test", data.split.test)) if not {"valid": data.valid, "test": data.test}[part]}
    held = round(count * sum(cut.values())) + sum(_counted(recipe, where)[0] for where in (data.valid, data.test) if where)
    train = round(count * (1 - sum(cut.values())))
    return replace(_load(recipe, base, texts, min(train, data.limit or train), held), passes=_passes(recipe, LABELS), explained=recipe.explain.examples)


def _labels(label: Any) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


def _passes(recipe: Recipe, labels: int) -> int:
    """Passes of the model for one answer: a channel asks for each label, of many labels twice. `labels`: how many there are if the recipe names none."""
    if recipe.adapt[-1].objective != "channel":
        return 1
    return (len(recipe.task.labels or ()) or labels) * (2 if recipe.task.many else 1)


def base_licence(source: str, folder: Path) -> str | None:
    """The licence in the model card's front matter."""
    card = folder / "README.md"
    text = card.read_bytes()[:65536].decode("utf-8", "replace") if card.is_file() else ""
    found = re.search(r"^license:\s*['\"]?([\w.+ -]+)", text.partition("\n---")[0], re.MULTILINE)
    return found.group(1).strip() if found else SEEDLING_LICENCE if source in ("seedling", "minilm") else None


def _generated(recipe: Recipe) -> str | None:
    """What the project generates itself carries the project's licence."""
    return SEEDLING_LICENCE if recipe.data.generate else None


def _load(recipe: Recipe, base: Path, texts: list[str], count: int, held: int) -> Load:
    sample = texts[:SAMPLE] or [""]
    characters = sum(map(len, sample)) / len(sample)
    pattern = recipe.base.vocabulary.pattern
    words = pattern if isinstance(pattern, str) else "|".join(f"(?:{one})" for one in pattern)
    tokens = _tokens(base, sample, words if recipe.base.vocabulary.extend else None)
    context = recipe.base.context or _first(_json(base / "config.json"), ("max_position_embeddings", "n_positions")) or 1024
    return Load(count, held, sum(min(length, context) for length in tokens) / len(tokens), characters)


def _tokens(base: Path, texts: list[str], words: str | None) -> list[float]:
    """Tokens of each text; with one token per domain word, at most its words and as many between them."""
    path = base / "tokenizer.json"
    if path.is_file():
        lengths = [float(len(row.ids)) for row in _tokenizer(path).encode_batch(texts)]
    else:
        lengths = [len(text) / CHARS_PER_TOKEN for text in texts]
    if words is None:
        return lengths
    return [min(length, 1.3 * len(re.findall(words, text)) + 1) for length, text in zip(lengths, texts)]


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a tokenizer it cannot parse
        fix = "save the tokenizer again as tokenizer.json (tokenizer.save_pretrained)"
        raise UsageError(f"the tokenizer cannot be read: {str(error)[:300]}", allowed="a fast tokenizer", fix=fix, where=str(path)) from error


def _counted(recipe: Recipe, where: str) -> tuple[int, list[str]]:
    """Rows of a file and the texts of the first ones."""
    texts: list[str] = []
    count, characters, deadline = 0, 0, time.monotonic() + SECONDS
    for text in _texts(recipe, where):
        count += 1
        characters += len(text)
        texts += [text] if len(texts) < SAMPLE else []
        if time.monotonic() > deadline:
            path = Path(where)
            size = path.stat().st_size * (COMPRESSED if path.suffix in (".gz", ".xz", ".zst") else 1) if path.is_file() else 0
            return max(count, round(size * count / max(1, characters))), texts
    return count, texts


def _texts(recipe: Recipe, where: str) -> Iterator[str]:
    if recipe.data.domain is not None:
        yield from (str(example.prompt) for example in find_domain(recipe.data.domain).read(Path(where), recipe.data.options))
        return
    for row in open_source(where).rows():
        yield " ".join(value if isinstance(value, str) else json.dumps(value, default=str) for value in row.values())


def _elements(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            return path.stat().st_size // 2
        header = _object(file.read(length))
    total = 0
    for name, tensor in header.items():
        product = 1
        for side in tensor.get("shape", []) if isinstance(tensor, dict) and name != "__metadata__" else [0]:
            product *= int(side)
        total += product
    return total


def _json(path: Path) -> Mapping[str, Any]:
    return _object(path.read_bytes()) if path.is_file() else {}


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; what is none counts as empty: the guard refuses it with its reason when the model is loaded."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _first(config: Mapping[str, Any], names: Iterable[str]) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)
