"""Standing between a model and its attention product, whichever implementation it uses.

Every family asks transformers' table of attention functions for the one that its config names. While armed, the config names ours, which
hands queries, keys and values to whoever is armed for that module and else does what the config said before: no module is changed, and the
same function computes the same bits. Shape letters: B batch, T queries, S keys, H heads, J key-value heads, K head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from knowhow.errors import UsageError

_PREFIX = "knowhow_"
IMPLEMENTATIONS = ("sdpa", "eager")
Output = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Call:
    """One attention product about to be computed: query BHTK, key and value BJSK, mask (bool or added, B1TS; None: causal or all), and what computes it."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: Mapping[str, Any]
    compute: Callable[..., Output]
    exact: bool

    def run(self) -> Output:
        """What the model itself would compute: (BTHK, probabilities BHTS or None)."""
        return self.compute(self.module, self.query, self.key, self.value, self.mask, **self.options)

    def pattern(self) -> torch.Tensor:
        """Probabilities BHTS, from the formula where the model's own function keeps them to itself."""
        if self.exact:
            return self.run()[1]
        scores_BHTS = self.query @ self.keys.transpose(2, 3) * self.options.get("scaling", self.query.shape[-1] ** -0.5)
        allowed = self.mask
        if allowed is None and self.query.shape[2] > 1 and self.options.get("is_causal", self.module.is_causal):
            allowed = torch.ones(scores_BHTS.shape[2:], dtype=torch.bool, device=scores_BHTS.device).tril()
        if allowed is not None:
            scores_BHTS = scores_BHTS.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores_BHTS + allowed
        # a query that may look nowhere (padding) has no probabilities
        return torch.softmax(scores_BHTS.float(), -1).nan_to_num(0.0).to(self.query.dtype)

    @property
    def keys(self) -> torch.Tensor:
        return self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)

    @property
    def values(self) -> torch.Tensor:
        return self.value.repeat_interleave(self.query.shape[1] // self.value.shape[1], 1)

    def mixed(self, pattern_BHTS: torch.Tensor) -> torch.Tensor:
        """Values mixed by a pattern that is not the model's own: BTHK."""
        return (pattern_BHTS @ self.values).transpose(1, 2)


Handler = Callable[[Call], Output]
_ARMED: WeakKeyDictionary[torch.nn.Module, Handler] = WeakKeyDictionary()


@contextmanager
def intercepted(root: torch.nn.Module, handlers: Mapping[torch.nn.Module, Handler]) -> Iterator[None]:
    """While inside, the attention product of each module (a key of `handlers`) goes through its handler. `root`: the model that holds them.

    Raises UsageError for an implementation that cannot be intercepted, or when one of the modules already is."""
    if not handlers:
        yield
        return
    configs = list({id(config): config for config in (root.config, *(module.config for module in handlers))}.values())
    before = [config._attn_implementation for config in configs]
    for name in before:
        if name not in IMPLEMENTATIONS:
            fix = 'load the model with attn_implementation="sdpa"'
            raise UsageError(f"a tap inside attention that runs as {name}", allowed=", ".join(IMPLEMENTATIONS), fix=fix)
    try:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = _PREFIX + name
        _ARMED.update(handlers)
        yield
    finally:
        for module in handlers:
            _ARMED.pop(module, None)
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _through(name: str) -> Callable[..., Output]:
    def attention(module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Output:
        compute = AttentionInterface._global_mapping[name] if name != "eager" else sys.modules[type(module).__module__].eager_attention_forward
        call = Call(module, query, key, value, attention_mask, options, compute, name == "eager")
        handler = _ARMED.get(module)
        return call.run() if handler is None else handler(call)

    return attention


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(_PREFIX + _name, _through(_name))
    AttentionMaskInterface.register(_PREFIX + _name, AttentionMaskInterface._global_mapping[_name])
