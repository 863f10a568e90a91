"""From texts to tokens and from tokens to numbers: logits, likelihoods, label scores. Order in is order out.

Shape letters: N examples, C classes, B rows of a batch, T tokens, L tokens of a label, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import log_softmax

from knowhow.errors import UsageError
from knowhow.model.loaded import Loaded, cache_name, device_of
from knowhow.model.quiet import quiet
from knowhow.protocols import Progress

Cut = Literal["tail", "head", "middle"]
Precision = Literal["float32", "bf16"]
LOGITS_LIMIT = 1 << 27
_CHUNK = 2048
_CHARACTERS_PER_TOKEN = 256


def encode(tokenizer: Any, texts: Sequence[str], *, context: int, bos: bool = True, truncate: Cut = "tail") -> list[list[int]]:
    """Token ids of each text, at most `context` of them. `truncate` names the part that is cut off when it is longer.

    Control tokens spelled out in a text (a literal <|endoftext|>) stay text. `bos`: put the family's own frame round it (a BOS before, [CLS] and
    [SEP] round), and at least one token even for an empty text."""
    before, after = frame(tokenizer) if bos else ([], [])
    room = context - len(before) - len(after)
    if room < 1:
        raise UsageError(f"a context of {context} tokens", allowed=f"at least {len(before) + len(after) + 1}")
    rows = [before + cut(row, room, truncate) + after for row in pieces(tokenizer, texts, room if truncate == "tail" else None)]
    return [row or [_filler(tokenizer)] for row in rows] if bos else rows


def pieces(tokenizer: Any, texts: Sequence[str], first: int | None = None) -> list[list[int]]:
    """Token ids of the texts alone, nothing added, control tokens disabled. `first`: how many tokens are wanted, so that an endless text costs little."""
    backend = tokenizer.backend_tokenizer
    control = _control_ids(tokenizer)
    limit = None if first is None else first * _CHARACTERS_PER_TOKEN
    rows: list[list[int]] = []
    with text_only(backend):
        for start in range(0, len(texts), _CHUNK):
            chunk = [_unicode(text) for text in texts[start : start + _CHUNK]]
            short = chunk if limit is None else [text[:limit] for text in chunk]
            found = [encoding.ids for encoding in backend.encode_batch_fast(short, add_special_tokens=False)]
            for index, row in enumerate(found):
                if first is not None and len(row) < first and len(short[index]) < len(chunk[index]):
                    found[index] = backend.encode(chunk[index], add_special_tokens=False).ids
                if not control.isdisjoint(found[index]):
                    found[index] = _spelled(backend, found[index], control)
            rows += found
    return rows


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the family puts before and after a text. Only encoders ([CLS]) get the ones after: a causal model reads its answer off the last word."""
    backend = tokenizer.backend_tokenizer
    bare, full = backend.encode("a", add_special_tokens=False).ids, backend.encode("a", add_special_tokens=True).ids
    at = next((start for start in range(len(full) - len(bare) + 1) if full[start : start + len(bare)] == bare), 0)
    return full[:at], full[at + len(bare) :] if tokenizer.cls_token_id is not None else []


def cut(row: list[int], room: int, part: Cut) -> list[int]:
    """At most `room` tokens: the `part` named is what goes ("middle" keeps both ends)."""
    if len(row) <= room:
        return row
    if part == "tail":
        return row[:room]
    if part == "head":
        return row[-room:]
    return row[: (room + 1) // 2] + row[len(row) - room // 2 :]


def class_logits(
    loaded: Loaded, tokens: Sequence[Sequence[int]], *, batch_tokens: int = 8192, progress: Progress | None = None, precision: Precision = "float32"
) -> np.ndarray:
    """NC float32 logits of a classifier (N1: the number of a regressor). `batch_tokens`: the most tokens of one forward pass, padding included."""
    if loaded.head in ("lm", "channel"):
        raise UsageError("class logits of a language model", allowed="a classifier or regressor", fix="label_logprobs scores labels with a language model")
    _check_lengths(loaded, tokens)
    out = np.zeros((len(tokens), loaded.model.config.num_labels), np.float32)
    done = 0
    with _evaluating(loaded, precision):
        for rows in like_lengths([len(row) for row in tokens], batch_tokens):
            tokens_BT, mask_BT = right_padded(loaded, [tokens[row] for row in rows])
            logits_BC = loaded.model(input_ids=tokens_BT, attention_mask=mask_BT).logits
            out[rows] = logits_BC.float().cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress("classify", done, len(tokens))
    return out


def lm_nll(
    loaded: Loaded,
    tokens: Sequence[Sequence[int]],
    *,
    starts: Sequence[int] | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    precision: Precision = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood in nats of each row's tokens given those before them: (sums N float64, counts N).

    The first token has nothing before it and is not counted. `starts`: count only from this position of each row (an answer after its prompt)."""
    _check_causal(loaded)
    _check_lengths(loaded, tokens)
    firsts = np.maximum(1, np.ones(len(tokens), np.int64) if starts is None else np.asarray(starts, np.int64))
    sums, counts, done = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64), 0
    room = max(1, min(batch_tokens, LOGITS_LIMIT // loaded.model.get_input_embeddings().weight.shape[0]))
    with _evaluating(loaded, precision):
        for rows in like_lengths([len(row) for row in tokens], room):
            tokens_BT, mask_BT = right_padded(loaded, [tokens[row] for row in rows])
            logits_BTV = loaded.model(input_ids=tokens_BT, attention_mask=mask_BT).logits[:, :-1].float()
            taken_BT = logits_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0] - logits_BTV.logsumexp(2)
            lengths_B = torch.tensor([len(tokens[row]) for row in rows], device=taken_BT.device)
            place_T = torch.arange(1, tokens_BT.shape[1], device=taken_BT.device)
            counted_BT = (place_T >= torch.as_tensor(firsts[rows], device=taken_BT.device)[:, None]) & (place_T < lengths_B[:, None])
            sums[rows] = -(taken_BT.double() * counted_BT).sum(1).cpu().numpy()
            counts[rows] = counted_BT.sum(1).cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress("likelihood", done, len(tokens))
    return sums, counts


def label_logprobs(
    loaded: Loaded,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    separator: str = " ",
    normalise: bool = False,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> np.ndarray:
    """NC log-probability of each label's text after each prompt (zero-shot), summed over its tokens, or their mean (`normalise`).

    The space belongs to the label: prompts lose theirs at the end and `separator` goes before every label. A prompt too long loses its beginning.
    Each prompt is read once; the labels share its cache."""
    _check_causal(loaded)
    answers = pieces(loaded.tokenizer, [separator + label for label in labels])
    longest = max(len(answer) for answer in answers)
    room = loaded.context - longest
    read = encode(loaded.tokenizer, [prompt.rstrip() if separator else prompt for prompt in prompts], context=room, truncate="head")
    out, done = np.zeros((len(prompts), len(labels))), 0
    with _evaluating(loaded, "float32"):
        for rows in like_lengths([len(row) + longest * len(labels) for row in read], batch_tokens):
            out[rows] = _score(loaded, [read[row] for row in rows], answers).cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress("score labels", done, len(prompts))
    return out / np.array([len(answer) for answer in answers]) if normalise else out


def left_padded(loaded: Loaded, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens_BT, mask_BT and positions_BT with the padding before each row, so that all rows end together."""
    width, device = max(len(row) for row in rows), device_of(loaded.model)
    tokens_BT = torch.full((len(rows), width), loaded.tokenizer.pad_token_id)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens_BT[index, width - len(row) :] = torch.tensor(row)
        mask_BT[index, width - len(row) :] = 1
    return tokens_BT.to(device), mask_BT.to(device), (mask_BT.cumsum(1) - 1).clamp(min=0).to(device)


def like_lengths(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Row indices of batches of like length whose padded size stays within `batch_tokens`, longest first (so that an estimate of the time left falls)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _score(loaded: Loaded, rows: list[list[int]], answers: list[list[int]]) -> torch.Tensor:
    """BC log-probabilities: one pass over the prompts, one over every label's tokens after each of them."""
    tokens_BT, mask_BT, positions_BT = left_padded(loaded, rows)
    device, longest, count = tokens_BT.device, max(len(answer) for answer in answers), len(answers)
    read = loaded.model(input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=True, logits_to_keep=1)
    answers_CL = torch.tensor([answer + [loaded.tokenizer.pad_token_id] * (longest - len(answer)) for answer in answers], device=device)
    real_CL = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers], device=device)
    score_BC = log_softmax(read.logits[:, -1].float(), -1)[:, answers_CL[:, 0]]
    if longest == 1:
        return score_BC
    name = cache_name(loaded.model)
    cache = read[name]
    cache.batch_repeat_interleave(count)
    repeat = (len(rows), 1)
    mask = torch.cat([mask_BT.repeat_interleave(count, 0), real_CL[:, :-1].repeat(repeat)], 1)
    ends = positions_BT[:, -1].repeat_interleave(count)[:, None]
    positions = ends + 1 + torch.arange(longest - 1, device=device)
    inputs = answers_CL[:, :-1].repeat(repeat)
    logits = loaded.model(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache}).logits.float()
    taken = log_softmax(logits, -1).gather(2, answers_CL[:, 1:].repeat(repeat)[..., None])[..., 0] * real_CL[:, 1:].repeat(repeat)
    return score_BC + taken.sum(1).view(len(rows), count)


def right_padded(loaded: Loaded, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """tokens_BT and mask_BT. A causal model never looks right, so it needs no mask (and attention without one is faster)."""
    tokens_BT, mask_BT = padded(loaded, rows)
    return tokens_BT, None if loaded.kind == "causal" else mask_BT


def padded(loaded: Loaded, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens_BT and mask_BT with the padding behind each row."""
    width, device = max(1, *(len(row) for row in rows)), device_of(loaded.model)
    tokens_BT = torch.full((len(rows), width), loaded.tokenizer.pad_token_id)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask_BT[index, : len(row)] = 1
    return tokens_BT.to(device), mask_BT.to(device)


@contextmanager
def _evaluating(loaded: Loaded, precision: Precision) -> Iterator[None]:
    """No gradients, no dropout, the wanted precision; the model's mode is put back after."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision {precision!r}", allowed="float32, bf16")
    training = loaded.model.training
    loaded.model.eval()
    lower = torch.autocast(device_of(loaded.model).type, torch.bfloat16) if precision == "bf16" else nullcontext()
    try:
        with torch.inference_mode(), lower, quiet():
            yield
    finally:
        loaded.model.train(training)


@contextmanager
def text_only(backend: Any) -> Iterator[None]:
    kept, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        yield
    finally:
        backend.encode_special_tokens = kept


def _control_ids(tokenizer: Any) -> set[int]:
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _spelled(backend: Any, row: list[int], control: set[int]) -> list[int]:
    """Some tokenizers find a control token's spelling in their vocabulary: those are spelled out letter by letter, or dropped when even a letter is one."""
    out: list[int] = []
    for index in row:
        if index not in control:
            out.append(index)
            continue
        letters = backend.encode_batch_fast(list(backend.id_to_token(index)), add_special_tokens=False)
        out += [part for letter in letters for part in letter.ids if part not in control]
    return out


def _unicode(text: str) -> str:
    """Lone surrogates are no text that a tokenizer takes: they become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _filler(tokenizer: Any) -> int:
    ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(index for index in ids if index is not None)


def _check_causal(loaded: Loaded) -> None:
    if loaded.kind != "causal" or loaded.head != "lm":
        raise UsageError(f"a likelihood of text from {loaded.kind} model with a {loaded.head} head", allowed="a causal language model")


def _check_lengths(loaded: Loaded, tokens: Sequence[Sequence[int]]) -> None:
    longest = max((len(row) for row in tokens), default=0)
    if longest > loaded.context:
        raise UsageError(f"{longest} tokens", allowed=f"at most {loaded.context} (the model's context)", fix="encode(…, context=loaded.context) cuts them")
