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
from knowhow.explain.sweep import Metric
from knowhow.model import channel, infer
from knowhow.model.loaded import Loaded
from knowhow.model.taps import tap

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
        return lambda texts, label: self.margins(self.rows(texts), [label] * len(texts), self.beside(texts))

    def beside(self, texts: Sequence[str]) -> np.ndarray | None:
        """What n-grams beside the model add to its logits, NC."""
        return None if self.loaded.ngrams is None else self.loaded.ngrams.logits([self.before + text for text in texts])

    def margins(self, rows: Sequence[Sequence[int]], labels: Sequence[int], beside_NC: np.ndarray | None = None) -> np.ndarray:
        """How far each row of tokens speaks for its own label, N in nats; above 0 it is the answer. Without `beside_NC` the model speaks alone."""
        found_N, labels_N = np.zeros(len(rows)), np.asarray(labels)
        for label in sorted(set(labels)) if self.loaded.head == "channel" else [None]:
            at = np.flatnonzero(labels_N == label) if label is not None else np.arange(len(rows))
            logits_NC = self.answers([rows[row] for row in at], label)
            if beside_NC is not None:
                logits_NC = logits_NC + beside_NC[at]
            found_N[at] = self.metric(labels_N[at].tolist())(torch.from_numpy(logits_NC).double()).numpy()
        return found_N

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, as the model reads them."""
        return infer.encode(self.loaded.tokenizer, [(self.before + text).rstrip() for text in texts], context=self.context, truncate=self.truncate)

    def metric(self, labels: Sequence[int]) -> Metric:
        """Logits BC → how far each row speaks for its own label, B in nats."""
        own_B = torch.tensor(list(labels))

        def metric(logits_BC: torch.Tensor) -> torch.Tensor:
            at_B, own = torch.arange(len(own_B), device=logits_BC.device), own_B.to(logits_BC.device)
            held_B = logits_BC[at_B, own]
            if self.many:
                return held_B - torch.tensor(self.cuts, dtype=torch.float64).to(held_B)[own]
            return held_B - logits_BC.scatter(1, own[:, None], -torch.inf).max(1).values

        return metric

    def inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Rows side by side, the padding marked (a causal model needs no mask; means and head scores do)."""
        return dict(zip(("input_ids", "attention_mask"), infer.padded(self.loaded, rows), strict=True))

    def answers(self, rows: Sequence[Sequence[int]], label: int | None = None) -> np.ndarray:
        """Logits NC; with `label` only its column need be right."""
        if self.loaded.head != "channel":
            return infer.class_logits(self.loaded, rows)
        found = channel.class_logits(self.loaded, rows, only=label if self.many else None)
        return found if label is None or not self.many else np.repeat(found, len(self.loaded.labels), 1)

    def said(self, texts: Sequence[str]) -> np.ndarray:
        """Which labels hold, NC bool."""
        logits_NC = self.answers(self.rows(texts))
        if (beside_NC := self.beside(texts)) is not None:
            logits_NC = logits_NC + beside_NC
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
        return _summed(given_T.tolist(), offsets, parts)

    return scores


def by_attention(asked: Asked) -> Method:
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): how much of each token the answer's position has looked at through all layers, heads
    averaged, half of each layer passing through; of an encoder the mean over positions. The same for every label: a floor, not an explanation.

    Raises UsageError for a channel."""
    if asked.loaded.head == "channel":
        raise UsageError("attention of a channel's answer", allowed="a classifier", fix="take occlusion")

    def scores(text: str, parts: Units, label: int) -> np.ndarray:
        tokens, offsets = located(asked, text)
        with torch.no_grad(), tap(asked.loaded.model, "layers.*.attn.pattern") as seen:
            asked.loaded.model(input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))
        rolled_TT = torch.eye(len(tokens))
        for pattern_BHTS in seen.all().values():
            rolled_TT = (pattern_BHTS[0].mean(0).float() + torch.eye(len(tokens))) / 2 @ rolled_TT
        looked_T = rolled_TT[-1] if asked.loaded.kind == "causal" else rolled_TT.mean(0)
        return _summed(looked_T.tolist(), offsets, parts)

    return scores


def _summed(given_T: Sequence[float], offsets: Sequence[tuple[int, int] | None], parts: Units) -> np.ndarray:
    """Scores of tokens, summed over the tokens of each unit."""
    return np.array([sum(score for score, at in zip(given_T, offsets) if at and at[0] < end and start < at[1]) for start, end in parts.ranges])


def located(asked: Asked, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Tokens of a text as the model reads them, and the characters of each (None for the family's frame)."""
    tokenizer = asked.loaded.tokenizer
    whole, shift = (asked.before + text).rstrip(), len(asked.before)
    row = infer.encode(tokenizer, [whole], context=asked.context, truncate=asked.truncate)[0]
    before, after = infer.frame(tokenizer)
    with infer.text_only(tokenizer.backend_tokenizer):
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
