"""A causal classifier in the form of a language model, for engines that load only those: one token per label, whose logit is the label's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from knowhow.errors import UsageError
from knowhow.files import digest
from knowhow.model.load import head_modules
from knowhow.model.loaded import Loaded
from knowhow.model.quiet import quiet
from knowhow.model.vocabulary import grow, spelled

TOLERANCE = 1e-5
_PREFIX = "<|label:"


def label_token(label: str) -> str:
    """The token of a label: printable, and no text that a user's data is likely to hold (it is a control token, so data cannot produce it)."""
    return f"{_PREFIX}{spelled(label)}|>"


def to_label_tokens(loaded: Loaded) -> Loaded:
    """A causal LM with one more token per label; at a text's last position the logits of those tokens are the classifier's logits (float32: 1e-5).

    Embeddings and head are untied if they were tied. The other rows of the head are the base's where the two were tied, and zero where the classifier has lost
    the base's own head: such a model answers labels and writes no text. Encoders have no last position to read a token from and are refused."""
    if loaded.head != "classifier":
        raise UsageError(f"a {loaded.head} model", allowed="a classifier", fix="a regressor's number has no tokens; a language model has its own")
    if loaded.kind != "causal":
        fix = "an encoder sees both sides and predicts no next token: serve it as the classifier it is"
        raise UsageError("an encoder", allowed="a causal classifier", fix=fix)
    if "peft" in type(loaded.model).__module__:
        raise UsageError("an adapted model", allowed="a whole model", fix="adapters.merge(loaded) first")
    names = [label_token(label) for label in loaded.labels]
    if len(set(names)) != len(names):
        raise UsageError("labels that are the same once spelled as tokens", allowed="labels that differ in letters, digits, '.', '_', '+' or '-'")
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    model = _language_model(loaded, ids)
    _check_equal(loaded, model, ids)
    ref = replace(loaded.ref, parent=loaded.ref.sha256, sha256=digest({"parent": loaded.ref.sha256, "label tokens": names}))
    return Loaded(model, tokenizer, "causal", "lm", ref, loaded.context, loaded.labels)


def label_ids(loaded: Loaded) -> list[int]:
    """Ids of the label tokens, in the order of the labels; a folder that was saved and loaded knows them too."""
    return sorted(index for index, token in loaded.tokenizer.added_tokens_decoder.items() if token.content.startswith(_PREFIX))


def _language_model(loaded: Loaded, ids: Sequence[int]) -> torch.nn.Module:
    classifier, config = loaded.model, copy.deepcopy(loaded.model.config)
    tied = bool(config.tie_word_embeddings)
    # A cap on the logits would bend the labels' too.
    config.tie_word_embeddings, config.problem_type = False, None
    if getattr(config, "final_logit_softcapping", None):
        config.final_logit_softcapping = None
    config.num_labels = 2
    with quiet(), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=classifier.dtype)
        backbone = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in classifier.base_model.state_dict().items()}
        unknown = model.load_state_dict(backbone, strict=False)
        assert not unknown.unexpected_keys, "classifier and language model differ in their base"
        grow(model, max(ids) + 1)
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    score = getattr(classifier, head_modules(classifier)[-1])
    with torch.no_grad():
        old = classifier.get_input_embeddings().weight
        last.weight.zero_()
        if tied:
            last.weight[: old.shape[0]] = old
        last.weight[list(ids)] = score.weight * float(getattr(config, "logits_scaling", None) or 1.0)
        first.weight[list(ids)] = old.mean(0)
        if last.bias is not None:
            last.bias.zero_()
            if score.bias is not None:
                last.bias[list(ids)] = score.bias
    return model.to(classifier.device).eval()


def _check_equal(loaded: Loaded, model: torch.nn.Module, ids: Sequence[int]) -> None:
    """The promise, tried: some families scale or cap their logits in ways of their own."""
    control = {loaded.tokenizer.pad_token_id}
    probe = torch.tensor([[index for index in range(8) if index not in control]], device=loaded.model.device)
    with torch.inference_mode(), quiet():
        want: Any = loaded.model(input_ids=probe).logits[0].float()
        got = model(input_ids=probe).logits[0, -1, list(ids)].float()
    if loaded.model.dtype == torch.float32 and not torch.allclose(want, got, atol=TOLERANCE, rtol=TOLERANCE):
        raise UsageError(f"{type(model).__name__} changes its logits after the head", allowed="a family whose head is linear", fix="serve it as a classifier")
