"""Words of a field that the tokenizer breaks to pieces become one token each; the model that has them is a new parent for adapters."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, decoders, models

from knowhow.errors import UsageError
from knowhow.files import digest
from knowhow.model.configs import PATTERN_LIMIT
from knowhow.model.infer import pieces
from knowhow.model.loaded import Loaded
from knowhow.model.quiet import quiet

WORD = r"[^\W_][\w.]*[^\W_]"
LONGEST = 128
_MARKS = {decoders.ByteLevel: "Ġ", decoders.Metaspace: "▁"}


def propose(words: Iterable[str] | Mapping[str, float], tokenizer: Any, *, pattern: str = WORD, min_count: float = 20, max_new: int = 1000) -> list[str]:
    """The words worth a token of their own: those that cost more than one and save the most (count × tokens saved), at most `max_new`, best first.

    `words`: counts by word, or running texts, whose words are what `pattern` (a regular expression) matches. Ties go by the alphabet."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"pattern {pattern!r}: {error}", allowed="a regular expression") from None
    if isinstance(words, Mapping):
        counts = {word: count for word, count in words.items() if expression.fullmatch(word)}
    else:
        counts = Counter(word for text in words for word in expression.findall(text))
    known = set(tokenizer.get_vocab())
    often = sorted(word for word, count in counts.items() if count >= min_count and 1 < len(word) <= LONGEST and word.isprintable())
    often = [word for word in often if word not in known]
    costs = [len(row) for row in pieces(tokenizer, [f" {word}" for word in often])]
    saved = {word: counts[word] * (cost - 1) for word, cost in zip(often, costs, strict=True) if cost > 1}
    return sorted(saved, key=lambda word: (-saved[word], word))[:max_new]


def extend(loaded: Loaded, words: Sequence[str]) -> Loaded:
    """A new parent whose tokenizer reads each of `words` as one token, with its leading space and at the start of a text.

    New rows of the embedding (and of an untied language-model head) are the means of the rows of the word's pieces. Words that are one token already are
    passed over. The model given is left as it is. `ref.parent` of the result is the digest of the model given; `ref.sha256` follows from it and the words."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    known = tokenizer.get_vocab()
    fresh = [word for word in dict.fromkeys(words) if word not in known]
    wrong = [word for word in fresh if not word or len(word) > LONGEST or word != word.strip() or not word.isprintable()]
    if wrong:
        raise UsageError(f"word {wrong[0][:80]!r}", allowed=f"1 to {LONGEST} printable characters without space at the ends")
    parts = pieces(loaded.tokenizer, [f" {word}" for word in fresh])
    kept = [(word, part) for word, part in zip(fresh, parts, strict=True) if len(part) > 1]
    if not kept:
        return loaded
    lower = _lowers(tokenizer)
    tokenizer.add_tokens([AddedToken(word, lstrip=True, single_word=True, normalized=lower, special=False) for word, _ in kept])
    _keep_spaces(tokenizer, [word for word, _ in kept])
    model = copy.deepcopy(loaded.model)
    ids = tokenizer.convert_tokens_to_ids([word for word, _ in kept])
    grow(model, max(ids) + 1)
    for layer in _tables(model):
        _fill(layer, ids, [part for _, part in kept])
    old = loaded.ref.sha256
    ref = replace(loaded.ref, parent=old, sha256=digest({"parent": old, "words": [word for word, _ in kept]}))
    return replace(loaded, model=model.eval(), tokenizer=tokenizer, ref=ref)


def added(before: Any, after: Any) -> list[int]:
    """Ids that `after` (a tokenizer) has and `before` has not, in order: the rows that an adapter trains."""
    known = before.get_vocab()
    return sorted(index for token, index in after.get_vocab().items() if token not in known)


def price(texts: Sequence[str], before: Any, after: Any) -> dict[str, float]:
    """Tokens per example with two tokenizers: {n, before, after, ratio, p95_before, p95_after}."""
    old, new = (np.array([len(row) for row in pieces(tokenizer, texts)], float) for tokenizer in (before, after))
    if not len(texts):
        return {"n": 0, "before": 0.0, "after": 0.0, "ratio": 1.0, "p95_before": 0.0, "p95_after": 0.0}
    return {
        "n": len(texts),
        "before": float(old.mean()),
        "after": float(new.mean()),
        "ratio": float(new.sum() / max(1.0, old.sum())),
        "p95_before": float(np.quantile(old, 0.95)),
        "p95_after": float(np.quantile(new, 0.95)),
    }


def _lowers(tokenizer: Any) -> bool:
    """An uncased tokenizer must match the word after it has lowered the text."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("Aa") == "aa"


def _keep_spaces(tokenizer: Any, words: Sequence[str]) -> None:
    """The new tokens swallow the space before them; the decoder puts it back, so that decoding running text gives the text.

    Not for long lists: the decoder knows the words by a pattern, and a pattern past the guard's limit is refused. Such a model reads and answers as well;
    text decoded from it misses spaces."""
    backend = tokenizer.backend_tokenizer
    mark = next((mark for kind, mark in _MARKS.items() if isinstance(backend.decoder, kind)), None)
    if mark is None and isinstance(backend.decoder, decoders.Sequence) and isinstance(backend.model, models.BPE):
        mark = next((mark for mark in _MARKS.values() if f"{mark}a" in tokenizer.get_vocab()), None)
    one_of = "|".join(re.escape(word) for word in sorted(words))
    if mark is not None and len(one_of) < PATTERN_LIMIT - 20:
        backend.decoder = decoders.Sequence([decoders.Replace(Regex(f"^(?=(?:{one_of})$)"), mark), backend.decoder])


def spelled(label: str) -> str:
    """A label as a part of a control token's name: letters, digits and '.', '_', '+', '-'."""
    return re.sub(r"[^0-9A-Za-z._+-]", "_", label)


def grow(model: torch.nn.Module, rows: int) -> None:
    """More rows when there are too few; spare rows that the model has already are used first."""
    if model.get_input_embeddings().weight.shape[0] < rows:
        with quiet(), torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(rows, mean_resizing=False)


def _tables(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Layers with a row per token: the embedding, and the language-model head when it is not tied to it."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    apart = last is not None and last.weight.data_ptr() != first.weight.data_ptr()
    return [first, last] if last is not None and (apart or getattr(last, "bias", None) is not None) else [first]


def _fill(layer: torch.nn.Module, ids: Sequence[int], parts: Sequence[Sequence[int]]) -> None:
    with torch.no_grad():
        for tensor in (layer.weight, getattr(layer, "bias", None)):
            if tensor is not None:
                means = torch.stack([tensor[list(part)].mean(0) for part in parts])
                tensor[list(ids)] = means
