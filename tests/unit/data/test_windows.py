"""Long streams: shares kept, documents apart, streams side by side, and an order that survives a restart."""

from __future__ import annotations

import numpy as np
import torch

from knowhow.data.batch import IGNORE, TokenBudget, collate, rows
from knowhow.data.windows import Together, Windows, documents, first_documents


def test_windows_keep_the_shares_and_their_place():
    a, b = np.zeros(5000, np.uint16), np.ones(5000, np.uint16)
    stream = Windows([a, b], [3, 1], 16, 8, 4, 50, seed=0)
    taken = iter(stream)
    steps = [next(taken) for _ in range(50)]
    share = torch.cat([batch.tokens_BT for step in steps for batch in step]).float().mean()
    assert abs(float(share) - 0.25) < 0.01
    again = Windows([a, b], [3, 1], 16, 8, 4, 50, seed=0)
    again.restore({"index": 20})
    assert torch.equal(next(iter(again))[0].tokens_BT, steps[20][0].tokens_BT)


def test_documents_are_rows_of_their_own_and_long_ones_are_cut():
    stream = np.array([5, 6, 0, 7, 0, 1, 2, 3, 4, 5, 0, 9, 9], np.uint16)
    made = documents(stream, 0, 4)
    assert [made.tokens[a:b].tolist() for a, b in zip(made.offsets, made.offsets[1:])] == [[5, 6, 0], [7, 0], [1, 2, 3, 4], [5, 0]]
    batch = collate(made, np.array([0, 1]), pad=0, language_model=True)
    assert batch.targets_BT[:, :3].tolist() == [[6, 0, IGNORE], [0, IGNORE, IGNORE]]


def test_validation_documents_come_from_the_front():
    stream = np.tile(np.array([5, 6, 7, 0], np.uint16), 50)
    batches = first_documents(stream, 0, 8, 40)
    assert sum(int(batch.mask_BT.sum()) for batch in batches) == 40
    assert all(batch.tokens_BT.shape[1] == 8 for batch in batches)


def test_streams_side_by_side_all_give_to_every_step_and_go_on_where_they_stopped():
    def together() -> Together:
        windows = Windows([np.zeros(500, np.uint16)], [1], 16, 4, 2, 30, seed=0)
        lists = [[number + 1] * 8 for number in range(60)]
        return Together([windows, TokenBudget(rows(lists, range(60)), 32, 32, pad=0, seed=1, language_model=True)])

    stream = together()
    taken = iter(stream)
    steps = [[batch.tokens_BT for batch in next(taken)] for _ in range(25)]
    assert all(len(step) == 3 and int(step[2].min()) > 0 for step in steps)
    state = stream.state()
    following = [batch.tokens_BT for batch in next(taken)]
    again = together()
    again.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(following, (batch.tokens_BT for batch in next(iter(again))), strict=True))
