"""The loss at every position: where labels begin to hold, what each position is worth, and that the last position is still the model's own answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from knowhow.adapt.classify import Classify, replicated
from knowhow.adapt.rows import label_onsets
from knowhow.data.batch import collate, rows, thinned
from knowhow.domains.malware.generate import generate
from knowhow.model import adapters, infer, toys
from knowhow.model.load import load
from knowhow.types import Batch, Example, Span, Task

CAUSAL = [name for name in toys.FAMILIES if name not in ("bert", "modernbert", "distilbert", "roberta")]
LABELS = ("run", "send", "wait")
MANY = Task("classify", LABELS, many=True)


def characters(texts: list[str]) -> list[list[int]]:
    """One token per character."""
    return [[ord(letter) for letter in text] for text in texts]


def example(*spans: tuple[int, int, str], label: object = ("run", "send"), prompt: str = "abcdefghij") -> Example:
    return Example("row", prompt, label=label, evidence=tuple(Span(*span) for span in spans))  # type: ignore[arg-type]


def test_a_label_holds_from_the_end_of_its_last_span() -> None:
    found = label_onsets([example((0, 2, "run"), (4, 6, "run"), (1, 9, "wait"))], MANY, [11], characters, start=1, truncate="tail")
    # one token before the text: character 5 is token 6; `send` has no evidence and holds from the start, `wait` is not a label of the row
    assert found.tolist() == [[6, 0, 11]]


@pytest.mark.parametrize(
    ("truncate", "end", "expected"),
    [("tail", 3, 2), ("tail", 9, 5), ("head", 3, 0), ("head", 5, 0), ("head", 9, 4), ("middle", 2, 1), ("middle", 5, 3), ("middle", 9, 4), ("middle", 10, 5)],
)
def test_a_row_that_was_cut_keeps_its_onset_or_takes_the_next_token(truncate: infer.Cut, end: int, expected: int) -> None:
    kept = infer.cut(list(range(10)), 6, truncate)
    found = label_onsets([example((0, end, "x"), label="run")], Task("classify", LABELS), [6], characters, start=0, truncate=truncate)
    assert found.tolist() == [[expected]]
    assert kept[expected] == end - 1 or end - 1 not in kept


def test_an_instruction_before_the_prompt_moves_the_spans() -> None:
    task = Task("classify", LABELS, many=True, instruction="Which?")
    found = label_onsets([example((0, 2, "run"), label=("run",))], task, [18], characters, start=0, truncate="tail")
    assert found[0, 0] == len("Which?\n\n") + 1


def test_generated_traces_say_where_each_behaviour_is_complete() -> None:
    """Cut after the onset, the oracle's label is there; the token before is still inside the completing line."""
    made = list(generate({"tier": "F"}, seed=3, n=20))
    labels = tuple(sorted({label for each in made for label in each.label}))
    found = label_onsets(made, Task("classify", labels, True), [len(each.prompt.rstrip()) for each in made], characters, start=0, truncate="tail")
    for each, onset_C in zip(made, found, strict=True):
        for label, onset in zip(labels, onset_C, strict=True):
            ends = [span.end for span in each.evidence if span.kind == label]
            assert onset == (max(ends) - 1 if label in each.label else len(each.prompt.rstrip()))


def batch(onset: list[list[int]], labels: torch.Tensor) -> Batch:
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    tokens = torch.randint(5, 300, (2, 6), generator=torch.Generator().manual_seed(0)).masked_fill(~mask, 2)
    return Batch(tokens, mask, labels=labels, onset_BK=torch.tensor(onset), weight_B=torch.tensor([1.0, 3.0]))


def test_many_labels_are_absent_before_their_onset() -> None:
    labels_NC, weights_N = replicated(batch([[2, 6], [0, 3]], torch.tensor([[1.0, 0.0], [1.0, 1.0]])), torch.tensor([1.0, 3.0]), "many")
    assert labels_NC[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert labels_NC[:, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert weights_N.tolist() == pytest.approx([1 / 6] * 6 + [0.75] * 4 + [0, 0])


def test_one_label_has_no_target_before_its_onset() -> None:
    labels_N, weights_N = replicated(batch([[4], [0]], torch.tensor([2, 1])), torch.tensor([1.0, 3.0]), "one")
    assert labels_N.tolist() == [2] * 6 + [1] * 6
    assert weights_N.tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0.5] + [0.75] * 4 + [0, 0])


@pytest.mark.parametrize("family", CAUSAL)
def test_the_last_position_is_the_model_s_own_answer(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load(str(toys.twin(family, tmp_path_factory.mktemp("twin") / family, seed=1)), head="classifier", labels=LABELS)
    made = batch([[5], [3]], torch.tensor([2, 1]))
    made.tokens_BT = made.tokens_BT.masked_fill(~made.mask_BT, loaded.tokenizer.pad_token_id)
    plain, _ = Classify()(loaded.model, made)
    # onset at the last position: the mean over positions is that of the last one
    half, seen = Classify(replication=0.5)(loaded.model, made)
    assert half.item() == pytest.approx(plain.item(), abs=2e-5)
    assert seen["last"].item() == pytest.approx(plain.item(), abs=2e-5)


def test_the_loss_is_that_of_every_prefix(tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load(str(toys.twin("llama", tmp_path_factory.mktemp("twin") / "llama", seed=1)), head="classifier", labels=LABELS)
    made = batch([[0], [0]], torch.tensor([2, 1]))
    total = 0.0
    for row, length, label, weight in ((0, 6, 2, 1.0), (1, 4, 1, 3.0)):
        each = [F.cross_entropy(loaded.model(input_ids=made.tokens_BT[row : row + 1, :end]).logits, torch.tensor([label])) for end in range(1, length + 1)]
        total += weight * torch.stack(each).mean().item()
    assert Classify(replication=1.0)(loaded.model, made)[0].item() == pytest.approx(total, abs=1e-4)


def test_an_adapter_s_head_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = load(str(toys.twin("llama", tmp_path_factory.mktemp("twin") / "llama", seed=1)), head="classifier", labels=LABELS)
    adapted = adapters.add_lora(loaded, rank=2, alpha=4.0, seed=0)
    Classify(replication=0.5)(adapted.model, batch([[0], [0]], torch.tensor([2, 1])))[0].backward()
    moved = {name for name, p in adapted.model.named_parameters() if p.grad is not None and p.grad.abs().sum().item() > 0}
    assert any("score" in name for name in moved)
    assert any("lora_B" in name for name in moved)


def test_tokens_left_out_move_the_onsets() -> None:
    made = collate(rows([range(1, 13)], ["a"], labels=np.zeros(1, np.int64), onsets=np.array([[7, 12, 0]])), [0], pad=0, language_model=False)
    thin = thinned(made, 0.5, 0, np.random.default_rng(1))
    kept = thin.tokens_BT[0][thin.mask_BT[0]].tolist()
    assert 2 <= len(kept) < 12
    first, absent, start = thin.onset_BK[0].tolist()  # type: ignore[index]
    assert kept[first] == min(token for token in kept if token >= 8)
    assert (absent, start) == (len(kept), 0)
