"""An answer is held when greedy decoding writes it, by as much as its least sure token leads."""

from __future__ import annotations

import numpy as np
import pytest

from knowhow.errors import UsageError
from knowhow.explain.evidence import occlusion, units
from knowhow.explain.writing import Written, leads
from knowhow.model import infer
from knowhow.model.generate import generate
from knowhow.model.load import load

PROMPTS = ["The sea was calm", "A cat", "HeapAlloc = xdm\nHeapFree xdm"]


@pytest.fixture(scope="module")
def base():
    return load("seedling")


def test_a_lead_above_nothing_is_what_greedy_decoding_writes(base) -> None:
    rows = infer.encode(base.tokenizer, PROMPTS, context=64)
    for at, said in enumerate(generate(base, rows, max_new_tokens=4)):
        answer = infer.pieces(base.tokenizer, [said])[0]
        assert leads(base, rows, answer)[at].min() > 0
        other = [*answer[:-1], (answer[-1] + 1) % 1000]
        changed = leads(base, rows, other)
        assert changed[at, -1] < 0
        assert np.allclose(changed[at, :-1], leads(base, rows, answer)[at, :-1], atol=1e-4), "earlier tokens do not see later ones"
        assert np.allclose(leads(base, rows, answer)[at], leads(base, rows[at : at + 1], answer)[0], atol=1e-4), "alone as in a batch"


def test_tokens_rest_on_lines(base) -> None:
    text = "one two three\nfour five six\nseven"
    asked = Written(base, 64, lambda text: text + "\n", (" the",))
    parts = units(text)
    pieces, falls = asked.by_token(text, parts, 0)
    assert "".join(pieces) == " the"
    assert falls.shape == (len(pieces), 3)
    one = asked.leads([text, parts.without([1])], 0)
    assert falls[:, 1] == pytest.approx(one[0] - one[1])
    assert occlusion(asked.scorer())(text, parts, 0)[1] == pytest.approx(one[0].min() - one[1].min())


def test_what_cannot_be_written_is_refused(base) -> None:
    with pytest.raises(UsageError, match="0 tokens"):
        Written(base, 64, str, ("",)).scorer()(["a b"], 0)
    with pytest.raises(UsageError, match="language model"):
        leads(load("seedling", head="classifier", labels=("a", "b")), [[1, 2]], [3])
