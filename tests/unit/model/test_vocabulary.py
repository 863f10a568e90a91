"""Domain words as single tokens: which are worth it, that they are one token everywhere, and what they start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from knowhow.errors import UsageError
from knowhow.model import toys
from knowhow.model.infer import encode, pieces
from knowhow.model.load import Loaded, load, save
from knowhow.model.vocabulary import added, extend, price, propose

WORDS = ["kernel32.getprocaddress", "0xfeee0000", "ntdll.zwopen", "msvcrt._initterm"]
TEXT = "call kernel32.getprocaddress 0xfeee0000 then ntdll.zwopen (msvcrt._initterm) end"
Make = Callable[..., Loaded]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi", "bert", "modernbert"])
def test_one_token_each_in_running_text_and_at_its_start(family: str, lm: Make, tmp_path: Path) -> None:
    before = lm(family)
    after = extend(before, WORDS)
    save(after, tmp_path / "extended")
    for loaded in (after, load(str(tmp_path / "extended"))):
        ids = dict(zip(WORDS, loaded.tokenizer.convert_tokens_to_ids(WORDS), strict=True))
        for word, index in ids.items():
            assert pieces(loaded.tokenizer, [f" {word}", word]) == [[index], [index]]
            assert index in pieces(loaded.tokenizer, [f"x {word} y"])[0]
        row = pieces(loaded.tokenizer, [TEXT])[0]
        assert [index for index in row if index in ids.values()] == list(ids.values())
        assert loaded.tokenizer.decode(row) == TEXT.replace("(msv", "( msv")
    assert not set(WORDS) & set(before.tokenizer.get_vocab())
    assert added(before.tokenizer, after.tokenizer) == sorted(ids.values())


def test_words_inside_words_are_left(lm: Make) -> None:
    loaded = extend(lm(), ["file", "zwopen"])
    inside = loaded.tokenizer.convert_tokens_to_ids("zwopen")
    assert inside not in pieces(loaded.tokenizer, ["zwopenfile xzwopen zwopen_x"])[0]
    assert pieces(loaded.tokenizer, ["zwopen, zwopen."])[0].count(inside) == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "bert"])
def test_new_rows_are_the_means_of_their_pieces(family: str, twin: Callable[[str], Path], tmp_path: Path) -> None:
    folder = toys.twin(family, tmp_path / "small", vocab=300, seed=2)
    before = load(str(folder))
    words = [f"module{index}.call" for index in range(20)]
    after = extend(before, words)
    ids = after.tokenizer.convert_tokens_to_ids(words)
    assert after.model.config.vocab_size > 300
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(loaded.model, get)() for loaded in (before, after))
        assert torch.equal(new.weight[:290], old.weight[:290])
        for word, index in zip(words, ids, strict=True):
            parts = pieces(before.tokenizer, [f" {word}"])[0]
            torch.testing.assert_close(new.weight[index], old.weight[parts].mean(0))
            if getattr(old, "bias", None) is not None:
                torch.testing.assert_close(new.bias[index], old.bias[parts].mean())
    assert before.model.config.vocab_size == 300


def test_a_new_parent(lm: Make) -> None:
    before = lm()
    after, again, other = extend(before, WORDS), extend(before, WORDS), extend(before, WORDS[:2])
    assert after.ref.parent == before.ref.sha256
    assert len({after.ref.sha256, before.ref.sha256, other.ref.sha256}) == 3
    assert after.ref == again.ref
    assert extend(after, WORDS) is after
    assert extend(before, []) is before


@pytest.mark.parametrize("word", ["", " a", "a\nb", "x" * 200, "a\0b"])
def test_words_that_are_none(word: str, lm: Make) -> None:
    with pytest.raises(UsageError):
        extend(lm(), [word])


def test_proposals(lm: Make) -> None:
    tokenizer = lm().tokenizer
    texts = ["call kernel32.getprocaddress then ntdll.zwopen the the the file"] * 30 + ["rare.word 0xfeee0000."] * 5
    assert propose(texts, tokenizer, min_count=20)[:2] == ["kernel32.getprocaddress", "ntdll.zwopen"]
    assert "the" not in propose(texts, tokenizer)
    assert "0xfeee0000" in propose(texts, tokenizer, min_count=5)
    assert propose(texts, tokenizer, max_new=1) == ["kernel32.getprocaddress"]
    assert propose(texts, tokenizer, pattern=r"ntdll\.\w+") == ["ntdll.zwopen"]
    assert propose({"ntdll.zwopen": 50, "rare.word": 1}, tokenizer) == ["ntdll.zwopen"]
    assert propose(iter(texts), tokenizer) == propose(texts, tokenizer)
    with pytest.raises(UsageError, match="pattern"):
        propose(texts, tokenizer, pattern="(")


def test_the_price(lm: Make) -> None:
    before = lm()
    after = extend(before, WORDS)
    cost = price([TEXT] * 3, before.tokenizer, after.tokenizer)
    assert cost["n"] == 3
    assert cost["after"] < cost["before"] / 2
    assert cost["ratio"] == pytest.approx(cost["after"] / cost["before"])
    assert price([], before.tokenizer, after.tokenizer)["ratio"] == 1


def test_an_uncased_tokenizer_matches_any_case(lm: Make) -> None:
    from tokenizers import normalizers

    loaded = lm("bert")
    loaded.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    after = extend(loaded, ["kernel32.getprocaddress"])
    index = after.tokenizer.convert_tokens_to_ids("kernel32.getprocaddress")
    assert index in encode(after.tokenizer, ["call Kernel32.GetProcAddress"], context=50)[0]


def test_a_model_nobody_here_trained(shared_data: Path) -> None:
    loaded = load(str(shared_data / "weights" / "stories260K"))
    after = extend(loaded, WORDS)
    row = pieces(after.tokenizer, [TEXT])[0]
    assert [token for token in after.tokenizer.convert_ids_to_tokens(row) if token in WORDS] == WORDS
    assert after.tokenizer.decode(row).split()[:4] == TEXT.split()[:4]


def test_a_long_list_of_words_can_still_be_saved_and_loaded(lm: Make, tmp_path: Path) -> None:
    words = [f"module{number}.somefunction{number}" for number in range(600)]
    extended = extend(lm(), words)
    save(extended, tmp_path / "long")
    again = load(str(tmp_path / "long"))
    assert pieces(again.tokenizer, [" module5.somefunction5 module77.somefunction77"]) == [again.tokenizer.convert_tokens_to_ids([words[5], words[77]])]
