"""A replayed part equals the whole pass, and compiled programs equal the compiler's own activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.model import compiled, toys
from knowhow.model.loaded import Loaded
from knowhow.model.replay import record
from knowhow.model.taps import tap

Lm = Callable[..., Loaded]
TRACR = Path(__file__).parents[2] / "data" / "tracr"
TOKENS = torch.tensor([[7, 90, 41, 260, 41, 90, 7, 33], [12, 12, 200, 9, 77, 300, 8, 8]])


@pytest.mark.parametrize("family", toys.FAMILIES)
@torch.no_grad()
def test_blocks_from_a_position_on_and_the_head_give_the_recorded_pass(lm: Lm, family: str) -> None:
    model = lm(family).model
    recorded = record(model, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)})
    assert torch.equal(recorded.logits_all, model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits)
    assert recorded.causal == (family not in toys.ENCODERS)
    for start in (0, 3) if recorded.causal else (0,):
        for layer in range(2):
            twice = recorded.stream[layer][:, start:].repeat(2, 1, 1)
            torch.testing.assert_close(recorded.block(layer, twice, start=start), recorded.stream[layer + 1][:, start:].repeat(2, 1, 1), atol=1e-5, rtol=1e-4)
        last = recorded.stream[-1][:, start:].repeat(2, 1, 1)
        torch.testing.assert_close(recorded.logits(last, start=start), recorded.logits_all.repeat(2, 1, 1), atol=1e-5, rtol=1e-4)
        at = recorded.logits(last, start=start, position=-2)
        torch.testing.assert_close(at, recorded.logits_all[:, -2].repeat(2, 1), atol=1e-5, rtol=1e-4)
    assert len(model.get_submodule(recorded.parts.path(recorded.parts.anatomy.layers))) == 2


def test_classifiers_have_a_head_too(classifier: Lm) -> None:
    for family in ("llama", "bert", "modernbert"):
        model = classifier(family).model
        with torch.no_grad():
            recorded = record(model, {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)})
            torch.testing.assert_close(recorded.logits(recorded.stream[-1]), recorded.logits_all, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_replayed_is_refused(lm: Lm) -> None:
    with pytest.raises(UsageError, match="in training"):
        record(lm().model.train(), {"input_ids": TOKENS})
    with torch.no_grad():
        recorded = record(lm("phi").model, {"input_ids": TOKENS})
    for kind in ("resid_mid", "mlp.gate"):
        with pytest.raises(UsageError, match=kind):
            recorded.block(0, recorded.stream[0], changes={kind: torch.zeros_like})


@pytest.mark.parametrize("name", compiled.programs(TRACR))
def test_compiled_programs_hold_the_compilers_own_residuals(name: str) -> None:
    program = compiled.read(TRACR, name)
    with torch.no_grad(), tap(program.model, "layers.*.resid_mid", "layers.*.resid_post") as seen:
        program.model(input_ids=program.tokens([program.test_input]))
    checked = 0
    for layer in range(program.model.config.num_hidden_layers):
        for half, site in enumerate(("resid_mid", "resid_post")):
            theirs = program.shown[f"_residual_{2 * layer + half}"]
            ours = seen[f"layers.{layer}.{site}"].numpy()
            np.testing.assert_allclose(ours[..., : theirs.shape[-1]], theirs, atol=1e-5)
            assert not ours[..., theirs.shape[-1] :].any()
            checked += 1
    assert checked >= 2


def test_a_folder_without_the_program_names_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"frac_prevs_1, hist"):
        compiled.read(TRACR, "sort")
    with pytest.raises(UsageError, match="compiled programs"):
        compiled.read(tmp_path, "sort")
    for ending in (".json", ".circuit.json", ".npz"):
        (tmp_path / f"hist{ending}").write_bytes((TRACR / f"hist{ending}").read_bytes() if ending != ".json" else b"{}")
    with pytest.raises(UsageError, match="cannot be read"):
        compiled.read(tmp_path, "hist")
