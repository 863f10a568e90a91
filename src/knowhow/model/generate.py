"""Writing: batched generation with a cache, sampled row by row so that a row's draws depend on its seed and place alone.

Shape letters: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.model.infer import encode, left_padded, like_lengths
from knowhow.model.lexicon import Lexicon
from knowhow.model.loaded import Loaded, cache_name
from knowhow.protocols import Progress


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition 1 change nothing.

    `min_p`: the least probability kept, as a share of the most probable token's (Nguyen et al. 2024, 2407.01082);
    `repetition`: divides positive and multiplies negative logits of tokens seen (Keskar et al. 2019, 1909.05858)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for name, value, good in (
            ("temperature", self.temperature, 0 <= self.temperature <= 100),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("top_k", self.top_k, self.top_k >= 0),
            ("min_p", self.min_p, 0 <= self.min_p <= 1),
            ("repetition", self.repetition, 0 < self.repetition <= 10),
        ):
            if not good:
                raise UsageError(f"{name} {value}", allowed="temperature 0 to 100, top_p above 0 to 1, top_k from 0, min_p 0 to 1, repetition above 0 to 10")


@dataclass(frozen=True, slots=True)
class Writer:
    """A model as a Generator (protocols.py): prompts in, texts out. Fields that the protocol's call does not name are set here."""

    loaded: Loaded
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    progress: Progress | None = None

    def __call__(self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, seed: int) -> list[str]:
        way = self.sampling
        return generate(
            self.loaded, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=way.top_p, top_k=way.top_k, min_p=way.min_p,
            repetition=way.repetition, stop=self.stop, seed=seed, progress=self.progress,
        )  # fmt: skip


def generate(  # the protocol's call and one knob per sampler: more parameters than the house rule, each of them a field's own word
    loaded: Loaded,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_tokens: int = 8192,
    lexicons: Sequence[Lexicon] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes after each prompt, without the prompt; ends at an end token, before a `stop` text, or after `max_new_tokens`.

    A prompt is a text (its control tokens are plain text) or token ids (from a chat template). One too long for the context loses its beginning.
    `lexicons`: for each prompt, the words that alone may be written.
    Greedy equals transformers' own generate. The same seed gives the same texts, whatever the batches."""
    way = Sampling(temperature, top_p, top_k, min_p, repetition)
    room = loaded.context - max_new_tokens
    if loaded.kind != "causal" or loaded.head != "lm":
        raise UsageError(f"text from {loaded.kind} model with a {loaded.head} head", allowed="a causal language model")
    if max_new_tokens < 1 or room < 1:
        raise UsageError(f"max_new_tokens {max_new_tokens}", allowed=f"1 to {loaded.context - 1} (the model's context is {loaded.context})")
    rows = _prompt_rows(loaded, prompts, room)
    written: list[list[int]] = [[] for _ in rows]
    done = 0
    training = loaded.model.training
    loaded.model.eval()
    try:
        with torch.inference_mode():
            for batch in like_lengths([len(row) + max_new_tokens for row in rows], batch_tokens):
                run = _Run(loaded, way, tuple(stop), max_new_tokens, seed, lexicons and [lexicons[index] for index in batch])
                for index, tokens in zip(batch, run.write([rows[index] for index in batch], batch), strict=True):
                    written[index] = tokens
                done += len(batch)
                if progress is not None:
                    progress("generate", done, len(rows))
    finally:
        loaded.model.train(training)
    return [_before_stop(_decode(loaded, tokens), stop) for tokens in written]


def filtered(logits_V: torch.Tensor, way: Sampling) -> torch.Tensor:
    """Probabilities (float64) after temperature, top-k, min-p and top-p, in that order."""
    probs_V = torch.softmax(logits_V.double() / way.temperature, -1)
    ranked_V, order_V = probs_V.sort(descending=True, stable=True)
    keep_V = torch.ones_like(ranked_V, dtype=torch.bool)
    if way.top_k:
        keep_V[way.top_k :] = False
    if way.min_p:
        keep_V &= ranked_V >= way.min_p * ranked_V[0]
    if way.top_p < 1:
        kept_V = torch.where(keep_V, ranked_V, 0.0)
        kept_V = kept_V / kept_V.sum()
        keep_V &= kept_V.cumsum(0) - kept_V < way.top_p
    keep_V[0] = True
    out_V = torch.zeros_like(probs_V)
    out_V[order_V] = torch.where(keep_V, ranked_V, 0.0)
    return out_V / out_V.sum()


class _Run:
    """One batch: prompts read once, then a token per row and step; rows that have ended leave the batch when half of it has."""

    def __init__(self, loaded: Loaded, way: Sampling, stop: tuple[str, ...], limit: int, seed: int, lexicons: Sequence[Lexicon] | None) -> None:
        self.loaded, self.way, self.stop, self.limit, self.seed = loaded, way, stop, limit, seed
        self.ends, self.lexicons = end_ids(loaded), lexicons

    def write(self, rows: list[list[int]], places: Sequence[int]) -> list[list[int]]:
        tokens_BT, mask_BT, positions_BT = left_padded(self.loaded, rows)
        draws = [np.random.Generator(np.random.PCG64([self.seed, int(place)])) for place in places]
        seen = [torch.tensor(sorted(set(row)), device=tokens_BT.device) for row in rows]
        written: list[list[int]] = [[] for _ in rows]
        alive, cache, name = list(range(len(rows))), None, cache_name(self.loaded.model)
        for _ in range(self.limit):
            out = self.loaded.model(input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=True, logits_to_keep=1, **{name: cache})
            cache = out[name]
            chosen = []
            for place, row in enumerate(alive):
                logits_V = out.logits[place, -1].float() if row < 0 or self.lexicons is None else self.within(out.logits[place, -1].float(), row, written[row])
                token = self.choose(logits_V, seen[row], draws[row]) if row >= 0 else self.loaded.tokenizer.pad_token_id
                chosen.append(token)
                if row >= 0:
                    written[row].append(token)
                    if self.way.repetition != 1:
                        seen[row] = torch.unique(torch.cat([seen[row], torch.tensor([token], device=seen[row].device)]))
                    if token in self.ends or self.stopped(written[row]):
                        alive[place] = -1
            keep = [place for place, row in enumerate(alive) if row >= 0]
            if not keep:
                break
            if 2 * len(keep) <= len(alive):
                picked = torch.tensor(keep, device=tokens_BT.device)
                cache.batch_select_indices(picked)
                mask_BT, positions_BT = mask_BT[picked], positions_BT[picked]
                alive, chosen = [alive[place] for place in keep], [chosen[place] for place in keep]
            tokens_BT = torch.tensor(chosen, device=mask_BT.device)[:, None]
            mask_BT = torch.cat([mask_BT, torch.ones_like(tokens_BT)], 1)
            positions_BT = positions_BT[:, -1:] + 1
        return written

    def within(self, logits_V: torch.Tensor, row: int, written: Sequence[int]) -> torch.Tensor:
        """The logits of the tokens that the row's words allow, the others out of reach."""
        assert self.lexicons is not None
        allowed = torch.tensor(sorted(self.lexicons[row].allowed(written)), device=logits_V.device)
        out_V = torch.full_like(logits_V, -torch.inf)
        out_V[allowed] = logits_V[allowed]
        return out_V

    def choose(self, logits_V: torch.Tensor, seen: torch.Tensor, draw: np.random.Generator) -> int:
        if self.way.repetition != 1:
            old = logits_V[seen]
            logits_V = logits_V.clone()
            logits_V[seen] = torch.where(old > 0, old / self.way.repetition, old * self.way.repetition)
        if self.way.temperature == 0:
            return int(logits_V.argmax())
        cumulative_V = filtered(logits_V, self.way).cumsum(0)
        at = torch.searchsorted(cumulative_V, float(draw.random()) * float(cumulative_V[-1]), right=True)
        return int(at.clamp(max=len(cumulative_V) - 1))

    def stopped(self, tokens: list[int]) -> bool:
        if not self.stop:
            return False
        reach = 4 * max(len(text) for text in self.stop) + 8
        return any(text in _decode(self.loaded, tokens[-reach:]) for text in self.stop)


def end_ids(loaded: Loaded) -> frozenset[int]:
    """Every token that ends a text: the tokenizer's, the config's and the generation config's."""
    found = [loaded.tokenizer.eos_token_id, loaded.model.config.get_text_config().eos_token_id, loaded.model.generation_config.eos_token_id]
    return frozenset(index for entry in found if entry is not None for index in ([entry] if isinstance(entry, int) else entry))


def _prompt_rows(loaded: Loaded, prompts: Sequence[str | Sequence[int]], room: int) -> list[list[int]]:
    texts = [index for index, prompt in enumerate(prompts) if isinstance(prompt, str)]
    rows: list[list[int]] = [[] if isinstance(prompt, str) else list(prompt)[-room:] for prompt in prompts]
    for index, row in zip(texts, encode(loaded.tokenizer, [str(prompts[index]) for index in texts], context=room, truncate="head"), strict=True):
        rows[index] = row
    if not all(rows):
        raise UsageError("a prompt of no tokens", allowed="a text, or at least one token id")
    return rows


def _decode(loaded: Loaded, tokens: Sequence[int]) -> str:
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for at in (text.find(end) for end in stop) if at >= 0), default=len(text))]
