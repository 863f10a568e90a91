"""Systems of the Noether ledger: what is known before the run."""

from __future__ import annotations

import torch

from knowhow.experiments.system import system
from knowhow.model.charges import ledger


def test_the_twin_knows_its_charges_and_its_rows_depend_on_the_seed_alone() -> None:
    one, same, other = (system("charges", {"rows": 2, "length": 8}, seed) for seed in (0, 0, 1))
    assert one.facts == {"charges.vo": 4, "charges.qk": 4, "charges.up_down": 2, "charges.norm_gain": 5, "charges.excluded": 0}
    first, again, new = (next(iter(each.batches))[0].tokens_BT for each in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, new)
    assert float(one.objective(one.model, next(iter(one.batches))[0])[0].detach()) > 0


def test_a_tied_twin_loses_one_charge_and_adapters_leave_only_their_own() -> None:
    tied = system("charges", {"tied": True}, 0)
    assert tied.facts["charges.norm_gain"] == 4
    assert tied.facts["charges.excluded"] == 1
    lora = system("charges", {"lora": 2}, 0)
    assert set(lora.facts) == {"charges.lora", "charges.excluded"}
    assert {charge.kind for charge in ledger(lora.model).charges} == {"lora"}


def test_the_embedded_base_is_a_system_whose_tokens_lie_in_its_vocabulary() -> None:
    at = system("charges", {"model": "seedling", "rows": 1, "length": 8, "states": 16}, 0)
    assert at.facts["charges.vo"] == 24
    assert at.facts["charges.excluded"] == 1
    tokens = next(iter(at.batches))[0].tokens_BT
    assert int(tokens.max()) > 256
    assert int(tokens.max()) < at.model.config.vocab_size
