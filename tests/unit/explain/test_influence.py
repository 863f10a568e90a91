"""Influence equals closed forms and leaving one row out; TracIn its own definition; likenesses what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from knowhow.errors import UsageError
from knowhow.explain.influence import scores as influence
from knowhow.explain.influence.kfac import curvature
from knowhow.explain.influence.per_example import Keep, Projection, gradients
from knowhow.explain.influence.row_losses import drawn, every_class, of_labels, of_margin
from knowhow.explain.influence.scores import Influence, Sides, by_label, cosine, ekfac, projected, tfidf, tracin
from knowhow.loop.checkpoint import load_weights, save_weights
from knowhow.model import toys
from knowhow.model.adapters import add_lora
from knowhow.model.load import load

Pair = tuple[torch.Tensor, torch.Tensor]
TOKENS = torch.tensor([[7, 90, 41, 260, 33, 12, 14], [12, 200, 9, 77, 8, 0, 0], [5, 6, 7, 8, 9, 10, 11]])
ROWS = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7]), "labels": torch.tensor([0, 2, 1])}


def squares(model: torch.nn.Module, rows: Pair) -> torch.Tensor:
    error: torch.Tensor = (model(rows[0])[:, 0] - rows[1]).square()
    return error


def crosses(model: torch.nn.Module, rows: Pair) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(rows[0]), rows[1].long(), reduction="none")


def gauss(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def least_squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1), y[:, None]).solution[:, 0]


def test_on_least_squares_ekfac_is_leaving_one_out() -> None:
    x, test_x = gauss(200, 4, 0), gauss(15, 4, 1)
    truth = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    y, test_y = x @ truth + gauss(200, 1, 2)[:, 0], test_x @ truth + gauss(15, 1, 3)[:, 0]
    model = torch.nn.Linear(4, 1).double()

    def fit(kept: torch.Tensor) -> np.ndarray:
        solved = least_squares(x[kept], y[kept])
        with torch.no_grad():
            model.weight.copy_(solved[None, :4])
            model.bias.copy_(solved[4:])
        return squares(model, (test_x, test_y)).detach().numpy()

    whole = fit(torch.ones(200, dtype=torch.bool))
    curved = curvature(model, [lambda net, rows: 2**0.5 * net(rows[0])[:, 0]], [(x, y)], damping=0.0)
    sides = Sides([(x[:90], y[:90]), (x[90:], y[90:])], [(test_x, test_y)], squares)
    found = ekfac(model, sides, curved)
    read, test_read = (torch.cat([side, torch.ones(len(side), 1, dtype=torch.float64)], 1) for side in (x, test_x))
    errors, test_errors = ((model(side)[:, 0] - goal).detach() for side, goal in ((x, y), (test_x, test_y)))
    inverse = torch.linalg.inv(2 * read.T @ read)
    closed = (2 * errors[:, None] * read) @ inverse @ (2 * test_errors[:, None] * test_read).T
    np.testing.assert_allclose(found.scores, closed.numpy(), atol=1e-12, rtol=1e-8)
    exact = np.stack([fit(torch.arange(200) != row) - whole for row in range(200)])
    leverage = 2 * torch.einsum("np,pq,nq->n", read, inverse, read).numpy()
    # leaving a row out raises its leverage, and the loss is a parabola: with both put in, the first-order score is the whole change
    first = found.scores / (1 - leverage[:, None])
    np.testing.assert_allclose(first + (first / (2 * test_errors.numpy())) ** 2, exact, atol=1e-10)
    assert np.corrcoef(found.scores.ravel(), exact.ravel())[0, 1] > 0.995


def test_on_logistic_regression_the_exact_fisher_is_leaving_one_out() -> None:
    x, test_x = gauss(150, 3, 4), gauss(12, 3, 5)
    drawn_B = torch.rand(162, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    goals = (torch.cat([x, test_x]) @ torch.tensor([1.5, -1.0, 0.5], dtype=torch.float64)).sigmoid() > drawn_B
    y, test_y = goals[:150].double(), goals[150:].double()
    model = torch.nn.Linear(3, 2, bias=False).double()

    def fit(kept: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            model.weight.zero_()
            for _ in range(8):  # Newton on the difference of both rows, which is all that matters
                p = (x[kept] @ (model.weight[1] - model.weight[0])).sigmoid()
                hessian = x[kept].T @ ((p * (1 - p))[:, None] * x[kept])
                step = torch.linalg.solve(hessian, x[kept].T @ (p - y[kept]))
                model.weight -= torch.stack([-step, step]) / 2
        return crosses(model, (test_x, test_y)).detach().numpy()

    whole = fit(torch.ones(150, dtype=torch.bool))
    fisher = [lambda net, rows, at=at: -net(rows[0]).log_softmax(1)[:, at] * net(rows[0]).softmax(1)[:, at].sqrt().detach() for at in (0, 1)]
    kernel = torch.cat([gradients(model, loss, [(x, y)]) for loss in fisher])
    train, test = (gradients(model, crosses, [rows]) for rows in ((x, y), (test_x, test_y)))
    found = projected(train, test, kernel, damping=0.0)
    ours = ekfac(model, Sides([(x, y)], [(test_x, test_y)], crosses), curvature(model, fisher, [(x, y)], damping=0.0))
    exact = np.stack([fit(torch.arange(150) != row) - whole for row in range(150)])
    assert np.corrcoef(found.scores.ravel(), exact.ravel())[0, 1] > 0.99
    slope = (found.scores * exact).sum() / (exact**2).sum()
    assert 0.9 < slope < 1.02
    assert np.corrcoef(ours.scores.ravel(), exact.ravel())[0, 1] > 0.95


def test_projected_is_the_damped_solution_whatever_the_shape() -> None:
    for count, width in ((12, 5), (6, 9)):
        kernel, train, test = gauss(count, width, 0), gauss(7, width, 1), gauss(4, width, 2)
        extra = 0.1 * float((kernel**2).sum()) / min(count, width)
        inverse = torch.linalg.inv(kernel.T @ kernel + extra * torch.eye(width, dtype=torch.float64))
        found = projected(train, test, kernel)
        np.testing.assert_allclose(found.scores, (train @ inverse @ test.T).numpy(), rtol=1e-9)
        np.testing.assert_allclose(found.own, (train @ inverse @ train.T).diagonal().numpy(), rtol=1e-9)
        np.testing.assert_allclose(projected(train, test).own, projected(train, train).scores.diagonal(), rtol=1e-9)
    with pytest.raises(UsageError, match="one width"):
        projected(gauss(3, 4, 0), gauss(3, 5, 0))


def test_tracin_adds_up_checkpoints_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = add_lora(load(str(toys.twin("llama", tmp_path / "llama", seed=2)), head="classifier", labels=("a", "b", "c")), rank=2, alpha=4).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)) for name, p in model.named_parameters() if p.requires_grad
    }
    sides = Sides([ROWS], [{name: value[:2] for name, value in ROWS.items()}], of_labels, of_margin)
    found = tracin(model, sides, [(before, 0.5), (weights, 0.25)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wanted = 0.5 * gradients(model, of_labels, [ROWS]) @ gradients(model, of_margin, sides.test).T
    for name, value in weights.items():
        model.get_parameter(name).data.copy_(value)
    later = gradients(model, of_labels, [ROWS])
    wanted += 0.25 * later @ gradients(model, of_margin, sides.test).T
    np.testing.assert_allclose(found.scores, wanted.numpy(), rtol=1e-3, atol=1e-6)
    assert found.own.shape == (3,)
    save_weights(tmp_path / "best.safetensors", model)
    load_weights(tmp_path / "best.safetensors", model)
    small = tracin(model, sides, [(weights, 1.0)], project=Projection(4096)).scores
    exact = (later @ gradients(model, of_margin, sides.test).T).numpy()
    assert np.abs(small - exact).max() < 0.1 * np.abs(exact).max()
    with pytest.raises(UsageError, match="no checkpoints"):
        tracin(model, sides, [])
    with pytest.raises(UsageError, match=r"checkpoint\.py"):
        tracin(model, sides, [(dict(list(weights.items())[1:]), 1.0)])
    with pytest.raises(UsageError, match="training rows"):
        tracin(model, Sides([], sides.test, of_labels), [(weights, 1.0)])


def test_losses_of_rows(tmp_path: Path) -> None:
    model = load(str(toys.twin("llama", tmp_path / "llama", seed=2)), head="classifier", labels=("a", "b", "c")).model
    asked = {name: value for name, value in ROWS.items() if name != "labels"}
    logits = model(**asked).logits
    p = logits.softmax(1)[torch.arange(3), ROWS["labels"]]
    torch.testing.assert_close(of_labels(model, ROWS), -p.log())
    torch.testing.assert_close(of_margin(model, ROWS), (1 - p).log() - p.log())
    many = {**asked, "labels": torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])}
    torch.testing.assert_close(of_labels(model, many), -(many["labels"] * 2 - 1).mul(logits).sigmoid().log().mean(1))
    number = {**asked, "labels": torch.tensor([0.5, 1.0, 2.0])}
    torch.testing.assert_close(of_labels(model, number), (logits[:, 0] - number["labels"]).square())
    total = sum(loss(model, ROWS).square() for loss in every_class(3))
    torch.testing.assert_close(total, (logits.softmax(1) * logits.log_softmax(1).square()).sum(1))
    for rows in (ROWS, many, number):
        loss = drawn(0)
        first, second = loss(model, rows), loss(model, rows)
        assert torch.equal(first, drawn(0)(model, rows))
        assert first.shape == (3,)
        assert not torch.equal(first, second)
    words = {"input_ids": TOKENS, "labels": TOKENS.roll(-1, 1).masked_fill(ROWS["attention_mask"] == 0, -100)}
    speaker = load(str(tmp_path / "llama")).model
    logp = speaker(input_ids=TOKENS).logits.log_softmax(-1)
    said = torch.stack([-sum(logp[row, at, word] for at, word in enumerate(words["labels"][row]) if word != -100) for row in range(3)])
    torch.testing.assert_close(of_labels(speaker, words), said)
    assert drawn(0)(speaker, words).shape == (3,)
    with pytest.raises(UsageError, match="margin"):
        of_margin(model, number)
    with pytest.raises(UsageError, match="labels"):
        of_labels(model, asked)


def test_likenesses() -> None:
    vectors = gauss(3, 4, 0)
    assert cosine(vectors, vectors).diagonal() == pytest.approx(1.0)
    assert cosine(vectors, -2 * vectors).diagonal() == pytest.approx(-1.0)
    found = tfidf(["open read close", "write Write"], ["open read close", "nothing here"])
    assert found.shape == (2, 2)
    assert found[0, 0] == pytest.approx(1.0)
    assert found[1, 0] == found[0, 1] == 0
    signed = by_label(np.array([[0.5, 0.25], [0.5, 0.25]]), ["a", "b"], ["a", "b"])
    assert signed.tolist() == [[0.5, -0.25], [-0.5, 0.25]]
    both = influence.mean([Influence(np.ones((2, 1)), np.zeros(2)), Influence(np.zeros((2, 1)), np.ones(2))])
    assert both.scores.tolist() == [[0.5], [0.5]]
    with pytest.raises(UsageError, match="at least one"):
        influence.mean([])


def test_whitened_and_projected_is_right_on_average() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 1).double(), gauss(40, 6, 1)
    sides = Sides([(x[:30], x[:30, 0])], [(x[30:], x[30:, 1])], squares)
    curved = curvature(model, [lambda net, rows: 2**0.5 * net(rows[0])[:, 0]], sides.train)
    exact = ekfac(model, sides, curved).scores
    drawn_ = [ekfac(model, sides, curved, project=Projection(64, seed)).scores for seed in range(60)]
    assert np.abs(np.mean(drawn_, 0) - exact).max() < 0.1 * np.abs(exact).max()
    found = influence.inner_products(model, sides, Keep(curved.whiten)).scores / 30
    np.testing.assert_allclose(found, exact)
