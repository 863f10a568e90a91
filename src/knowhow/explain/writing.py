"""A written answer as evidence sees it: how surely a prompt still leads to exactly that answer, and what each of its tokens rests on.

Greedy decoding writes an answer when each of its tokens is the likeliest after those before it, so the smallest lead of a token over its best rival says
by how much the answer holds: above 0 it is what the model writes. Shape letters: N texts, B rows, T tokens, A answer tokens, U units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.evidence import Scorer, Units
from knowhow.model import infer
from knowhow.model.loaded import Loaded


@dataclass(frozen=True, slots=True)
class Written:
    """`render`: the text of a prompt → all that the model reads before it answers; `answers`: what it wrote; a "label" is an index into them;
    `context`: tokens of prompt and answer together."""

    loaded: Loaded
    context: int
    render: Callable[[str], str]
    answers: tuple[str, ...]

    def scorer(self) -> Scorer:
        """The smallest lead of the answer's tokens, N in nats."""
        return lambda texts, label: self.leads(texts, label).min(1)

    def leads(self, texts: Sequence[str], label: int) -> np.ndarray:
        """Lead of every token of the answer over its best rival, NA in nats. Raises UsageError for an answer that leaves no room for a prompt."""
        answer = self.tokens(label)
        if not answer or len(answer) >= self.context:
            raise UsageError(f"an answer of {len(answer)} tokens", allowed=f"1 to {self.context - 1}")
        prompts = infer.encode(self.loaded.tokenizer, [self.render(text) for text in texts], context=self.context - len(answer), truncate="head")
        return leads(self.loaded, prompts, answer)

    def tokens(self, label: int) -> list[int]:
        return infer.pieces(self.loaded.tokenizer, [self.answers[label]])[0]

    def by_token(self, text: str, parts: Units, label: int) -> tuple[list[str], np.ndarray]:
        """(the answer token by token as text, by how much the lead of each falls when a unit is cut out: AU)."""
        leads_NA = self.leads([text, *(parts.without([unit]) for unit in range(len(parts.ranges)))], label)
        pieces = [self.loaded.tokenizer.decode([token]) for token in self.tokens(label)]
        return pieces, (leads_NA[0] - leads_NA[1:]).T


@torch.no_grad()
def leads(loaded: Loaded, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, batch_tokens: int = 8192) -> np.ndarray:
    """Logit of each answer token less the best other's, after each prompt: NA. Raises UsageError for a model that is no language model."""
    if loaded.head != "lm":
        raise UsageError(f"written answers of a {loaded.head}", allowed="a language model")
    count, rows = len(answer), [[*prompt, *answer] for prompt in prompts]
    found_NA = np.zeros((len(rows), count))
    target_A = torch.tensor(list(answer))
    room = max(1, min(batch_tokens, infer.LOGITS_LIMIT // loaded.model.get_input_embeddings().weight.shape[0]))
    for some in infer.like_lengths([len(row) for row in rows], room):
        tokens_BT, mask_BT = infer.right_padded(loaded, [rows[at] for at in some])
        logits_BTV = loaded.model(input_ids=tokens_BT, attention_mask=mask_BT).logits
        for at, logits_TV in zip(some.tolist(), logits_BTV, strict=True):
            last = len(rows[at]) - 1
            asked_AV = logits_TV[last - count : last].float().cpu()
            own_A = asked_AV.gather(1, target_A[:, None])[:, 0]
            best = asked_AV.topk(2, 1)
            rival_A = torch.where(best.indices[:, 0] == target_A, best.values[:, 1], best.values[:, 0])
            found_NA[at] = (own_A - rival_A).numpy()
    return found_NA
