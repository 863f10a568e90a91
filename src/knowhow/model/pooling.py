"""The mean over a text's tokens, as one more plain layer of a model whose head reads a single token.

Sentence encoders are trained to be read by it; where order says little and length much, it is what a head should read.
"""

from __future__ import annotations

import copy

import torch

from knowhow.errors import UsageError
from knowhow.model.loaded import Loaded

FAMILIES = ("bert", "llama", "mistral", "qwen2", "qwen3")
_LOUD = 1000.0
"""How much louder the mean is than what the read token held: that stays as a thousandth."""
_QUIET = 0.01
"""Where the tanh of a pooler is a straight line."""
_MARK = "mean_pooled"
"""Key of the config that says that the layer is there."""


def mean_pooled(loaded: Loaded) -> Loaded:
    """The classifier with a head that reads the normed mean over all tokens; one that does already as it is. The model is changed in place.

    One more layer, whose queries and keys are zero (it looks at every token alike), whose values are the states themselves and whose MLP adds nothing;
    the pooler of BERT passes on what it is given. Plain transformers runs it like any other layer; training leaves it as it is (steps that suit other
    layers would turn its zeros into attention to this and that). Raises UsageError for a family without such a layer, and where attention shares its values
    between heads (they are then narrower than the states)."""
    config = loaded.model.config
    if config.to_dict().get(_MARK):
        _layers(loaded.model)[-1].requires_grad_(False)
        return loaded
    if config.model_type not in FAMILIES:
        raise UsageError(f"the mean over tokens of a {config.model_type}", allowed=", ".join(FAMILIES), fix="let the head read the family's own token")
    layers = _layers(loaded.model)
    layer = _blank(layers[-1])
    if config.model_type == "bert":
        into, out = layer.attention.self.value, layer.attention.output.dense
    else:
        into, out = layer.self_attn.v_proj, layer.self_attn.o_proj
        layer.self_attn.layer_idx = len(layers)
    if into.weight.shape != (config.hidden_size, config.hidden_size):
        raise UsageError(f"values of {into.out_features} numbers for states of {config.hidden_size}", allowed="a model whose heads share no values")
    with torch.no_grad():
        into.weight.copy_(torch.eye(config.hidden_size))
        out.weight.copy_(_LOUD * torch.eye(config.hidden_size))
        if config.model_type == "bert":
            loaded.model.bert.pooler.dense.weight.copy_(_QUIET * torch.eye(config.hidden_size))
            loaded.model.bert.pooler.dense.bias.zero_()
    layer.requires_grad_(False)
    layers.append(layer)
    config.num_hidden_layers += 1
    if config.model_type.startswith("qwen"):
        config.layer_types = [*config.layer_types, "full_attention"]
    config.update({_MARK: True})
    return loaded


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    layers: torch.nn.ModuleList = model.bert.encoder.layer if model.config.model_type == "bert" else model.model.layers
    return layers


def _blank(layer: torch.nn.Module) -> torch.nn.Module:
    """A copy that adds nothing: projections of zeros, norms that only norm."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.fill_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return made
