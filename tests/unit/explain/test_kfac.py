"""EK-FAC is the exact curvature where that has its shape, the best diagonal in its eigenbasis elsewhere, and sees no padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.influence.kfac import curvature
from knowhow.explain.influence.per_example import Block, Loss, blocks, flat, look, row_gradients
from knowhow.explain.influence.row_losses import drawn, every_class, of_labels
from knowhow.model import toys
from knowhow.model.adapters import add_lora
from knowhow.model.load import Loaded, load

TOKENS = torch.tensor([[7, 90, 41, 260, 33, 12, 14], [12, 200, 9, 77, 8, 0, 0], [5, 6, 7, 8, 9, 10, 11]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7])
ROWS = {"input_ids": TOKENS, "attention_mask": MASK, "labels": torch.tensor([0, 2, 1])}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kfac")


def loaded(home: Path) -> Loaded:
    folder = home / "llama"
    return load(str(folder if folder.is_dir() else toys.twin("llama", folder, seed=2)), head="classifier", labels=("a", "b", "c"))


def kronecker(model: torch.nn.Module, fisher: list[Loss], x: torch.Tensor, part: Block) -> torch.Tensor:
    """K-FAC as it is defined, without the correction."""
    calls = [flat(look(model, loss, x, [part]).calls[part.name][0], bias=len(part.names) == 2) for loss in fisher]
    moments = [sum(side.flatten(0, 1).T @ side.flatten(0, 1) for side in sides) for sides in zip(*calls)]
    return torch.kron(moments[1], moments[0])


def test_least_squares_are_solved_exactly() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3).double(), torch.randn(60, 4, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.3, 1.0])
    outputs = [lambda net, rows, at=at: 2**0.5 * net(rows)[:, at] for at in range(3)]
    found = curvature(model, outputs, [x[:20], x[20:]], damping=0.0)
    read = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    hessian = torch.kron(torch.eye(3, dtype=torch.float64), 2 * read.T @ read / 60)
    grads = row_gradients(model, lambda net, rows: (net(rows) - 1).square().sum(1), x)["linear"]
    wanted = torch.linalg.solve(hessian, grads.flatten(1).T).T
    solved, white = found.solve("linear", grads), found.whiten("linear", grads)
    assert solved is not None
    assert white is not None
    torch.testing.assert_close(solved.flatten(1), wanted, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(white.flatten(1) @ white.flatten(1).T, grads.flatten(1) @ wanted.T, atol=1e-9, rtol=1e-7)


def test_eigenvalues_are_those_of_the_rows_own_gradients_and_beat_the_factors_alone() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3, bias=False)).double()
    x = torch.randn(80, 5, dtype=torch.float64)
    fisher = [lambda net, rows, at=at: -net(rows).log_softmax(1)[:, at] * net(rows).softmax(1)[:, at].sqrt().detach() for at in range(3)]
    found = curvature(model, fisher, [x])
    for part in blocks(model):
        grads = torch.cat([row_gradients(model, loss, x)[part.name] for loss in fisher])
        exact = grads.flatten(1).T @ grads.flatten(1) / 80
        basis = torch.kron(found.bases[part.name].left, found.bases[part.name].right)
        values = (basis.T @ exact @ basis).diagonal()
        torch.testing.assert_close(found.values[part.name].flatten(), values)
        corrected = basis @ torch.diag(values) @ basis.T
        plain = kronecker(model, fisher, x, part)
        plain *= exact.trace() / plain.trace()
        assert (corrected - exact).norm() < (plain - exact).norm()
        assert (corrected - exact).norm() < 0.5 * exact.norm()


def test_drawn_labels_give_the_exact_fisher_on_average(home: Path) -> None:
    model = loaded(home).model
    model.requires_grad_(False).get_submodule("score").requires_grad_(True)
    exact = curvature(model, every_class(3), [ROWS])
    assert set(exact.values) == {"score"}
    loss = drawn(5)
    total = torch.zeros(3, 3, dtype=torch.float64)
    often = {name: value.repeat_interleave(100, 0) for name, value in ROWS.items()}
    for _ in range(10):
        grads = row_gradients(model, loss, often)["score"].double()
        total += torch.einsum("nei,nfi->ef", grads, grads) / 1000
    wanted = sum(torch.einsum("nei,nfi->ef", grads, grads) for grads in (row_gradients(model, one, ROWS)["score"].double() for one in every_class(3)))
    assert (total - wanted).norm() < 0.1 * wanted.norm()


def test_an_adapter_has_a_factor_pair_for_each_matrix_and_padding_is_not_seen(home: Path) -> None:
    model = add_lora(loaded(home), rank=3, alpha=6).model
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    found = curvature(model, every_class(3), [ROWS])
    assert set(found.bases) == {part.name for part in blocks(model)} == set(found.values)
    assert sum("lora_A" in name for name in found.bases) == sum("lora_B" in name for name in found.bases) == 14
    wide = {
        **ROWS,
        "input_ids": torch.nn.functional.pad(TOKENS, (0, 6), value=model.config.pad_token_id),
        "attention_mask": torch.nn.functional.pad(MASK, (0, 6)),
    }
    padded = curvature(model, every_class(3), [wide])
    for part in blocks(model):
        grads = row_gradients(model, of_labels, ROWS)[part.name]
        there, here = found.solve(part.name, grads), padded.solve(part.name, grads)
        assert there is not None
        torch.testing.assert_close(here, there, atol=1e-3 * float(there.abs().max()), rtol=1e-2)


def test_other_parameters_have_a_diagonal_or_are_left_out(home: Path) -> None:
    model = loaded(home).model
    found, left = (curvature(model, every_class(3), [ROWS], others=others) for others in ("diagonal", "left out"))
    grads = [row_gradients(model, loss, ROWS)["model.norm.weight"] for loss in every_class(3)]
    torch.testing.assert_close(found.values["model.norm.weight"], sum(each.square().sum(0) for each in grads) / 3)
    assert "model.norm.weight" not in left.values
    assert left.whiten("model.norm.weight", grads[0]) is None
    assert left.solve("model.norm.weight", grads[0]) is None
    fresh = add_lora(loaded(home), rank=2, alpha=4).model
    still = curvature(fresh, every_class(3), [ROWS])
    name = next(name for name in still.values if "lora_A" in name)
    white = still.whiten(name, row_gradients(fresh, of_labels, ROWS)[name])
    assert white is not None
    assert not white.any()


def test_bad_questions(home: Path) -> None:
    model = loaded(home).model
    for batches, fisher, damping in (([], every_class(3), 0.1), ([ROWS], [], 0.1), ([ROWS], every_class(3), -1.0)):
        with pytest.raises(UsageError, match="at least one batch and loss"):
            curvature(model, fisher, batches, damping=damping)
    model.requires_grad_(False).get_submodule("model.norm").requires_grad_(True)
    with pytest.raises(UsageError, match="diagonal"):
        curvature(model, every_class(3), [ROWS], others="left out")
