"""Batches: every row once an epoch, little padding, mixed lengths in a step, and an order that survives a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from knowhow.data.batch import IGNORE, TokenBudget, by_length, collate, rows


def made(n: int = 3000, seed: int = 0) -> TokenBudget:
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(4.5, 0.8, n).astype(int), 16, 512)
    lists = [random.integers(1, 90, size=length).tolist() for length in lengths]
    return TokenBudget(rows(lists, [str(i) for i in range(n)]), 8192, 2048, pad=0, seed=1)


def test_every_row_comes_once_an_epoch_and_epochs_differ():
    budget = made()
    first, second = budget.plan(0), budget.plan(1)
    assert sorted(np.concatenate([rows for step in first for rows in step])) == list(range(3000))
    assert [rows.tolist() for step in first for rows in step] != [rows.tolist() for step in second for rows in step]
    assert [rows.tolist() for step in first for rows in step] == [rows.tolist() for step in made().plan(0) for rows in step]


def test_padding_is_small_and_steps_mix_lengths():
    budget = made()
    plan = budget.plan(0)
    lengths = budget.rows.lengths
    padded = sum(len(chosen) * int(lengths[chosen].max()) for step in plan for chosen in step)
    assert lengths.sum() / padded > 0.95
    spreads = [max(lengths[chosen].max() for chosen in step) / min(lengths[chosen].min() for chosen in step) for step in plan]
    assert np.median(spreads) > 3


def test_microbatches_keep_to_the_budget_unless_one_row_is_longer():
    lengths = np.array([10, 10, 10, 5000, 20])
    parts = by_length(np.arange(5), lengths, 64)
    assert [part.tolist() for part in parts][-1] == [3]
    assert sorted(np.concatenate(parts)) == [0, 1, 2, 3, 4]
    assert all(len(part) * -(-lengths[part].max() // 8) * 8 <= 64 for part in parts if 3 not in part)


def test_restore_goes_on_where_it_stopped():
    whole, stopped = made(400), made(400)
    stream = iter(whole)
    taken = [next(stream) for _ in range(30)]
    other = iter(stopped)
    for _ in range(13):
        next(other)
    again = made(400)
    again.restore(stopped.state())
    rest = iter(again)
    for expected in taken[13:]:
        got = next(rest)
        assert [b.ids for b in got] == [b.ids for b in expected]


def test_targets_are_the_next_tokens_that_are_supervised():
    made_rows = rows([[5, 6, 7, 8], [9, 10]], ["a", "b"], supervised=[[False, False, True, True], [False, True]])
    batch = collate(made_rows, np.array([0, 1]), pad=0, language_model=True)
    assert batch.targets_BT[0, :4].tolist() == [IGNORE, 7, 8, IGNORE]
    assert batch.targets_BT[1, :3].tolist() == [10, IGNORE, IGNORE]
    assert batch.mask_BT.sum() == 6


def test_rows_of_a_group_meet_in_a_step():
    random = np.random.default_rng(0)
    lengths = np.repeat(random.integers(5, 60, 400), 2)
    batches = TokenBudget(rows([[1] * n for n in lengths], [str(i) for i in range(800)], groups=[str(i // 2) for i in range(800)]), 1024, 512, 0, seed=0)
    steps = [{int(row) for micro in step for row in micro} for step in batches.plan(0)]
    assert sorted(row for step in steps for row in step) == list(range(800))
    together = sum(row ^ 1 in step for step in steps for row in step)
    assert together > 0.8 * 800
    plain = TokenBudget(replace(batches.rows, groups=()), 1024, 512, 0, seed=0)
    apart = [{int(row) for micro in step for row in micro} for step in plain.plan(0)]
    assert sum(row ^ 1 in step for step in apart for row in step) < 0.5 * 800
