"""Writing with given words alone."""

from __future__ import annotations

from knowhow.model.generate import end_ids, generate
from knowhow.model.infer import pieces
from knowhow.model.lexicon import Lexicon
from knowhow.model.load import load

WORDS = ["The", "program", "opens", "[12]", "opener", "(the", "key)", "."]


def test_every_text_of_the_words_can_be_written_and_no_other() -> None:
    tokenizer = load("seedling").tokenizer
    lexicon = Lexicon(tokenizer, WORDS, [0])
    for text, fits in ((" The program opens (the key) [12] .", True), (" The program opens [13] .", False), (" The programs", False), ("The program", False)):
        row = pieces(tokenizer, [text])[0]
        assert all(token in lexicon.allowed(row[:at]) for at, token in enumerate(row)) == fits, text
    whole, half = pieces(tokenizer, [" The program"])[0], pieces(tokenizer, [" pro"])[0]
    assert 0 in lexicon.allowed(whole)
    assert 0 not in lexicon.allowed(half)
    assert lexicon.allowed(pieces(tokenizer, [" strange"])[0]) == {0}
    assert 0 not in lexicon.allowed([])  # something must be said


def test_a_model_writes_nothing_but_the_words_of_its_row() -> None:
    loaded = load("seedling")
    rows = [["The", "program"], ["opens", "[12]", "."]]
    lexicons = [Lexicon(loaded.tokenizer, words, end_ids(loaded)) for words in rows]
    for temperature in (0.0, 3.0):
        texts = generate(
            loaded, ["[12] OpenProcess = xab\n", "a much longer prompt than that\n"], max_new_tokens=24, temperature=temperature, lexicons=lexicons
        )
        for text, words in zip(texts, rows, strict=True):
            assert all(any(word.startswith(said) for word in words) for said in text.split())  # the last word may be cut
