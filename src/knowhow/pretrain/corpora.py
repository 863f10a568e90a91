"""What a base is made from: texts and traces to a tokenizer and one array of tokens per corpus, each kept in the run folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from knowhow.data.sources import open_source
from knowhow.domains import find_domain
from knowhow.errors import UsageError
from knowhow.files import writing
from knowhow.protocols import Progress
from knowhow.recipe import CorpusSpec, PretrainRecipe

END, PAD = "<|endoftext|>", "<|pad|>"
TOKENIZER_SHARE = 0.3
PIECE = 20_000


def texts(spec: CorpusSpec, root: Path) -> Iterator[str]:
    """Documents of a corpus in order. A domain's traces are shuffled in blocks, so twins do not stand side by side."""
    for name in spec.files:
        for number, row in enumerate(open_source(root / name).rows(), start=1):
            if not isinstance(row.get("text"), str):
                allowed = "rows with a field `text`"
                raise UsageError(f"a row without text (it has {', '.join(row)})", allowed=allowed, fix="rename the field", where=f"{root / name}, row {number}")
            yield row["text"]
    if spec.generate is not None:
        seed = spec.generate.seed or 0
        random = np.random.Generator(np.random.PCG64(seed))
        made = find_domain(spec.generate.domain).generate(spec.generate.options, seed=seed, n=spec.generate.train)
        for block in _blocks((str(example.prompt) for example in made), 4096):
            yield from (block[i] for i in random.permutation(len(block)))


def _blocks(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(itertools.islice(items, size)):
        yield block


def tokenizer_of(recipe: PretrainRecipe, run: Path, root: Path, progress: Progress) -> Tokenizer:
    path = run / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    progress("tokenizer", 0, 0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[END, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    random = np.random.Generator(np.random.PCG64(recipe.seed))
    sample = (piece for spec in recipe.corpora.values() for text in texts(spec, root) for piece in _pieces(text) if random.random() < TOKENIZER_SHARE)
    tokenizer.train_from_iterator(sample, trainer)
    with writing(path):
        tokenizer.save(str(path))
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut long documents at line ends: the tokenizer works through short strings faster."""
    start = 0
    while start < len(text):
        end = start + PIECE
        cut = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = cut if cut > start else min(end, len(text))
        yield text[start:end]
        start = end


def stream_of(name: str, spec: CorpusSpec, tokenizer: Tokenizer, run: Path, root: Path, progress: Progress) -> np.ndarray:
    """Documents as one array of token ids, each followed by END; memory-mapped."""
    path = run / "streams" / f"{name}.npy"
    if path.is_file():
        return np.load(path, mmap_mode="r", allow_pickle=False)
    end, parts, total = tokenizer.token_to_id(END), [], 0
    for text in texts(spec, root):
        ids = [token for encoding in tokenizer.encode_batch(list(_pieces(text)), add_special_tokens=False) for token in encoding.ids]
        parts.append(np.asarray([*ids, end], np.uint16))
        total += len(ids) + 1
        progress(f"tokens of {name}", total, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        np.save(path.with_suffix(".part.npy"), np.concatenate(parts), allow_pickle=False)
        path.with_suffix(".part.npy").rename(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)
