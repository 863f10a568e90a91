"""The mean over a text's tokens, as plain layers: what sentence encoders are trained to be read by, in a model that reads its first token."""

from __future__ import annotations

import copy

import torch

from knowhow.model.loaded import Loaded

_LOUD = 1000.0
"""How much louder the mean is than what the first token held: that stays as a thousandth."""
_QUIET = 0.01
"""Where the pooler's tanh is a straight line."""


def mean_pooled(loaded: Loaded) -> Loaded:
    """A BERT classifier whose head reads the layer-normed mean over all tokens, scaled down; others as they are.

    One more layer, whose queries and keys are zero (it looks at every token alike) and whose values are the states themselves; its MLP adds nothing, and
    the pooler passes on what it is given. Plain transformers runs it like any other. The model is changed in place."""
    if loaded.model.config.model_type != "bert" or loaded.head != "classifier":
        return loaded
    body = loaded.model.bert
    layer = copy.deepcopy(body.encoder.layer[-1])
    width = loaded.model.config.hidden_size
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.zero_()
                module.bias.zero_()
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
        layer.attention.self.value.weight.copy_(_LOUD * torch.eye(width))
        layer.attention.output.dense.weight.copy_(torch.eye(width))
        body.pooler.dense.weight.copy_(_QUIET * torch.eye(width))
        body.pooler.dense.bias.zero_()
    body.encoder.layer.append(layer)
    loaded.model.config.num_hidden_layers += 1
    return loaded
