"""Systems of the laws on heads, waves and floors: rows that are what they say, facts that are right."""

from __future__ import annotations

import pytest
import torch

from knowhow.experiments.attention_only import AttentionOnly, turned
from knowhow.experiments.backcopy import Backcopy, copies
from knowhow.experiments.chains import entropies
from knowhow.experiments.language import chain, entropy_rate
from knowhow.experiments.system import System, system
from knowhow.types import Batch


def first(at: System) -> Batch:
    return next(iter(at.batches))[0]


@pytest.mark.parametrize("normalised", [True, False])
def test_attention_sees_no_later_token_and_sums_to_one_where_normalised(normalised: bool) -> None:
    model = AttentionOnly(0, vocab=9, layers=2, heads=2, width=16, normalised=normalised)
    tokens_BT = torch.randint(9, (2, 8), generator=torch.Generator().manual_seed(0))
    changed_BT = tokens_BT.clone()
    changed_BT[:, 5:] = (changed_BT[:, 5:] + 1) % 9
    said, other = model(tokens_BT, output_attentions=True), model(changed_BT)
    assert torch.allclose(said.logits[:, :5], other.logits[:, :5], atol=1e-6)
    assert not torch.allclose(said.logits[:, 5:], other.logits[:, 5:], atol=1e-3)
    sums = torch.cat([pattern.sum(-1).flatten() for pattern in said.attentions])
    assert bool((sums - 1).abs().max() < 1e-5) == normalised
    assert other.attentions == ()


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    scores = turned(query.expand(1, 1, 6, 8)) @ turned(key.expand(1, 1, 6, 8)).transpose(2, 3)
    for distance in range(6):
        assert scores[0, 0].diagonal(-distance).std(correction=0) < 1e-5


def test_the_copying_rows_supervise_the_repeated_tokens() -> None:
    at = system("copying", {"rows": 8, "layers": 1}, 3)
    batch = first(at)
    assert ((batch.targets_BT >= 0).sum(1) == 7).all()
    for row, place in torch.nonzero(batch.targets_BT >= 0).tolist():
        assert batch.targets_BT[row, place] == batch.tokens_BT[row, place + 1]
    assert at.facts["layers"] == 1
    assert at.facts["random_distance"] == 1.0
    assert system("copying", {"distance": 16}, 3).facts["random_distance"] == 0.0


def test_triggers_copy_and_others_follow_the_chain() -> None:
    batch = first(system("backcopy", {"rows": 200, "vocab": 6, "triggers": 2}, 0))
    at_BT = copies(batch.tokens_BT, 2)
    rows, places = torch.nonzero(at_BT, as_tuple=True)
    assert (batch.targets_BT[rows, places] == batch.tokens_BT[rows, places - 1]).all()
    assert (batch.tokens_BT[:, 0] == 0).all()
    assert int(batch.targets_BT.min()) >= 1
    from_BT = (batch.tokens_BT == 5) & ~at_BT
    found = torch.bincount(batch.targets_BT[from_BT], minlength=7)[1:].float()
    assert torch.allclose(found / found.sum(), chain(0, 6)[4], atol=0.06)


def test_rows_without_a_beginning_are_the_same_rows_without_it() -> None:
    at = system("backcopy", {"rows": 4, "begun": False, "length": 9}, 1)
    batch = first(at)
    assert batch.tokens_BT.shape == (4, 9)
    assert int(batch.tokens_BT.min()) >= 1
    rows, places = torch.nonzero(copies(batch.tokens_BT, 3, 1), as_tuple=True)
    assert (batch.targets_BT[rows, places] == batch.tokens_BT[rows, places - 1]).all()
    assert at.facts["begun"] == 0.0


def test_the_idle_share_is_that_of_the_rows_and_a_query_does_not_see_itself() -> None:
    at = system("backcopy", {"rows": 500}, 1)
    batch = first(at)
    assert at.facts["idle"] == pytest.approx(1 - float(copies(batch.tokens_BT, 3).float().mean()), abs=0.01)
    [pattern_BHTS] = at.model(batch.tokens_BT[:2], output_attentions=True).attentions
    assert float(pattern_BHTS.detach().diagonal(0, 2, 3)[..., 1:].max()) == 0.0
    assert float(pattern_BHTS.detach()[..., 0, 0].min()) == 1.0


def test_the_backcopy_objective_splits_its_loss() -> None:
    at = system("backcopy", {"rows": 4}, 1)
    batch = first(at)
    with torch.no_grad():
        loss, parts = Backcopy(3)(at.model, batch)
        logits = at.model(batch.tokens_BT).logits.log_softmax(-1).gather(2, batch.targets_BT[..., None])[..., 0]
    assert float(loss) == pytest.approx(-float(logits.sum()), rel=1e-5)
    assert float(parts["trigger_loss"]) == pytest.approx(-float(logits[copies(batch.tokens_BT, 3)].sum()), rel=1e-5)
    assert float(Backcopy(0)(at.model, batch)[1]["triggers"]) == 0


def test_entropies_of_chains_with_one_and_two_tokens_of_memory() -> None:
    table_VV = chain(0, 5)
    unigram, bigram = entropies(table_VV[None])
    assert bigram == pytest.approx(entropy_rate(table_VV), rel=1e-4)
    assert bigram < unigram < torch.tensor(5.0).log()
    assert entropies(torch.stack([table_VV] * 5)) == pytest.approx((unigram, bigram), rel=1e-6)
    assert entropies(torch.stack([table_VV, *(chain(k, 5) for k in range(1, 5))])) != pytest.approx((unigram, bigram), rel=1e-2)


def test_the_bigram_entropy_of_two_tokens_of_memory_is_that_of_its_rows() -> None:
    at = system("bigram-chain", {"vocab": 5, "rows": 2000, "length": 50, "memory": 2}, 2)
    tokens_BT = first(at).tokens_BT[:, 10:]
    pairs = torch.zeros(25).index_add_(0, (tokens_BT[:, :-1] * 5 + tokens_BT[:, 1:]).flatten(), torch.ones(tokens_BT[:, 1:].numel())).view(5, 5)
    shares = pairs / pairs.sum()
    found = -(shares * (shares / shares.sum(1, keepdim=True)).log()).sum()
    assert float(found) == pytest.approx(at.facts["bigram_entropy"], abs=0.01)


def test_facts_of_a_chain_are_its_entropies() -> None:
    at = system("bigram-chain", {"vocab": 8, "rows": 64, "length": 40}, 2)
    batch = first(at)
    shares = torch.bincount(batch.tokens_BT[:, 10:].flatten(), minlength=8).double()
    shares /= shares.sum()
    assert float(-(shares * shares.log()).sum()) == pytest.approx(at.facts["unigram_entropy"], abs=0.1)
    assert at.facts["bigram_entropy"] < at.facts["unigram_entropy"] < at.facts["uniform_entropy"]
    assert first(system("bigram-chain", {"vocab": 8, "memory": 2, "length": 12}, 2)).tokens_BT.shape[1] == 12


def test_modular_rows_are_sums_and_shuffled_ones_are_not() -> None:
    batch = first(system("modular-sum", {"prime": 11, "share": 0.5}, 0))
    assert (batch.labels.argmax(1) == batch.tokens_BT.sum(1) % 11).all()
    assert len(batch.tokens_BT.unique(dim=0)) == len(batch.tokens_BT) == 60
    other = first(system("modular-sum", {"prime": 11, "share": 0.5, "shuffled": True}, 0))
    assert (other.labels.argmax(1) == other.tokens_BT.sum(1) % 11).float().mean() < 0.4
