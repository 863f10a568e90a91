"""Per-row gradients equal those of one backward pass a row; a projection keeps inner products on average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.influence import per_example
from knowhow.explain.influence.per_example import Keep, Projection, blocks, gradients, row_gradients, split
from knowhow.explain.influence.row_losses import of_labels
from knowhow.model import toys
from knowhow.model.adapters import add_lora
from knowhow.model.load import Loaded, load

TOKENS = torch.tensor([[7, 90, 41, 260, 33, 12, 14], [12, 200, 9, 77, 8, 0, 0], [5, 6, 7, 8, 9, 10, 11]])
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7])
CLASSES = {"input_ids": TOKENS, "attention_mask": MASK, "labels": torch.tensor([0, 2, 1])}
WORDS = {"input_ids": TOKENS, "labels": TOKENS.roll(-1, 1).masked_fill(MASK == 0, -100)}
FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "phi", "olmo2", "bert", "modernbert")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("per-example")


def loaded(family: str, home: Path, *, head: Any = "classifier") -> Loaded:
    folder = home / family
    return load(str(folder if folder.is_dir() else toys.twin(family, folder, seed=2)), head=head, labels=("a", "b", "c") if head == "classifier" else ())


def alone(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each row by itself, one backward pass each: parameter → B×its shape."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    each: dict[str, list[torch.Tensor]] = {name: [] for name in named}
    for at in range(len(rows["input_ids"])):
        loss = of_labels(model, {name: value[at : at + 1] for name, value in rows.items()})[0]
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, p), grad in zip(named.items(), grads, strict=True):
            each[name].append(torch.zeros_like(p) if grad is None else grad)
    return {name: torch.stack(values) for name, values in each.items()}


def same(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> None:
    found = row_gradients(model, of_labels, rows)
    by_name = {name: grad for part in blocks(model) for name, grad in split(part, found[part.name]).items()}
    wanted = alone(model, rows)
    assert by_name.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(by_name[name], grad, atol=2e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_its_own_pass(home: Path, family: str) -> None:
    same(loaded(family, home).model, CLASSES)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_tables_get_both_uses(home: Path, family: str) -> None:
    model = loaded(family, home, head="lm").model
    assert [part.name for part in blocks(model) if part.kind == "shared"]
    same(model, WORDS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_adapter_has_gradients_of_its_own_matrices_and_the_head_alone(home: Path, family: str) -> None:
    model = add_lora(loaded(family, home), rank=3, alpha=6).model
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    names = [name for part in blocks(model) for name in part.names]
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("lora_A" in name for name in names)
    same(model, CLASSES)


def test_only_what_needs_it_is_taken_one_by_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[str] = []
    real = per_example._one_by_one
    monkeypatch.setattr(per_example, "_one_by_one", lambda model, parts, seen: slow.extend(part.name for part in parts) or real(model, parts, seen))
    row_gradients(loaded("llama", home).model, of_labels, CLASSES)
    assert slow == []
    row_gradients(loaded("gpt2", home).model, of_labels, CLASSES)
    assert slow == ["transformer.wpe.weight"]


class Sly(torch.nn.Module):
    """Uses one weight behind its module's back, changes another's output in place, and has a module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(x)
        out *= 3
        given: torch.Tensor = out.tanh() @ self.second.weight.T + self.second(x)
        return given


def test_weights_used_in_unusual_ways() -> None:
    torch.manual_seed(0)
    model, x = Sly(), torch.randn(5, 4)
    found = row_gradients(model, lambda net, rows: net(rows).square().sum(1), x)
    for at in range(5):
        grads = torch.autograd.grad(model(x[at : at + 1]).square().sum(), list(model.parameters()), allow_unused=True)
        torch.testing.assert_close(found["first"][at], torch.cat([grads[0], grads[1][:, None]], 1))
        torch.testing.assert_close(found["second"][at], torch.cat([grads[2], grads[3][:, None]], 1))
    assert not found["idle"].any()


def test_projection_keeps_inner_products_on_average() -> None:
    drawn = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 500, generator=drawn, dtype=torch.float64)
    y = 0.5 * x + y
    products = []
    for seed in range(400):
        into = torch.zeros(2, 64, dtype=torch.float64)
        for part in range(2):
            half = slice(250 * part, 250 * (part + 1))
            Projection(64, seed).add(into, f"block {part}", torch.stack([x[half], y[half]]))
        products.append(into[0] @ into[1])
    found, exact = torch.stack(products), x @ y
    spread = ((x @ x) * (y @ y) + exact**2).sqrt() / 64**0.5
    assert abs(found.mean() - exact) < 3 * spread / 400**0.5
    assert 0.8 * spread < found.std() < 1.1 * spread
    with pytest.raises(UsageError, match="at least 1"):
        Projection(0).add(torch.zeros(1, 0), "block", torch.zeros(1, 3))


def test_gradients_as_vectors(home: Path) -> None:
    model = loaded("llama", home).model
    whole = gradients(model, of_labels, [CLASSES, CLASSES])
    assert whole.shape == (6, sum(p.numel() for p in model.parameters()))
    small = gradients(model, of_labels, [CLASSES, CLASSES], Keep(project=Projection(16)))
    assert small.shape == (6, 16)
    assert torch.equal(small[:3], small[3:])
    linear = gradients(model, of_labels, [CLASSES], Keep(only=lambda part: part.kind == "linear"))
    halved = gradients(model, of_labels, [CLASSES], Keep(change=lambda name, grads: grads / 2 if name.endswith("_proj") or name == "score" else None))
    torch.testing.assert_close(halved, linear / 2)


def test_bad_questions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama", home).model
    with pytest.raises(UsageError, match="at least one"):
        gradients(model, of_labels, [])
    with pytest.raises(UsageError, match="nothing is kept"):
        gradients(model, of_labels, [CLASSES], Keep(only=lambda part: False))
    monkeypatch.setattr(per_example, "LARGEST", 1000)
    with pytest.raises(UsageError, match="4 GB"):
        gradients(model, of_labels, [CLASSES])
    with pytest.raises(UsageError, match="one finite loss for each row"):
        row_gradients(model, lambda net, rows: of_labels(net, rows).sum(), CLASSES)
    with pytest.raises(UsageError, match="no number"):
        row_gradients(model, lambda net, rows: of_labels(net, rows) * float("nan"), CLASSES)
    with pytest.raises(UsageError, match="hang on"):
        row_gradients(model, lambda net, rows: of_labels(net, rows).detach(), CLASSES)
    frozen = loaded("llama", home).model.requires_grad_(False)
    with pytest.raises(UsageError, match="trainable"):
        blocks(frozen)
