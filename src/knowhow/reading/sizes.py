"""What the numbers of a base's recipe must be to each other."""

from __future__ import annotations

from knowhow.errors import UsageError
from knowhow.reading.text import Key
from knowhow.recipe import PretrainRecipe

VOCABULARY = range(260, 65_537)
"""256 bytes and the special tokens; token ids are kept in two bytes."""


def clash(recipe: PretrainRecipe) -> tuple[Key, UsageError] | None:
    """The first key that does not fit the others, with the error to show; None when all fit."""
    corpora = {("corpora", name): spec for name, spec in recipe.corpora.items()} | {("valid", name): spec for name, spec in recipe.valid.items()}
    empty: Key = next((key for key, spec in corpora.items() if not (spec.files or spec.generate)), ())
    window = max(recipe.sequence, recipe.long_sequence or 0)
    wrong: tuple[tuple[bool, Key, str, str], ...] = (
        (not recipe.corpora, ("corpora",), "no corpus", "one corpus or more"),
        (not recipe.valid, ("valid",), "no validation text", "one corpus or more"),
        (bool(empty), empty, "a corpus without text", "`files` or `generate`"),
        (recipe.d_model % (2 * recipe.heads) > 0, ("heads",), f"{recipe.heads} for d_model {recipe.d_model}", "heads of an even size that share d_model out"),
        (recipe.heads % recipe.kv_heads > 0, ("kv_heads",), f"{recipe.kv_heads} for {recipe.heads} heads", "a number that divides heads"),
        (recipe.vocabulary not in VOCABULARY, ("vocabulary",), f"{recipe.vocabulary:,}", f"{VOCABULARY.start:,} to {VOCABULARY.stop - 1:,} entries"),
        (window > recipe.context, ("sequence",), f"windows of {window} tokens in a context of {recipe.context}", "windows that fit the context"),
        (window > recipe.batch_tokens, ("batch_tokens",), f"{recipe.batch_tokens} for windows of {window}", "one window or more"),
        (recipe.tokens < recipe.batch_tokens, ("tokens",), f"{recipe.tokens:,}, less than one step of {recipe.batch_tokens:,}", "one step or more"),
    )
    for bad, key, got, allowed in wrong:
        if bad:
            return key, UsageError(f"`{'.'.join(map(str, key))}`: {got}", allowed=allowed)
    return None
