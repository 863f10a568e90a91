"""The generative objective: the text's likelihood after its labels, some of many hidden."""

from __future__ import annotations

import pytest
import torch

from knowhow.adapt.channel import Channel
from knowhow.model import channel, toys
from knowhow.model.load import Loaded, load
from knowhow.types import Batch

LABELS = ("benign", "rat", "ransomware")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toys.twin("llama", tmp_path_factory.mktemp("twin") / "llama", seed=1))


def loaded(folder: str, *, many: bool) -> Loaded:
    return load(folder, head="channel", labels=LABELS, many=many)


def batch(labels: torch.Tensor, weights: torch.Tensor | None = None) -> Batch:
    tokens = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.arange(9) < torch.tensor([9, 6, 3])[:, None], labels=labels, weight_B=weights)


def objective(made: Loaded) -> Channel:
    return Channel(channel.states(made), made.tokenizer.eos_token_id)


def test_one_label_is_learnt_with_its_text(folder: str) -> None:
    made, weights = loaded(folder, many=False), torch.tensor([1.0, 2.0, 0.5])
    rows = batch(torch.tensor([2, 0, 1]), weights)
    loss, _ = objective(made)(made.model, rows)
    want = 0.0
    for row, length, label, weight in zip(rows.tokens_BT, (9, 6, 3), (2, 0, 1), weights):
        ids = torch.cat([torch.tensor([made.tokenizer.eos_token_id, int(channel.states(made)[label])]), row[:length]])
        logp = made.model(input_ids=ids[None]).logits[0, :-1].detach().log_softmax(-1)
        want -= float(weight * logp.gather(1, ids[1:, None]).sum())
    assert loss.item() == pytest.approx(want, rel=1e-5)
    assert objective(made).units(rows) == pytest.approx(10 + 2 * 7 + 0.5 * 4)


def test_of_many_labels_a_random_share_is_hidden_and_none_is_wrong(folder: str) -> None:
    made = loaded(folder, many=True)
    asked, labels = objective(made), torch.tensor([[1.0, 0.0, 1.0]]).repeat(4000, 1)
    torch.manual_seed(0)
    given = asked.given(labels)
    states = channel.states(made)
    hidden = given == states[:, channel.UNKNOWN]
    right = given == states[torch.arange(3), torch.tensor([1, 0, 1])]
    assert bool((hidden | right).all())
    assert 0.31 < hidden.float().mean() < 0.36, "the mean of a squared uniform share"
    assert 0.12 < hidden.all(1).float().mean() < 0.17, "the share is the row's: all three are hidden in one row of seven, not in 1 of 27"
    torch.manual_seed(0)
    assert torch.equal(asked.given(labels), given)


def test_labels_are_not_targets_where_there_are_many(folder: str) -> None:
    made = loaded(folder, many=True)
    rows = batch(torch.tensor([[1.0, 0.0, 0.0]] * 3))
    torch.manual_seed(3)
    loss, _ = objective(made)(made.model, rows)
    torch.manual_seed(3)
    given = objective(made).given(rows.labels)
    want = 0.0
    for row, length, told in zip(rows.tokens_BT, (9, 6, 3), given):
        ids = torch.cat([torch.tensor([made.tokenizer.eos_token_id]), told, row[:length]])
        logp = made.model(input_ids=ids[None]).logits[0, :-1].detach().log_softmax(-1)
        want -= float(logp.gather(1, ids[1:, None])[3:].sum())
    assert loss.item() == pytest.approx(want, rel=1e-5)
    assert objective(made).units(rows) == 18


def test_its_answers_learn_a_rule_that_its_tokens_show(folder: str) -> None:
    """Label: whether the text begins with one of two tokens."""
    made = loaded(folder, many=True)
    made.model.train()
    random = torch.Generator().manual_seed(0)
    asked, optimizer = objective(made), torch.optim.AdamW(made.model.parameters(), 3e-3)
    tokens = torch.randint(5, 9, (256, 2), generator=random)
    labels = (tokens[:, :1] < 7).float().repeat(1, 3)
    for _ in range(60):
        optimizer.zero_grad()
        rows = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), labels=labels)
        (asked(made.model, rows)[0] / asked.units(rows)).backward()
        optimizer.step()
    found = torch.from_numpy(channel.class_logits(made, tokens.tolist()))
    assert ((found > 0).float() == labels).float().mean() > 0.97
