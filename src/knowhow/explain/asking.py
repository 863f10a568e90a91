"""A classifier as evidence sees it: texts in, out how far each speaks for one label.

Shape letters: N texts, C labels, T tokens, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from knowhow.errors import UsageError
from knowhow.explain.attribution import gradient_x_input, integrated_gradients
from knowhow.explain.evidence import Method, Scorer, Units
from knowhow.model import channel, infer
from knowhow.model.loaded import Loaded

STEPS = 8
"""Points of the integral for evidence: ranking lines needs no more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`cuts` C: the logit above which a label holds (many labels); `context`, `truncate`: as the specialist was
    packaged with; `instruction`: what stands before every text."""

    loaded: Loaded
    context: int
    truncate: infer.Cut
    many: bool
    cuts: tuple[float, ...]
    instruction: str = ""

    @property
    def before(self) -> str:
        return f"{self.instruction}\n\n" if self.instruction else ""

    def scorer(self) -> Scorer:
        """Many labels: logit less its cut; one label: logit less the best other (a margin, so that a rival's fall counts too)."""

        def score(texts: Sequence[str], label: int) -> np.ndarray:
            logits_NC = self.logits(texts, label)
            if self.many:
                return logits_NC[:, label] - self.cuts[label]
            return logits_NC[:, label] - np.delete(logits_NC, label, 1).max(1)

        return score

    def logits(self, texts: Sequence[str], label: int | None = None) -> np.ndarray:
        """NC; with `label` only its column need be right."""
        rows = infer.encode(self.loaded.tokenizer, [(self.before + text).rstrip() for text in texts], context=self.context, truncate=self.truncate)
        if self.loaded.head != "channel":
            return infer.class_logits(self.loaded, rows)
        found = channel.class_logits(self.loaded, rows, only=label if self.many else None)
        return found if label is None or not self.many else np.repeat(found, len(self.loaded.labels), 1)

    def said(self, texts: Sequence[str]) -> np.ndarray:
        """Which labels hold, NC bool."""
        logits_NC = self.logits(texts)
        if self.many:
            return logits_NC > np.array(self.cuts)
        return logits_NC == logits_NC.max(1, keepdims=True)


def by_gradient(asked: Asked, *, integrated: bool) -> Method:
    """Token scores (gradient × input, or integrated gradients) of the label's logit, summed over each unit's tokens.

    Raises UsageError for a channel, whose answer is no logit of one pass."""
    if asked.loaded.head == "channel":
        raise UsageError("gradients of a channel's answer", allowed="a classifier", fix="take occlusion")
    model = asked.loaded.model

    def scores(text: str, parts: Units, label: int) -> np.ndarray:
        tokens, offsets = located(asked, text)
        inputs = {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
        metric: Callable[[torch.Tensor], torch.Tensor] = lambda logits_BC: logits_BC[:, label]  # noqa: E731
        if integrated:
            given_T = integrated_gradients(model, inputs, metric, steps=STEPS, most=STEPS).scores[0]
        else:
            given_T = gradient_x_input(model, inputs, metric)[0]
        return np.array([sum(float(s) for s, at in zip(given_T, offsets) if at and at[0] < end and start < at[1]) for start, end in parts.ranges])

    return scores


def located(asked: Asked, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Tokens of a text as the model reads them, and the characters of each (None for the family's frame)."""
    tokenizer = asked.loaded.tokenizer
    whole, shift = (asked.before + text).rstrip(), len(asked.before)
    row = infer.encode(tokenizer, [whole], context=asked.context, truncate=asked.truncate)[0]
    before, after = infer.frame(tokenizer)
    encoding = tokenizer.backend_tokenizer.encode(whole, add_special_tokens=False)
    room = asked.context - len(before) - len(after)
    where = infer.cut(list(range(len(encoding.ids))), room, asked.truncate)
    offsets: list[tuple[int, int] | None] = [
        *[None] * len(before),
        *((encoding.offsets[at][0] - shift, encoding.offsets[at][1] - shift) for at in where),
        *[None] * len(after),
    ]
    if len(offsets) != len(row):
        raise UsageError("a text that spells control tokens", allowed="plain text", fix="take occlusion, which needs no tokens")
    return row, offsets
