"""A model's keyword arguments, `input_ids` BT among them: some of their rows, and which of their tokens are no padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Inputs = Mapping[str, Any]


def rows_of(inputs: Inputs, index: slice | torch.Tensor) -> dict[str, Any]:
    """The arguments of some rows; what does not have a row for each input stays as it is."""
    B = len(inputs["input_ids"])
    return {name: value[index] if isinstance(value, torch.Tensor) and value.ndim and len(value) == B else value for name, value in inputs.items()}


def real_tokens(inputs: Inputs) -> torch.Tensor:
    """BT: which tokens are no padding; all without a mask."""
    mask_BT = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask_BT is None else mask_BT.bool()
