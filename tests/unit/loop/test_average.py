"""The running mean of the weights, and inputs with tokens left out."""

from __future__ import annotations

import numpy as np
import torch

from knowhow.data.batch import TokenBudget, collate, rows, thinned
from knowhow.loop.average import Average


def test_the_mean_follows_the_weights_and_steps_aside():
    model = torch.nn.Linear(2, 2)
    average = Average(model, 0.9)
    seen = []
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update()
        seen.append(step)
    own = model.weight.clone()
    with average.applied():
        assert 25 < float(model.weight.detach().mean()) < 39
    assert torch.equal(model.weight, own)
    again = Average(model, 0.9)
    again.restore({name: value.clone() for name, value in average.state().items()})
    with average.applied():
        first = model.weight.clone()
    with again.applied():
        assert torch.equal(first, model.weight)


def test_tokens_left_out_keep_their_order_and_the_ends():
    made = rows([list(range(1, 101)), list(range(1, 41))], ["a", "b"])
    batch = collate(made, np.array([0, 1]), pad=0, language_model=False)
    thin = thinned(batch, 0.3, 0, np.random.default_rng(0))
    for row, last in ((0, 100), (1, 40)):
        kept = thin.tokens_BT[row][thin.mask_BT[row]]
        assert kept[0] == 1
        assert kept[-1] == last
        assert (kept[1:] > kept[:-1]).all()
        assert 0.5 * last < len(kept) < 0.9 * last
    assert int(thin.tokens_BT[~thin.mask_BT].sum()) == 0


def test_what_is_left_out_differs_by_visit_and_not_by_run():
    def stream() -> TokenBudget:
        return TokenBudget(rows([list(range(1, 60))] * 8, list("abcdefgh")), 128, 64, 0, 0, drop=0.2)

    first, second = iter(stream()), iter(stream())
    steps = [next(first) for _ in range(12)]
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for one, two in zip(steps, [next(second) for _ in range(12)]) for a, b in zip(one, two))
    assert len({tuple(batch.tokens_BT[0].tolist()) for step in steps for batch in step}) > 3
