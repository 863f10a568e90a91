"""What is told of made-up lives: nothing that the looks do not show, and the wrong order of heads as such."""

from __future__ import annotations

import math

import pytest

from knowhow.laws import NAMES
from knowhow.study.crossings import crossing, highest, lowest, steepest
from knowhow.study.story import LAWS, NO_LAW, Event, story

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def life(**columns: list[float]) -> list[dict[str, float]]:
    """Rows with the given columns; `_` in a name stands for a dot, `__` for an underscore."""
    named = {name.replace("__", "\0").replace("_", ".").replace("\0", "_"): values for name, values in columns.items()}
    return [{"step": step, **{name: values[at] for name, values in named.items()}} for at, step in enumerate(STEPS)]


def only(rows: list[dict[str, float]], what: str) -> Event:
    (event,) = [event for event in story(rows) if event.what == what]
    return event


def test_a_crossing_needs_two_more_looks():
    looks = list(zip(STEPS, [0, 1, 0, 0, 1, 1, 1, 1]))
    found = crossing(looks, 0.5)
    assert (found.before, found.step, found.confirmed) == (8, 16, 2)
    assert crossing(looks[:2], 0.5).confirmed == 0
    assert crossing(looks[:4], 0.5) is None
    assert crossing([(1, 1.0), (2, 1.0), (4, 1.0)], 0.5).before is None
    assert crossing(looks, -1, above=False) is None


def test_the_steepest_change_is_per_step_or_per_e_fold():
    looks = [(1, 0.0), (2, 1.0), (100, 9.0), (101, 9.5)]
    assert (steepest(looks).before, steepest(looks).step) == (100, 101)
    assert (steepest(looks, per_log=False).before, steepest(looks, per_log=False).step) == (1, 2)
    assert steepest(looks, fall=True) is None
    assert lowest(looks) == (1, 0.0)
    assert highest(looks) == (101, 9.5)


ROSE_EARLY, ROSE_LATE, NEVER = [0, 0, 0.4, 0.5, 0.5, 0.6, 0.6, 0.6], [0, 0, 0, 0, 0.1, 0.7, 0.8, 0.9], [0.01] * 8


@pytest.mark.parametrize(
    ("previous", "induction", "words", "value"),
    [
        (ROSE_EARLY, ROSE_LATE, "the order that the law states", 1.0),
        (ROSE_LATE, ROSE_EARLY, "induction heads came before previous-token heads: against", 0.0),
        (ROSE_LATE, ROSE_LATE, "cannot be told", 0.5),
        (NEVER, ROSE_LATE, "without any previous-token head: against", 0.0),
    ],
)
def test_the_order_of_heads_is_told_as_it_was(previous, induction, words, value):
    rows = [
        {"step": step, "circuits.layers.0.heads.1.previous": previous[at], "circuits.layers.1.heads.0.induction": induction[at]}
        for at, step in enumerate(STEPS)
    ]  # fmt: skip
    order = only(rows, "order of heads")
    assert words in order.told
    assert order.value == value
    assert order.law == "induction"


def test_without_induction_heads_there_is_no_order():
    rows = [{"step": step, "layers.0.heads.0.previous": ROSE_EARLY[at], "layers.0.heads.0.induction": 0.02} for at, step in enumerate(STEPS)]
    assert not [event for event in story(rows) if event.what == "order of heads"]
    assert only(rows, "previous-token head").step == 4
    never = only(rows, "induction head")
    assert never.step is None
    assert never.value == 0.02


def test_n_gram_stages():
    rows = life(
        ngrams_text_loss=[5, 4, 3, 2.5, 2.4, 1.9, 1.8, 1.7], ngrams_text_loss_1=[2.9] * 8, ngrams_text_loss_2=[2.0] * 8, ngrams_text_loss_3=[1.0] * 8,
        ngrams_text_kl_1=[2, 1, 0.1, 0.5, 1, 2, 2, 2], ngrams_text_kl_2=[3, 2, 1, 0.9, 0.8, 0.7, 0.6, 0.5],
    )  # fmt: skip
    assert (only(rows, "below unigram").before, only(rows, "below unigram").step) == (4, 8)
    assert only(rows, "below bigram").step == 32
    assert only(rows, "below bigram").law == "bigram-floor"
    assert only(rows, "below trigram").step is None
    assert only(rows, "nearest unigram").step == 4
    assert only(rows, "nearest bigram").step is None  # still coming nearer
    shipped = [{"step": step, "valid.text": value} for step, value in zip(STEPS, [5, 4, 3, 2, 2, 2, 2, 2])]
    (event,) = story(shipped, {"text": {"unigram": 3.5, "model": 2.0}})
    assert (event.what, event.step) == ("below unigram", 4)


def test_ranks_are_those_of_weights_and_relative_to_the_start():
    rows = life(
        spectra_a_stable__rank=[10, 10, 9.5, 8, 8, 8, 8, 8], spectra_b_stable__rank=[4, 4, 4, 3.4, 3.3, 3, 3, 3],
        spectra_a_gradient_stable__rank=[9, 1, 1, 1, 1, 1, 1, 1],
    )  # fmt: skip
    event = only(rows, "lower stable rank")
    assert event.step == 8
    assert all("gradient" not in name for name in event.columns)
    constant = life(spectra_a_stable__rank=[10.0] * 8)
    assert only(constant, "lower stable rank").step is None


def test_what_else_is_watched_for():
    rows = life(
        sparsity_layers_0_small=[0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3], outliers_layers_0_kurtosis=[3, 3, 3, 3, 30, 30, 30, 30],
        geometry_nc1=[1, 1, 0.5, 0.05, 0.04, 0.03, 0.03, 0.03],
        probes_layers_1_score=[0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], probes_layers_1_shuffled=[0.5] * 8, tokens_loss_fresh=[5, 5, 5, 5, 5, 5, 5, 5],
        tokens_loss_copied=[5, 5, 5, 4, 3, 3, 3, 3], loss=[5, 4.9, 4.8, 2, 2, 2, 2, 2],
    )  # fmt: skip
    steps = {event.what: event.step for event in story(rows)}
    assert steps == {"label readable": 2, "sparser activations": 8, "class means collapse": 8, "repeated pairs": 8, "steepest drop": 8, "outliers": 16}


def test_numbers_that_are_none_are_not_seen():
    rows = life(geometry_nc1=[1, math.nan, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
    rows[3]["geometry.nc1"] = None
    event = only(rows, "class means collapse")
    assert (event.before, event.step) == (1, 4)
    assert story([]) == []
    assert story([{"step": 1}]) == []


def test_laws_named_are_laws():
    assert {*LAWS.values(), "nuclear-norm", "neural-collapse"} <= set(NAMES)
    assert NO_LAW not in NAMES


def test_events_come_in_order_and_what_did_not_happen_last():
    rows = life(loss=[5, 4, 3, 2, 1, 1, 1, 1], layers_0_heads_0_sink=[0.0] * 8, geometry_nc1=[1, 1, 1, 1, 1, 0.01, 0.01, 0.01])
    steps = [event.step for event in story(rows)]
    assert steps[-1] is None
    assert steps[:-1] == sorted(steps[:-1])
