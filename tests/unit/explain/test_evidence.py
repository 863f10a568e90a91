"""Evidence is what an answer falls without, and says so when it is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.asking import Asked, by_gradient, located
from knowhow.explain.evidence import at_random, check, choose, fit_share, occlusion, overlap, units
from knowhow.model import toys
from knowhow.model.load import load
from knowhow.types import Span

TEXT = "open a file\n\nread it\nstart a fire\nclose\nfan the fire"


def burning(texts: Sequence[str], label: int) -> np.ndarray:
    """Two lines of fire make the label hold, one does not."""
    return np.array([text.count("fire") - 1.5 for text in texts])


def anything(texts: Sequence[str], label: int) -> np.ndarray:
    return np.ones(len(texts))


def test_units_are_lines_then_sentences_then_words() -> None:
    parts = units(TEXT)
    assert [TEXT[start:end] for start, end in parts.ranges] == ["open a file", "read it", "start a fire", "close", "fan the fire"]
    assert parts.without([2, 4]) == "open a file\n\nread it\nclose\n"
    assert parts.only([2]) == "\nstart a fire\n"
    assert [span.kind for span in parts.spans([4, 2], "arson")] == ["arson", "arson"]
    assert parts.of([Span(15, 16, "x")]).tolist() == [False, True, False, False, False]
    assert len(units("One. Two! Three?").ranges) == 3
    assert len(units("three plain words").ranges) == 3
    assert units("").ranges == ()
    many = units("\n".join(f"line {at}" for at in range(1000)), most=64)
    assert len(many.ranges) <= 64
    assert many.ranges[0][0] == 0
    assert many.ranges[-1][1] == len(many.text)


def test_occlusion_finds_the_lines_and_the_answer_falls_without_them() -> None:
    parts = units(TEXT)
    scores = occlusion(burning)(TEXT, parts, 0)
    chosen = choose(scores, 0.5)
    assert chosen == (2, 4)
    found = check(burning, parts, 0, chosen, scores, draws=20)
    assert (found.necessity, found.sufficiency) == (2.0, 0.0)
    assert found.necessity_flips
    assert not found.sufficiency_flips
    assert found.random_necessity_flips < 1.0
    truth = parts.of([Span(TEXT.index("start"), TEXT.index("close"), "fire"), Span(TEXT.index("fan"), len(TEXT), "fire")])
    assert overlap(chosen, truth) == {"precision": 1.0, "recall": 1.0, "iou": 1.0}
    assert overlap((0,), truth)["iou"] == 0.0


def test_an_answer_that_rests_on_nothing_is_told_from_one_that_does() -> None:
    parts = units(TEXT)
    scores = occlusion(anything)(TEXT, parts, 0)
    found = check(anything, parts, 0, choose(scores, 0.3), scores)
    assert not found.necessity_flips
    assert found.necessity == found.random_necessity == 0.0
    assert len(choose(scores, 0.3)) == 1
    with pytest.raises(UsageError, match="without a word"):
        check(anything, units("  "), 0, (), np.zeros(0))


def test_the_share_is_the_one_that_fits_the_truth() -> None:
    truth = np.array([True, True, False, False])
    assert fit_share([(np.array([1.0, 0.75, 0.45, 0.2]), truth)] * 3) in (0.5, 0.6, 0.7)
    assert fit_share([(np.array([1.0, 0.15, 0.05, 0.0]), truth)]) in (0.07, 0.1, 0.15)
    drawn = at_random(0)
    assert not np.array_equal(drawn(TEXT, units(TEXT), 0), drawn(TEXT, units(TEXT), 0))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Asked]:
    def make(family: str, context: int = 64, instruction: str = "") -> Asked:
        loaded = load(str(toys.twin(family, tmp_path_factory.mktemp(family) / "m")), head="classifier", labels=("cold", "warm"))
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 1)
        return Asked(loaded, context, "middle", False, (0.0, 0.0), instruction)

    return make


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_gradients_of_every_token_land_on_its_line(asked: Callable[..., Asked], family: str) -> None:
    model = asked(family, instruction="Which is it?")
    parts = units(TEXT)
    tokens, offsets = located(model, TEXT)
    assert len(tokens) == len(offsets) <= 64
    assert all(at is None or -14 <= at[0] <= at[1] <= len(TEXT) for at in offsets)
    for integrated in (False, True):
        scores = by_gradient(model, integrated=integrated)(TEXT, parts, 1)
        assert scores.shape == (5,)
        assert np.abs(scores).max() > 0
    score = model.scorer()
    drop = occlusion(score)(TEXT, parts, 1)
    assert drop[2] == pytest.approx(score([TEXT], 1)[0] - score([parts.without([2])], 1)[0], abs=1e-5)
    assert model.said([TEXT]).sum() == 1


def test_a_text_that_was_cut_in_the_middle_keeps_its_places(asked: Callable[..., Asked]) -> None:
    long = "\n".join(f"line number {at}" for at in range(40))
    tokens, offsets = located(asked("llama", context=32), long)
    assert len(tokens) == 32
    starts = [at[0] for at in offsets if at is not None]
    assert starts == sorted(starts)
    assert max(b - a for a, b in itertools.pairwise(starts)) > 100
