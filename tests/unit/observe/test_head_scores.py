"""Head scores on patterns that are known, and a look that leaves no trace in the run."""

from __future__ import annotations

import pytest
import torch

from knowhow.experiments.attention_only import AttentionOnly
from knowhow.experiments.language import Language, decoder, next_token
from knowhow.experiments.system import Drawn
from knowhow.loop.optim import Optim, OptimSpec
from knowhow.loop.step import LoopSpec, train
from knowhow.observe import every, observer
from knowhow.observe.circuits import copy_loss, induction, patterns, previous, repeats

VOCAB = 12


def test_a_segment_comes_back_where_the_sources_say() -> None:
    tokens_BT, source_BT = repeats(torch.Generator().manual_seed(0), 1000, 64, 20, 5)
    assert ((source_BT >= 0).sum(1) == 4).all()
    distances = set()
    for row in range(64):
        for at in torch.nonzero(source_BT[row] >= 0).flatten().tolist():
            first = int(source_BT[row, at])
            assert tokens_BT[row, first] == tokens_BT[row, at + 1]
            assert tokens_BT[row, first - 1] == tokens_BT[row, at]
            distances.add(at + 1 - first)
    assert distances == set(range(5, 16))


def test_a_fixed_distance_is_kept() -> None:
    _, source_BT = repeats(torch.Generator().manual_seed(0), 9, 16, 20, 5, distance=7)
    at = torch.nonzero(source_BT >= 0)
    assert (at[:, 1] + 1 - source_BT[at[:, 0], at[:, 1]] == 7).all()


def test_scores_of_heads_that_do_one_thing() -> None:
    _, source_BT = repeats(torch.Generator().manual_seed(1), VOCAB, 8, 16, 4)
    pattern_BHTS = torch.zeros(8, 3, 16, 16)
    pattern_BHTS[:, 0, torch.arange(1, 16), torch.arange(15)] = 1.0
    pattern_BHTS[:, 1] = torch.nn.functional.one_hot(source_BT.clamp(min=0), 16).float()
    pattern_BHTS[:, 2] = 1 / 16
    assert previous(pattern_BHTS).tolist() == pytest.approx([1.0, float(pattern_BHTS[:, 1].diagonal(-1, 1, 2).mean()), 1 / 16])
    assert induction(pattern_BHTS, source_BT).tolist()[1:] == pytest.approx([1.0, 1 / 16])
    assert induction(pattern_BHTS, source_BT)[0] < 0.3


def test_the_loss_on_copies_is_that_of_the_repeated_tokens() -> None:
    model = AttentionOnly(0, vocab=VOCAB, layers=1, heads=1, width=8)
    tokens_BT, source_BT = repeats(torch.Generator().manual_seed(2), VOCAB, 3, 12, 4)
    log_BTV = model(tokens_BT).logits.detach().log_softmax(-1)
    one_by_one = [-log_BTV[b, t, tokens_BT[b, t + 1]] for b in range(3) for t in range(11) if source_BT[b, t] >= 0]
    assert copy_loss(model, tokens_BT, source_BT) == pytest.approx(float(torch.stack(one_by_one).mean()), rel=1e-5)


def test_patterns_of_a_transformers_model_are_those_of_its_eager_attention() -> None:
    model = decoder(0, vocab=VOCAB, layers=2, width=16, heads=4)
    tokens_BT = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    own = model.eval()(input_ids=tokens_BT, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for mine, theirs in zip(patterns(model, tokens_BT), own, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert model.config._attn_implementation == "sdpa"


def watched(look: bool) -> tuple[list[torch.Tensor], torch.Tensor, list]:
    model = AttentionOnly(0, vocab=VOCAB, layers=2, heads=2, width=16)
    batches = Drawn(lambda generator: next_token(torch.randint(VOCAB, (4, 17), generator=generator)), 0)
    observers = [observer("circuits", {"every": 1, "vocab": VOCAB, "rows": 4, "length": 16, "segment": 4}, 3)] if look else []
    torch.manual_seed(5)
    for _ in train(model, Language(), batches, Optim(model, OptimSpec(1e-2)), lambda _: 1.0, LoopSpec(3, precision="float32", attention="torch"), observers):
        assert model.training
    return [p.detach().clone() for p in model.parameters()], torch.get_rng_state(), [dict(row) for each in observers for row in each.rows()]


def test_looking_changes_nothing() -> None:
    seen, state, rows = watched(True)
    alone, untouched, _ = watched(False)
    assert all(torch.equal(one, other) for one, other in zip(seen, alone, strict=True))
    assert torch.equal(state, untouched)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["circuits.sink"] == max(rows[0][f"circuits.layers.{layer}.heads.{head}.sink"] for layer in (0, 1) for head in (0, 1))
    assert {"circuits.previous", "circuits.induction", "circuits.copy_loss"} <= rows[0].keys()


def test_without_a_vocabulary_only_sinks_are_read() -> None:
    model = AttentionOnly(0, vocab=VOCAB, layers=1, heads=1, width=8)
    batches = Drawn(lambda generator: next_token(torch.randint(VOCAB, (2, 9), generator=generator)), 0)
    look = observer("circuits", {"every": 1}, 1)
    list(train(model, Language(), batches, Optim(model, OptimSpec(1e-2)), lambda _: 1.0, LoopSpec(1, precision="float32", attention="torch"), [look]))
    assert set(look.rows()[0]) == {"step", "circuits.sink", "circuits.layers.0.heads.0.sink"}
    assert every(1)(1)
